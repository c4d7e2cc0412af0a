"""The report's cards: verdicts with their numbers, judgements, remedies; and its provenance."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from math import isfinite, isnan
from typing import Any

from vitscope.figures.intervals import Interval, read_cka, read_estimate, read_spread
from vitscope.figures.saved import ModelResult, as_sentence
from vitscope.files.printable import without_folders
from vitscope.images.paths import hide_parents
from vitscope.metrics.jackknife import Estimate
from vitscope.report.vega_parts import term_colour
from vitscope.results import judgement_text as judged
from vitscope.results.choices import describe_settings
from vitscope.results.layer_text import tabulate_layers
from vitscope.results.map_verdict import BASELINES, REFERENCE_MAP
from vitscope.results.number_text import NumberText, write_millions, write_number, write_percent
from vitscope.results.remedy_text import describe_remedies, tabulate_overview, tabulate_remedy
from vitscope.results.result_text import (
    ABSENT,
    TextTable,
    describe_explanation,
    list_bases,
    tabulate_comparison,
    tell_estimate,
    tell_raw_shares,
)
from vitscope.results.schema import JudgementSummary
from vitscope.results.verdict import MOODS, SYMBOLS, Mood
from vitscope.results.vocabulary import name_term, order_terms

_SYMBOLS: Mapping[Mood, str] = {"good": "●", "middling": "▲", "bad": "✕", "unknown": "?"}
_CARRIED = {"most": "mostly patches", "part": "partly patches"}
_SCORES = {
    "skill": "skill",
    "gap": "gap",
    "rank": "rank",
    "saco": "SaCo",
    "infidelity": "infidelity",
    "completeness": "error of the sum",
}


def describe_verdict(result: ModelResult) -> dict[str, Any]:
    """Content of a model's card."""
    summary = result.audit
    verdict = summary.last.verdict
    found = summary.last.variance_share["residual"]
    estimates = {term: read_estimate(found[term]) for term in order_terms(found)}
    shares = {term: one.value for term, one in estimates.items() if one is not None}
    return _make_card(result, verdict.status, MOODS[verdict.status], verdict.text) | {
        "symbol": SYMBOLS[verdict.status],
        "table": tabulate_layers(summary),
        "shares": _stack_shares(shares),
        "facts": _list_facts(result),
        "citation": result.saved.cite(),
    }


def describe_explained(result: ModelResult) -> dict[str, Any]:
    """Content of the card of explained images: the verdict on each."""
    summary = result.explanation
    images = summary.images
    names = hide_parents([image.path for image in images])
    told = [
        without_folders("; ".join(filter(None, [image.verdict.text, tell_raw_shares(image)])))
        for image in images
    ]
    counts = Counter(_CARRIED.get(one.verdict.status, one.verdict.status) for one in images)
    mood = MOODS[images[0].verdict.status] if len(counts) == 1 else "unknown"
    bases = [*list_bases(summary), *judged.list_judgements(summary)]
    notes = [*result.notes, *map(without_folders, bases)]
    common = {"about": as_sentence(describe_explanation(summary)), "notes": notes}
    if len(images) > 1:
        all_told = [f"{name}: {n:,} of {len(images):,} images" for name, n in counts.most_common()]
        rows = list(zip(names, told, strict=True))
        table = TextTable(("image", "verdict"), [rows], title="The verdict on each image")
        card = _make_card(result, "several images", mood, "; ".join(all_told))
        return card | common | {"table": table}
    centred = images[0].numbers.centred_share
    shares = {term: centred[term] for term in order_terms(centred) if isfinite(centred[term])}
    own = {"shares": _stack_shares(shares), "facts": [("image", names[0], "")]}
    (status,) = counts
    return _make_card(result, status, mood, told[0]) | common | own


def describe_judgement_card(result: ModelResult) -> dict[str, Any]:
    """Content of a judgement's card."""
    summary = result.judgement
    decided = summary.verdict.best is not None
    status = "publish" if decided else "cannot tell"
    mood: Mood = "good" if decided else "unknown"
    return _make_card(result, status, mood, summary.verdict.text) | {
        "about": as_sentence(judged.describe_judgement(summary)),
        "facts": _list_skills(summary),
        "citation": result.saved.cite(),
        "scores_mean": judged.describe_scores(summary),
        "scores": [_tabulate_scores(summary, removal) for removal in summary.removals],
        "plausibility": judged.tabulate_plausibility(summary),
        "sanity": judged.tabulate_sanity(summary),
    }


def describe_remedies_card(result: ModelResult) -> dict[str, Any]:
    """Content of the tables of one comparison."""
    summary = result.remedies
    asked = {"one-shot": summary.one_shot, "skill": summary.judged, "removals": summary.judged}
    return {
        "label": result.label,
        "about": as_sentence(describe_remedies(summary)),
        "defined": [key for key, found in asked.items() if found is not None],
        "settings": _tell_settings(result),
        "notes": result.notes,
        "overview": tabulate_overview(summary),
        "edits": [(one, tabulate_remedy(summary, one)) for one in summary.remedies],
    }


