"""Where the output comes from: variance shares, attention, geometry, and what classes survive."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from vitscope.figures.description import NothingToDrawError, describe_n, select
from vitscope.figures.numbers import (
    Interval,
    read_cka,
    read_estimate,
    read_spread,
    tell_undefined_cka,
)
from vitscope.figures.saved import ModelResult, printable
from vitscope.figures.sources import list_classifiers
from vitscope.report.figure import (
    ReportFigure,
    Terms,
    draw_terms,
    make_figure,
    tell_percent,
)
from vitscope.results.choices import LAYER, RENORMALIZE, Choice, count_cls
from vitscope.results.vocabulary import SOURCES

Results = Sequence[ModelResult]
_CLS = count_cls(*SOURCES)
_READOUTS = {"residual": "the residual stream r", "attention": "the attention branch’s output t"}


def draw_variance_share(results: Results) -> ReportFigure:
    """Variance share of each term."""
    return make_figure(
        lambda: _draw(
            results,
            _read_shares,
            "share of the output’s variance",
            tell_percent,
            form="%",
            note="Thin lines: 95 % intervals.",
        ),
        key="variance-share",
        title="Where does the output come from?",
        meaning="Each bar is the part of the output’s variance over images that one source "
        "wrote. The bars of a model add up to 100 %; a bar below zero takes away from the others.",
        terms=("variance-share", "terms", "interval"),
    )


def draw_attention(results: Results) -> ReportFigure:
    """Attention mass of each token group."""
    return make_figure(
        lambda: _draw(
            results,
            partial(_read_means, "attention_mass"),
            "attention of [CLS]",
            tell_percent,
            form="%",
            domain=(0.0, 1.0),
            note="Thin lines: 5 to 95 % of the images.",
        ),
        key="attention",
        title="Where does [CLS] look?",
        meaning="How much of the [CLS] token’s attention goes to each kind of token. A map can "
        "only show the patches’ part.",
        terms=("attention-mass", "terms"),
    )


def draw_norms(results: Results) -> ReportFigure:
    """Length of what each term adds."""
    return make_figure(
        lambda: _draw(
            results,
            partial(_read_means, "contribution_norm"),
            "length of what is added",
            lambda value: f"{value:.3g}",
            note="Thin lines: 5 to 95 % of the images.",
        ),
        key="norms",
        title="How much does each source add?",
        meaning="The mean length of the vector that each source adds to [CLS]. What is the same "
        "for every image counts here, but not in the variance share.",
        terms=("contribution-norm", "terms"),
    )


def draw_cka(readout: str, results: Results) -> ReportFigure:
    """CKA of the full output with that of a single source."""
    return make_figure(
        lambda: _draw(
            results,
            partial(_read_ckas, readout),
            "CKA with the full output",
            domain=(-0.05, 1.05),
            note="Thin lines: 95 % intervals of the unbiased estimate, which is about 0 for "
            "unrelated features. Grey ticks: the mean of the biased estimate if the restricted "
            "outputs were paired with the images at random.",
            choices=(_CLS, LAYER) if readout == "residual" else (_CLS, LAYER, RENORMALIZE),
        ),
        key=f"cka-{readout}",
        title="Would one source suffice?"
        if readout == "residual"
        else "Would one kind of token suffice?",
        meaning=f"How alike {_READOUTS[readout]} and what one source wrote arrange the images: "
        "1 is the same arrangement, 0 an unrelated one.",
        terms=("cka", "readouts", "interval"),
    )


def draw_one_shot(results: Results) -> list[ReportFigure]:
    """One-shot accuracy by part of the output, a figure for each classifier."""
    return [
        make_figure(
            lambda name=classifier: _draw(  # type: ignore[misc]
                results,
                partial(_read_accuracies, name),
                "top-1 accuracy",
                tell_percent,
                form="%",
                domain=(0.0, 1.0),
                kind="one-shot",
                choices=(_CLS, RENORMALIZE),
                note=f"Thin lines: 95 % intervals over draws. {_tell_chance(results)}",
            ),
            key=f"one-shot-{place}",
            title=f"Do the classes survive? ({printable(classifier)} classifier)",
            meaning="A classifier learns from the full outputs of one image per class and is "
            "tested on what one source alone wrote.",
            terms=("one-shot", "terms"),
        )
        for place, classifier in enumerate(list_classifiers(results))
    ]


def _tell_chance(results: Results) -> str:
    chances = {
        tell_percent(result.one_shot.chance.top1) for result in results if result.kind == "one-shot"
    }
    return f"Chance: {', '.join(sorted(chances))}." if chances else ""


def _draw(
    results: Results,
    read: Any,
    axis: str,
    told: Any = None,
    *,
    domain: tuple[float, float] | None = None,
    form: str = "",
    kind: str = "audit",
    note: str = "",
    choices: Sequence[Choice] = (_CLS, LAYER),
) -> Mapping[str, Any]:
    selection = select(results, read, kind=kind, choices=choices)
    drawn = draw_terms(selection, axis, domain=domain, told=told, form=form)
    told_n = f"{describe_n(selection.results)}. {note}".strip()
    notes = (told_n, *selection.choices, *drawn["notes"])
    return drawn | {"notes": notes}


def _read_shares(result: ModelResult) -> Terms:
    shares = result.audit.last.variance_share["residual"]
    return _complete(
        {term: read_estimate(share) for term, share in shares.items()},
        "its variance shares are undefined",
    )


def _read_means(kind: str, result: ModelResult) -> Terms:
    spreads = getattr(result.audit.last, kind)
    return _complete(
        {
            term: read_spread(spread)
            for term, spread in spreads.items()
            if not term.endswith("_total")
        },
        f"it has no {kind.replace('_', ' ')}",
    )


def _read_ckas(readout: str, result: ModelResult) -> Terms:
    ckas = result.audit.last.cka[readout]
    return _complete(
        {term: read_cka(cka) for term, cka in ckas.items() if term != "non_patch"},
        f"its CKA {tell_undefined_cka(result.audit, readout, list(ckas))}",
    )


def _read_accuracies(classifier: str, result: ModelResult) -> Terms:
    summary = result.one_shot
    parts = summary.accuracy.get(classifier, {}).get(summary.readout, {})
    return _complete(
        {part: read_estimate(tops.top1) for part, tops in parts.items()},
        f"no accuracy with {printable(classifier)}",
    )


def _complete(found: Mapping[str, Interval | None], reason: str) -> Terms:
    known = {term: value for term, value in found.items() if value is not None}
    if not known:
        raise NothingToDrawError(reason)
    return known
