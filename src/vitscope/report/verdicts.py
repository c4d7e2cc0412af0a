"""The top of the report, each model's verdict with its numbers; and the end, its provenance."""

from collections import Counter
from collections.abc import Mapping
from math import isfinite, isnan
from typing import Any

from vitscope.figures.intervals import Interval, read_cka, read_estimate, read_spread
from vitscope.figures.saved import ModelResult, as_sentence
from vitscope.files.printable import without_folders
from vitscope.images.paths import hide_parents
from vitscope.report.vega_parts import TERM_SHAPES
from vitscope.results.choices import describe_settings
from vitscope.results.judgement_text import list_judgements
from vitscope.results.layer_text import tabulate_layers
from vitscope.results.number_text import write_millions, write_number, write_percent
from vitscope.results.result_text import (
    TextTable,
    describe_explanation,
    list_bases,
    tell_raw_shares,
)
from vitscope.results.verdict import MOODS, SYMBOLS, Mood
from vitscope.results.vocabulary import name_term, order_terms

_SYMBOLS: Mapping[Mood, str] = {"good": "●", "middling": "▲", "bad": "✕", "unknown": "?"}
_CARRIED = {"most": "mostly patches", "part": "partly patches"}
_EACH = "The verdict on each image"


def describe_verdict(result: ModelResult) -> dict[str, Any]:
    """Content of a model's card."""
    summary = result.audit
    verdict = summary.last.verdict
    found = summary.last.variance_share["residual"]
    estimates = {term: read_estimate(found[term]) for term in order_terms(found)}
    shares = {term: one.value for term, one in estimates.items() if one is not None}
    return make_card(result, verdict.status, MOODS[verdict.status], verdict.text) | {
        "symbol": SYMBOLS[verdict.status],
        "table": tabulate_layers(summary),
        "shares": _stack_shares(shares),
        "facts": _list_facts(result),
        "citation": result.saved.cite(),
    }


def describe_explained(result: ModelResult) -> dict[str, Any]:
    """Content of the card of explained images: the verdict on each."""
    summary = result.explanation
    images, (first, *others) = summary.images, summary.images
    counts = Counter(_CARRIED.get(one.verdict.status, one.verdict.status) for one in images)
    names = hide_parents([image.path for image in images])
    told = [
        without_folders("; ".join(filter(None, [image.verdict.text, tell_raw_shares(image)])))
        for image in images
    ]
    all_told = [f"{name}: {n:,} of {len(images):,} images" for name, n in counts.most_common()]
    status, text = ("several images", "; ".join(all_told)) if others else (*counts, told[0])
    mood = MOODS[first.verdict.status] if len(counts) == 1 else "unknown"
    centred = first.numbers.centred_share
    shares = {term: centred[term] for term in order_terms(centred) if isfinite(centred[term])}
    rows = list(zip(names, told, strict=True))
    return make_card(result, status, mood, text) | {
        "about": as_sentence(describe_explanation(summary)),
        "shares": [] if others else _stack_shares(shares),
        "facts": [] if others else [("image", names[0], "")],
        "notes": [
            *result.notes,
            *map(without_folders, (*list_bases(summary), *list_judgements(summary))),
        ],
        "table": TextTable(("image", "verdict"), [rows], title=_EACH) if others else None,
    }


def make_card(result: ModelResult, status: str, mood: Mood, text: str) -> dict[str, Any]:
    """What the cards of all verdicts have; empty where a kind of result may have more."""
    return {
        "status": status,
        "mood": mood,
        "symbol": _SYMBOLS[mood],
        "label": result.label,
        "id": result.model_id,
        "text": as_sentence(text),
        "about": "",
        "settings": tell_settings(result),
        "notes": result.notes,
        "shares": [],
        "facts": [],
        "table": None,
        "citation": None,
    }


def tell_settings(result: ModelResult) -> str:
    """Settings that are not the defaults, as a sentence; empty if there are none."""
    settings = describe_settings(result.summary)
    return f"Settings other than by default: {settings}." if settings else ""


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
    told_error = "–" if isnan(error) else f"{error:.0e}".replace("-", "−")
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


def _stack_shares(shares: Mapping[str, float]) -> list[dict[str, Any]]:
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
