"""Engines that map a function over items: in this process, on torchrun's ranks, or on Ray."""