def tabulate_compared(results: Sequence[ModelResult]) -> TextTable | str:
    """A row per audit, with the name of its run; or why they cannot be compared."""
    table = tabulate_comparison(results)
    if isinstance(table, str):
        return table
    (rows,) = table.sections
    told = [
        (row[0], one.run or ABSENT, NumberText(f"{one.num_images:,}", one.num_images), *row[1:])
        for row, one in zip(rows, results, strict=True)
    ]
    first, *others = table.columns
    return replace(table, columns=(first, "run", "images", *others), sections=[told])


def _make_card(result: ModelResult, status: str, mood: Mood, text: str) -> dict[str, Any]:
    # What the cards of all verdicts have; empty where a kind of result may have more.
    return {
        "status": status,
        "mood": mood,
        "symbol": _SYMBOLS[mood],
        "label": result.label,
        "id": result.model_id,
        "text": as_sentence(text),
        "about": "",
        "settings": _tell_settings(result),
        "notes": result.notes,
        "shares": [],
        "facts": [],
        "table": None,
        "citation": None,
    }


def _tell_settings(result: ModelResult) -> str:
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
    cka = read_cka(layer.cka["residual"]["patches"])
    mass = read_spread(layer.attention_mass["patches"])
    return [
        _tell_fact("variance from patches", share, write_percent),
        _tell_fact("CKA of the output r with the patches", cka),
        _tell_fact("attention on patches, mean", mass, write_percent),
        ("images", f"{result.num_images:,}", ", ".join(left_out)),
        ("parameters", params, ""),
        ("largest error of the ledger", told_error, ""),
    ]


def _tell_fact(
    name: str, estimate: Interval | None, told: Callable[[float], str] = write_number
) -> tuple[str, str, str]:
    if estimate is None:
        return name, "–", "undefined"
    if estimate.low is None or estimate.high is None:
        return name, told(estimate.value), ""
    return name, told(estimate.value), f"{told(estimate.low)} to {told(estimate.high)}"


def _stack_shares(shares: Mapping[str, float]) -> list[dict[str, Any]]:
    whole = sum(map(abs, shares.values())) or 1.0
    widths = [1000 * abs(share) / whole for share in shares.values()]
    return [
        {
            "term": term,
            "colour": term_colour(term),
            "x": f"{left:.1f}",
            "width": f"{width:.1f}",
            "negative": share < 0,
            "told": f"{name_term(term)} {write_percent(share)}",
        }
        for (term, share), left, width in zip(
            shares.items(), accumulate(widths, initial=0.0), widths, strict=False
        )
    ]


def _flatten(tree: Any, *path: str) -> list[tuple[str, str]]:
    if isinstance(tree, Mapping):
        return [row for key, value in tree.items() for row in _flatten(value, *path, str(key))]
    if isinstance(tree, list) and any(isinstance(item, (Mapping, list)) for item in tree):
        return [row for k, item in enumerate(tree) for row in _flatten(item, *path, str(k))]
    told = ", ".join(map(str, tree)) if isinstance(tree, list) else str(tree)
    return [(" ".join(path).replace("_", " "), without_folders(told))] if path else []


def _list_skills(summary: JudgementSummary) -> list[tuple[str, str, str]]:
    maps = next(iter(summary.removals.values()))
    ordered = [name for name in judged.order_maps(summary) if name != "oracle"]
    baseline = next((name for name in ordered if name in BASELINES), None)
    shown = dict.fromkeys([judged.find_best(summary), REFERENCE_MAP, baseline])
    told = partial(write_number, digits=2)
    return [
        _tell_fact(
            f"skill of {judged.name_map(summary, name)}",
            read_estimate(maps[name].scores["skill"]),
            told,
        )
        for name in shown
        if name is not None and name in maps
    ]


def _tabulate_scores(summary: JudgementSummary, removal: str) -> TextTable:
    rows = [
        (
            judged.name_map(summary, name),
            *(_tell_score(found.scores[score]) for score in _SCORES),
            ABSENT
            if (other := found.against_attention) is None
            else _tell_score(other.difference).after(f"{other.answer}: "),
            summary.maps[name].source if name in summary.maps else ABSENT,
        )
        for name in judged.order_maps(summary, removal)
        for found in [summary.removals[removal][name]]
    ]
    columns = ("map", *_SCORES.values(), "gap less that of attention", "source")
    return TextTable(columns, [rows], title=f"Removal {removal}")


def _tell_score(estimate: Estimate) -> NumberText:
    return tell_estimate(estimate, 2)
