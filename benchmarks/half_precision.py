"""How far do the reported numbers move in bfloat16 and float16?"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import vitscope
from benchmarks.images import decoded_images
from benchmarks.models import load_dinov2
from benchmarks.page import Section, Table
from benchmarks.settings import Plan, Settings
from vitscope import AuditConfig, AuditResult
from vitscope.errors import ModelUnreachableError
from vitscope.models.base import ViTAdapter

_LEFT_OUT = {"model", "settings", "preprocessing", "data", "ledger", "covariates", "layers"}
"""What is no number of the model, or is of the images alone."""

_COLUMNS = ("number", "largest in float32", "bfloat16", "float16")


def measure(settings: Settings) -> Section:
    """Audit the same images in each precision and compare the summaries."""
    vit, note = _load(settings)
    plan = Plan(vit.info.id, images=8 if settings.tiny else 128, batch_size=8)
    with decoded_images(vit, plan, settings.images) as images:
        results = {
            dtype: vitscope.audit(
                vit, images.images, AuditConfig(dtype=dtype, device="cpu", gallery=0, batch_size=32)
            )
            for dtype in ("float32", "bfloat16", "float16")
        }
    exact, *halves = (_list_numbers(result) for result in results.values())
    rows = [
        (
            name,
            _tell(max(map(abs, of_kind.values()))),
            *(_tell(_largest_change(of_kind, half[name])) for half in halves),
        )
        for name, of_kind in exact.items()
    ]
    verdicts = {result.summary.last.verdict.status for result in results.values()}
    return Section(
        title="bfloat16 and float16",
        how=f"Audits of {plan.images} images in float32 and, under autocast, in half precision: "
        "the largest absolute change of any number of a kind in `summary.json`, last layer.",
        tables=[Table(_COLUMNS, rows)],
        notes=[note, f"Verdicts: {', '.join(sorted(verdicts))}."],
    )


def _load(settings: Settings) -> tuple[ViTAdapter, str]:
    if settings.tiny:
        return load_dinov2("tiny"), "A tiny random model: the numbers mean nothing."
    try:
        return vitscope.load_model("dinov2-small"), "Model: dinov2-small with trained weights."
    except ModelUnreachableError:
        return load_dinov2("small"), "Random weights: those of dinov2-small are unavailable."


def _list_numbers(result: AuditResult) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    content = asdict(result.summary)
    for kind, tree in (content | content["layers"][-1]).items():
        if kind not in _LEFT_OUT:
            found[kind] |= dict(_walk(tree, kind))
    return {kind: numbers for kind, numbers in found.items() if numbers}


def _walk(tree: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(tree, Mapping):
        for key, below in tree.items():
            yield from _walk(below, f"{path}/{key}")
    elif isinstance(tree, tuple):
        for index, below in enumerate(tree):
            yield from _walk(below, f"{path}/{index}")
    elif isinstance(tree, float) and math.isfinite(tree):
        yield path, tree


def _largest_change(exact: Mapping[str, float], half: Mapping[str, float]) -> float:
    return max(abs(value - half.get(path, math.nan)) for path, value in exact.items())


def _tell(number: float) -> str:
    return f"{number:.2g}"
