"""Shared by the adapters' tests: fixed random inputs, and the trace and ledger of every layer."""

import torch

from reference import assert_ledger_matches
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


def assert_rows_match(found, expected, tolerance):
    """Each image's row differs by no more than a part of its norm."""
    assert ((found - expected).norm(dim=-1) <= tolerance * expected.norm(dim=-1)).all()


def check_layers(adapter, pixels, tolerance, references=None):
    """Every ledger balances and is the reference's, what follows is the model's; the feature."""
    found, feature = collect(adapter, pixels)
    assert len(found) == len(adapter.blocks)
    for trace, ledger in found:
        assert ledger.balance_error.max() <= tolerance
        assert ledger.residual_error.max() <= tolerance
        finished = adapter.finish_block(trace.layer, trace.residual)
        assert_rows_match(finished, trace.output, tolerance)
    embedded = adapter.embed(found[-1][0].output)
    assert_rows_match(embedded, feature, tolerance)
    if references is not None:
        for (trace, ledger), reference in zip(found, references, strict=True):
            assert_ledger_matches(ledger, trace.layout, reference, tolerance)
    return feature
