"""A function over items: in this process, over torchrun's ranks, over a Ray cluster."""
