"""The numbers of a summary that are worth a curve over training."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from vitscope.results.verdict import LEVELS

Summary = Mapping[str, Any]

_OF_EACH_LAYER = (
    "attention_mass",
    "patch_share",
    "contribution_norm",
    "centred_cosine",
    "variance_share",
    "cka",
)
_MEANINGS = ("mean", "value", "unbiased")
"""What a leaf of a summary is told by: a distribution by its mean, an estimate by its value."""


def list_numbers(summary: Summary) -> dict[str, float]:
    """The numbers to log of an audit, each under a name of its own.

    Args:
        summary: Content of `summary.json` of an audit.

    Returns:
        Numbers by names such as "vitscope/cka_residual_patches" (see docs/training.md); undefined
        ones are absent.
    """
    numbers = dict(_walk_layer(summary))
    for layer, content in summary.get("layers", {}).items():
        for name, value in _walk_layer(content):
            numbers[f"layer_{int(layer):02d}/{name}"] = value
    numbers |= dict(_list_headlines(summary))
    return {
        f"vitscope/{name}": float(value)
        for name, value in numbers.items()
        if value is not None and math.isfinite(value)
    }


def _walk_layer(content: Summary) -> Iterator[tuple[str, float | None]]:
    for name in _OF_EACH_LAYER:
        yield from _walk(name, content.get(name))
    yield from _walk("token_norm", (content.get("anatomy") or {}).get("norms"))
    yield "verdict", _number_verdict(content)
    # What the verdict is read off comes with its intervals.
    for name in ("cka", "variance_share"):
        interval = content[name]["residual"]["patches"]["ci95"] or (None, None)
        ends = (f"{name}_residual_patches_low", f"{name}_residual_patches_high")
        yield from zip(ends, interval, strict=True)


def _number_verdict(content: Summary) -> float | None:
    status = content["verdict"]
    if status in LEVELS:
        return LEVELS.index(status)
    if status != "borderline":
        return None
    # Between two levels: the worse of what both readings allow at worst, and at best.
    spans = content["readings"].values()
    return sum(min(map(LEVELS.index, levels)) for levels in zip(*spans, strict=True)) / 2


def _walk(name: str, tree: Any) -> Iterator[tuple[str, float | None]]:
    if not isinstance(tree, Mapping):
        return
    for meaning in _MEANINGS:
        if meaning in tree:
            yield name, tree[meaning]
            return
    for key, below in tree.items():
        yield from _walk(f"{name}_{key}", below)


def _list_headlines(summary: Summary) -> Iterator[tuple[str, float | None]]:
    similarity = summary["layer_similarity"]
    if similarity:
        yield "layer_similarity_before_last", similarity[-2]["mean"]
    # Where none are found there is a bound alone.
    for key in ("fraction", "fraction_at_most"):
        parts = [row[key] for row in summary["high_norm_tokens"]]
        yield f"high_norm_{key}", max((part for part in parts if part is not None), default=None)
    yield "balance_error", summary["ledger"]["max_balance_error"]
    yield "num_images", summary["data"]["num_images"]
