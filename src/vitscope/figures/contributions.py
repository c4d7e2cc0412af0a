"""Where the output comes from: variance shares, norms, CKA, one-shot accuracy (Fig. 3, 5 to 8)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

from vitscope.errors import UsageError
from vitscope.figures.description import (
    FigureData,
    NothingToDrawError,
    Point,
    select,
    write_range,
)
from vitscope.figures.intervals import (
    Interval,
    read_cka,
    read_estimate,
    read_spread,
    tell_undefined_cka,
)
from vitscope.figures.saved import ModelResult, printable
from vitscope.results.choices import LAYER, RENORMALIZE, count_cls
from vitscope.results.vocabulary import PER_IMAGE, SOURCES, TERMS, name_term, order_terms

Results = Iterable[ModelResult]
Readout = Literal["attention", "values"]
READOUTS: tuple[Readout, ...] = get_args(Readout)
"""After the output projection, or before it."""
Top = Literal["top1", "top5"]
TOPS: tuple[Top, ...] = get_args(Top)
"""Top-1 or top-5 accuracy."""
CHANCE = "chance"
"""Key of the accuracy of guessing, next to the terms."""

_READOUT_NAMES: Mapping[str, str] = {
    "attention": "the attention branch of {}, without the skip connection",
    "values": "the values of {} weighted by attention, before the output projection",
}
_TOP_NAMES = {"top1": "top-1", "top5": "top-5"}
_KEPT = ("patches", "registers")
_ADDED = ("patches", "skip")
_CKA_LIMITS = (-0.05, 1.05)
_CKA_NOTES = (
    "Filled: unbiased linear CKA, about 0 for unrelated features; thin lines: 95 % intervals, "
    "which end at 1.",
    "Hollow: biased CKA, the paper's estimator; grey dash: what that one would give on "
    "average if the restricted outputs were paired with the images at random.",
)


def describe_variance_share(results: Results) -> FigureData:
    """Variance shares of the residual stream by term."""
    selection = select(results, _read_shares, choices=[count_cls(*SOURCES), LAYER])
    notes = (
        "Variance over images of the residual stream r of [CLS] after the attention of "
        f"{selection.block}; what is the same for every image drops out. "
        f"{selection.n}; thin lines: 95 % intervals.",
    )
    axis = "share of the output's variance"
    return selection.describe(selection.points, notes, axis=axis, percent=True)


def describe_attention_mass(results: Results) -> FigureData:
    """Attention of [CLS] on each group of tokens."""
    return _describe_means("attention_mass", results, percent=True, limits=(0.0, 1.0))


def describe_norms(results: Results, terms: Sequence[str] = _ADDED) -> FigureData:
    """Norm of each term's contribution (patches and skip connection in Fig. 5a and 7)."""
    _check_terms(terms)
    return _describe_means("contribution_norm", results, terms)


def describe_restricted_cka(
    results: Results, readout: Readout = "attention", terms: Sequence[str] = _KEPT
) -> FigureData:
    """CKA of the attention branch's output with that of one token type alone (Fig. 3a)."""
    _check("readout", readout, READOUTS)
    _check_terms(terms)
    choices = [count_cls(*terms), RENORMALIZE, LAYER]
    selection = select(results, partial(_read_ckas, readout, terms), choices=choices)
    points = (
        replace(point, panel=part)
        for part in order_terms(terms)
        for point in selection.points
        if point.term == part
    )
    output = _READOUT_NAMES[readout].format(selection.block)
    notes = (f"Output of {output}; {selection.n}.", *_CKA_NOTES)
    titles = {part: f"{name_term(part)} only" for part in terms}
    axis = "CKA with the full output"
    return selection.describe(points, notes, axis=axis, limits=_CKA_LIMITS, titles=titles)


def describe_residual_cka(results: Results, terms: Sequence[str] = _ADDED) -> FigureData:
    """CKA of the residual stream with single terms, over size (Fig. 6 and 8)."""
    _check_terms(terms)
    choices = [count_cls(*terms), LAYER]
    selection = select(results, partial(_read_ckas, "residual", terms), choices=choices)
    notes = (
        f"r: residual stream of [CLS] after the attention of {selection.block}; {selection.n}.",
        *_CKA_NOTES,
    )
    axis = "CKA with the output r"
    return selection.describe(selection.points, notes, axis=axis, limits=_CKA_LIMITS)


