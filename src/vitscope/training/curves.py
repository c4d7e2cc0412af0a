"""Numbers of an audit to plot over training."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from vitscope.metrics.distribution import Distribution
from vitscope.metrics.estimates import CkaEstimate
from vitscope.metrics.jackknife import Estimate
from vitscope.results.schema import AuditSummary
from vitscope.results.schema_numbers import LayerSummary
from vitscope.results.verdict import LEVELS, Verdict

_OF_EACH_LAYER = (
    "attention_mass",
    "patch_share",
    "contribution_norm",
    "centred_cosine",
    "variance_share",
    "cka",
)


def list_numbers(summary: AuditSummary) -> dict[str, float]:
    """List the numbers of an audit to log, with unique names.

    Args:
        summary: Summary of an audit.

    Returns:
        Numbers by name, such as "vitscope/cka_residual_patches" (see docs/training.md), without
        undefined ones.
    """
    numbers = dict(_walk_layer(summary.last))
    for layer in summary.layers if len(summary.layers) > 1 else ():
        for name, value in _walk_layer(layer):
            numbers[f"layer_{layer.index:02d}/{name}"] = value
    numbers |= dict(_list_headlines(summary))
    return {
        f"vitscope/{name}": float(value)
        for name, value in numbers.items()
        if value is not None and math.isfinite(value)
    }


def _walk_layer(layer: LayerSummary) -> Iterator[tuple[str, float | None]]:
    for name in _OF_EACH_LAYER:
        yield from _walk(name, getattr(layer, name))
    if layer.anatomy is not None:
        yield from _walk("token_norm", layer.anatomy.norms)
    yield "verdict", _number_verdict(layer.verdict)
    # The readings that the verdict is based on, with their intervals.
    readings: dict[str, CkaEstimate | Estimate] = {
        "cka": layer.cka["residual"]["patches"],
        "variance_share": layer.variance_share["residual"]["patches"],
    }
    for name, reading in readings.items():
        ends = (f"{name}_residual_patches_low", f"{name}_residual_patches_high")
        yield from zip(ends, reading.ci95 or (None, None), strict=True)


def _number_verdict(verdict: Verdict) -> float | None:
    if verdict.status in LEVELS:
        return LEVELS.index(verdict.status)
    if verdict.status != "borderline":
        return None
    # Halfway between the worst and the best case; in each, the worse reading counts.
    spans = zip(verdict.alignment, verdict.source, strict=True)
    return sum(min(map(LEVELS.index, levels)) for levels in spans) / 2


def _walk(name: str, tree: Any) -> Iterator[tuple[str, float]]:
    match tree:
        case Distribution(mean=value) | Estimate(value=value) | CkaEstimate(unbiased=value):
            yield name, value
        case Mapping():
            for key, below in tree.items():
                yield from _walk(f"{name}_{key}", below)


def _list_headlines(summary: AuditSummary) -> Iterator[tuple[str, float | None]]:
    if summary.layer_similarity:
        yield "layer_similarity_before_last", summary.layer_similarity[-2].mean
    # If no such token is found there is only an upper bound.
    for key in ("fraction", "fraction_at_most"):
        parts = [getattr(depth, key) for depth in summary.high_norm_tokens]
        yield f"high_norm_{key}", max((part for part in parts if part is not None), default=None)
    yield "balance_error", summary.ledger.max_balance_error
    yield "num_images", summary.data.num_images
