"""The top of the report, each model's verdict with its numbers; and the end, its provenance."""

import math
from collections.abc import Mapping
from typing import Any

from vitscope.figures.intervals import (
    Interval,
    read_cka,
    read_estimate,
    read_spread,
)
from vitscope.figures.saved import ModelResult, as_sentence
from vitscope.files.printable import without_folders
from vitscope.report.vega_parts import TERM_SHAPES
from vitscope.results.choices import describe_settings
from vitscope.results.layer_text import tabulate_layers
from vitscope.results.number_text import write_millions, write_number, write_percent
from vitscope.results.result_text import TextTable
from vitscope.results.schema_numbers import LayerSummary
from vitscope.results.verdict import MOODS, SYMBOLS
from vitscope.results.vocabulary import name_term, order_terms


def describe_verdict(result: ModelResult) -> dict[str, Any]:
    """Content of a model's card."""
    summary = result.audit
    verdict = summary.last.verdict
    shares = _stack_shares(summary.last)
    settings = describe_settings(summary)
    return {
        "status": verdict.status,
        "mood": MOODS[verdict.status],
        "symbol": SYMBOLS[verdict.status],
        "label": result.label,
        "id": result.model_id,
        "text": as_sentence(verdict.text),
        "layers": tabulate_layers(summary),
        "shares": shares,
        "shares_told": ", ".join(part["told"] for part in shares),
        "facts": _list_facts(result),
        "settings": f"Settings other than by default: {settings}." if settings else "",
        "notes": result.notes,
        "citation": result.saved.cite(),
    }


def describe_origin(result: ModelResult) -> dict[str, Any]:
    """Provenance of a result."""
    rows = _flatten(result.provenance) or [("provenance", "not saved")]
    settings = describe_settings(result.summary) or "none"
    told = [("kind of result", result.kind), ("settings other than by default", settings)]
    table = TextTable(("what", "value"), [[*told, *rows]])
    return {"label": f"{result.label} ({result.kind})", "table": table}


def _list_facts(result: ModelResult) -> list[tuple[str, str, str]]:
    summary, layer = result.audit, result.audit.last
    error, data = summary.ledger.max_balance_error, summary.data
    told_error = "–" if math.isnan(error) else f"{error:.0e}".replace("-", "−")
    counts = (
        (data.num_failed, "not readable (see failures.csv)"),
        (data.num_repeated, "repeated and left out"),
    )
    left_out = [f"{count:,} {words}" for count, words in counts if count]
    params = "not known" if result.params_m is None else write_millions(result.params_m)
    share = read_estimate(layer.variance_share["residual"]["patches"])
    mass = read_spread(layer.attention_mass["patches"])
    return [
        _tell_fact("variance from patches", share, percent=True),
        _tell_fact(
            "CKA of the output r with the patches", read_cka(layer.cka["residual"]["patches"])
        ),
        _tell_fact("attention on patches, mean", mass, percent=True),
        ("images", f"{result.num_images:,}", ", ".join(left_out)),
        ("parameters", params, ""),
        ("largest error of the ledger", told_error, ""),
    ]


def _tell_fact(
    name: str, estimate: Interval | None, *, percent: bool = False
) -> tuple[str, str, str]:
    told = write_percent if percent else write_number
    if estimate is None:
        return name, "–", "undefined"
    if estimate.low is None or estimate.high is None:
        return name, told(estimate.value), ""
    return name, told(estimate.value), f"{told(estimate.low)} to {told(estimate.high)}"


def _stack_shares(layer: LayerSummary) -> list[dict[str, Any]]:
    found = layer.variance_share["residual"]
    estimates = {term: read_estimate(found[term]) for term in order_terms(found)}
    shares = {term: one.value for term, one in estimates.items() if one is not None}
    whole = sum(abs(share) for share in shares.values()) or 1.0
    parts: list[dict[str, Any]] = []
    left = 0.0
    for term, share in shares.items():
        width = 1000 * abs(share) / whole
        parts.append(
            {
                "term": term,
                "slug": term if term in TERM_SHAPES else "other",
                "x": f"{left:.1f}",
                "width": f"{width:.1f}",
                "negative": share < 0,
                "told": f"{name_term(term)} {write_percent(share)}",
            }
        )
        left += width
    return parts


def _flatten(tree: Any, *path: str) -> list[tuple[str, str]]:
    if isinstance(tree, Mapping):
        return [row for key, value in tree.items() for row in _flatten(value, *path, str(key))]
    if isinstance(tree, list) and any(isinstance(item, (Mapping, list)) for item in tree):
        return [row for k, item in enumerate(tree) for row in _flatten(item, *path, str(k))]
    told = ", ".join(map(str, tree)) if isinstance(tree, list) else str(tree)
    return [(" ".join(path).replace("_", " "), without_folders(told))] if path else []