def describe_one_shot(
    results: Results,
    classifier: str = "nearest",
    top: Top = "top5",
    readout: Readout = "attention",
) -> FigureData:
    """One-shot accuracy by part of the output, over size (Fig. 3b)."""
    _check("top", top, TOPS)
    _check("readout", readout, READOUTS)
    selection = select(
        results,
        partial(_read_accuracies, classifier, top, readout),
        f"no {_TOP_NAMES[top]} accuracy with {printable(classifier)} in the readout {readout}",
        kind="one-shot",
        choices=[count_cls(*SOURCES), RENORMALIZE],
    )
    notes = (
        f"Classifier: {printable(classifier)}, trained on full outputs of "
        f"{_READOUT_NAMES[readout].format('the last block')}. "
        f"{_describe_draws(selection.results)}; thin lines: 95 % intervals over draws.",
    )
    axis = f"one-shot {_TOP_NAMES[top]} accuracy"
    limits = (-0.03, 1.03)
    return selection.describe(selection.points, notes, axis=axis, percent=True, limits=limits)


def _check(setting: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{setting} {value!r}: expected one of {', '.join(known)}")


def _check_terms(terms: Sequence[str]) -> None:
    known = isinstance(terms, (list, tuple)) and all(isinstance(one, str) for one in terms)
    if not known or not terms or not set(terms) <= TERMS.keys() or len(set(terms)) < len(terms):
        raise UsageError(f"terms {terms!r}: expected a list of some of {', '.join(TERMS)}")


def list_classifiers(results: Results) -> list[str]:
    """Classifiers that any of the results has."""
    accuracies = [one.one_shot.accuracy for one in results if one.kind == "one-shot"]
    return list(dict.fromkeys(name for accuracy in accuracies for name in accuracy))


def _describe_means(
    key: str, results: Results, terms: Sequence[str] = (), **settings: Any
) -> FigureData:
    terms = terms or PER_IMAGE[key].terms
    axis, read = PER_IMAGE[key].name.lower(), partial(_read_means, key, terms)
    choices = [count_cls(*terms), LAYER]
    selection = select(results, read, f"it has no {axis}", choices=choices)
    notes = (
        f"At {selection.block}; mean over images, thin lines: 5 to 95 % of the images; "
        f"{selection.n}.",
    )
    return selection.describe(selection.points, notes, axis=axis, **settings)


def _read_shares(result: ModelResult) -> list[Point]:
    shares = result.audit.last.variance_share["residual"]
    points = _place(result, {term: read_estimate(share) for term, share in shares.items()})
    if len(points) < len(shares):
        raise NothingToDrawError("its variance shares are undefined")
    return points


def _read_means(key: str, terms: Sequence[str], result: ModelResult) -> list[Point]:
    spreads = getattr(result.audit.last, key)
    return _place(result, {term: read_spread(spreads[term]) for term in terms if term in spreads})


def _read_ckas(readout: str, parts: Sequence[str], result: ModelResult) -> list[Point]:
    ckas = result.audit.last.cka.get(readout, {})
    points = _place(result, {part: read_cka(ckas[part]) for part in parts if part in ckas})
    if not points:
        why = tell_undefined_cka(result.audit, readout, parts)
        raise NothingToDrawError(f"its CKA {why}")
    return points


def _read_accuracies(classifier: str, top: Top, readout: str, result: ModelResult) -> list[Point]:
    parts = result.one_shot.accuracy.get(classifier, {}).get(readout, {})
    shown = [part for part in ("full", *SOURCES) if part in parts]
    points = _place(result, {part: read_estimate(getattr(parts[part], top)) for part in shown})
    chance = {CHANCE: Interval(getattr(result.one_shot.chance, top))}
    return [*points, *_place(result, chance)] if points else []


def _place(result: ModelResult, numbers: Mapping[str, Interval | None]) -> list[Point]:
    x = result.params_m or ""
    return [
        Point(model=result, panel=result.series, term=term, x=x, number=number)
        for term in order_terms(numbers)
        if (number := numbers[term]) is not None
    ]


def _describe_draws(results: Sequence[ModelResult]) -> str:
    summaries = [result.one_shot for result in results]
    return (
        f"{write_range(one.data.num_classes for one in summaries)} classes, "
        f"{write_range(one.data.num_images for one in summaries)} images, "
        f"{write_range(one.draws for one in summaries)} draws"
    )
