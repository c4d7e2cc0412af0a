"""The top of the report: each model's verdict with its numbers; and the end: where it is from."""

from collections.abc import Mapping
from typing import Any

from vitscope.errors import ResultError
from vitscope.figures.numbers import (
    Interval,
    find,
    find_terms,
    number,
    read_cka,
    read_estimate,
    read_spread,
)
from vitscope.figures.saved import ModelResult, format_millions, printable
from vitscope.figures.style import in_term_order
from vitscope.files.json_files import read_json
from vitscope.report.charts import TERM_SHAPES
from vitscope.report.figure import (
    Table,
    Told,
    name_term,
    tell_interval,
    tell_number,
    tell_percent,
)
from vitscope.results.choices import describe_settings
from vitscope.results.saved_result import PROVENANCE

_CKA = ("cka", "residual", "patches")
_SHARE = ("variance_share", "residual", "patches")
_MOODS = {
    "holds": ("good", "●"),
    "weakened": ("middling", "▲"),
    "broken": ("bad", "✕"),
    "borderline": ("middling", "◆"),
    "no variation": ("unknown", "?"),
    "not enough images": ("unknown", "?"),
}


def describe_verdict(result: ModelResult) -> dict[str, Any]:
    """What stands on the card of one model."""
    summary = result.summary
    status = str(find(summary, "verdict") or "no verdict")
    mood, symbol = _MOODS.get(status, ("unknown", "?"))
    text = str(find(summary, "verdict_text") or "no verdict was saved")
    shares = _stack_shares(summary)
    notes = [find(summary, part, "notes") for part in ("model", "data")]
    settings = describe_settings(summary)
    return {
        "status": printable(status),
        "mood": mood,
        "symbol": symbol,
        "label": result.label,
        "id": result.model_id,
        "text": f"{text[:1].upper()}{text[1:]}.",
        "layers": _tabulate_layers(summary),
        "shares": shares,
        "shares_told": ", ".join(part["told"] for part in shares),
        "facts": _list_facts(result),
        "settings": f"Settings other than by default: {settings}." if settings else "",
        "notes": [str(note) for told in notes if isinstance(told, list) for note in told],
    }


def _tabulate_layers(summary: Mapping[str, Any]) -> Table | None:
    rows = tuple(
        (
            printable(layer),
            tell_interval(read_estimate(find(one, *_SHARE)), tell_percent),
            tell_interval(read_cka(find(one, *_CKA))),
            printable(find(one, "verdict") or "no verdict"),
        )
        for layer, one in find_terms(summary, "layers").items()
    )
    head = ("layer", "variance from patches", "CKA of r with the patches", "verdict")
    return Table(head, rows) if rows else None


def describe_origin(result: ModelResult) -> dict[str, Any]:
    """Where a result comes from."""
    try:
        provenance = read_json(result.folder / PROVENANCE)
    except ResultError:
        provenance = {}
    rows = tuple(_flatten(provenance)) or (("provenance", "not saved"),)
    settings = describe_settings(result.summary) or "none"
    told = (("kind of result", result.kind), ("settings other than by default", settings))
    table = Table(("what", "value"), (*told, *rows))
    return {"label": f"{result.label} ({result.kind})", "table": table}


def _list_facts(result: ModelResult) -> list[tuple[str, str, str]]:
    summary = result.summary
    mass = read_spread(find(summary, "attention_mass", "patches"))
    error = number(find(summary, "ledger", "max_balance_error"))
    told_error = "–" if error is None else f"{error:.0e}".replace("-", "−")
    counts = (("num_failed", "not readable"), ("num_repeated", "the same again and left out"))
    left_out = [
        f"{int(count):,} {words}"
        for name, words in counts
        if (count := number(find(summary, "data", name)))
    ]
    params = "not known" if result.params_m is None else format_millions(result.params_m)
    return [
        _tell_fact("variance from patches", read_estimate(find(summary, *_SHARE)), tell_percent),
        _tell_fact("CKA of r with the patches", read_cka(find(summary, *_CKA))),
        _tell_fact("attention on patches, mean", mass, tell_percent),
        ("images", f"{result.num_images:,}", ", ".join(left_out)),
        ("parameters", params, ""),
        ("largest error of the ledger", told_error, ""),
    ]


def _tell_fact(
    name: str, estimate: Interval | None, told: Told = tell_number
) -> tuple[str, str, str]:
    if estimate is None:
        return name, "–", "undefined"
    if estimate.low is None or estimate.high is None:
        return name, told(estimate.value), ""
    return name, told(estimate.value), f"{told(estimate.low)} to {told(estimate.high)}"


def _stack_shares(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    tree = find_terms(summary, "variance_share", "residual")
    estimates = {term: read_estimate(tree[term]) for term in in_term_order(list(tree))}
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
                "told": f"{name_term(term)} {tell_percent(share)}",
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
    return [(" ".join(path).replace("_", " "), told)] if path else []
