"""Shared by the adapters' tests: fixed random inputs, and the trace and ledger of every layer."""

import torch

from vitscope.ledger import make_ledger


def make_pixels(size, dtype=torch.float64):
    """Two inputs of size (height, width), with the same numbers in every precision."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, 3, *size, generator=generator, dtype=torch.float64).to(dtype)


def collect(adapter, pixels):
    """(trace, ledger) of every layer, and the global feature."""
    found = []
    layers = adapter.select_layers("all")
    feature = adapter.trace(pixels, layers, lambda trace: found.append((trace, make_ledger(trace))))
    return found, feature
