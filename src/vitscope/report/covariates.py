"""What goes with an image's sources: rank correlations with what can be seen in it."""

from collections.abc import Mapping, Sequence
from typing import Any

from vitscope.figures.drawing import NothingToDrawError, select
from vitscope.figures.numbers import Interval, find, find_terms, number, read_estimate
from vitscope.figures.saved import ModelResult, printable
from vitscope.report.charts import plot_dots
from vitscope.report.figure import (
    Panel,
    ReportFigure,
    Table,
    describe_interval,
    make_figure,
    name_term,
    note_omitted,
    tell_interval,
    tell_number,
)
from vitscope.results.choices import LAYER, count_cls

_SOURCES = ("patches", "registers", "skip")
_SIGNIFICANT = 0.05
Correlations = Mapping[tuple[str, str], tuple[Interval, bool]]
"""Rank correlation of the centred share of a source with a covariate, and whether it is clear."""


def draw_covariates(results: Sequence[ModelResult]) -> ReportFigure:
    """Rank correlations of the sources' shares with covariates of the image."""

    def draw() -> Mapping[str, Any]:
        selection = select(results, _read, choices=[count_cls(*_SOURCES), LAYER])
        panels = []
        rows: list[tuple[str, ...]] = []
        for model, found in selection.found:
            data = [
                {
                    "name": _name(covariate),
                    "term": source,
                    "told": tell_interval(rho),
                    "strong": clear,
                    **describe_interval(rho),
                }
                for (source, covariate), (rho, clear) in found.items()
            ]
            words = f"rank correlations of {model.label}; the numbers are in the table below"
            spec = plot_dots(data, "Spearman’s ρ", words, domain=(-1.0, 1.0))
            panels.append(Panel(model.label, spec))
            rows += [
                (model.label, name_term(source), _name(covariate), tell_interval(rho), _mark(clear))
                for (source, covariate), (rho, clear) in found.items()
            ]
            rows += _read_fits(model, {source for source, _ in found})
        sources = {source for _, found in selection.found for source, _ in found}
        return {
            "panels": tuple(panels),
            "table": Table(("model", "source", "covariate", "ρ", "told from 0"), tuple(rows)),
            "legend": tuple(source for source in _SOURCES if source in sources),
            "notes": (
                "Thin lines: 95 % intervals. Filled: told from 0 (p < 0.05 after Holm’s "
                "correction).",
                *selection.choices,
                *note_omitted(selection.omitted),
            ),
        }

    return make_figure(
        draw,
        key="covariates",
        title="What is it about an image?",
        meaning="Whether images that lean more on a source have something in common that needs "
        "no label: to the right, the share of the source rises with it.",
        terms=("covariates", "rank-correlation", "centred-share"),
    )


def _read(result: ModelResult) -> Correlations:
    found: dict[tuple[str, str], tuple[Interval, bool]] = {}
    for source in _SOURCES:
        # Where features were dropped there are plain shares alone.
        trees = (
            find_terms(result.summary, "covariates", "correlations", f"{kind}_{source}")
            for kind in ("centred_share", "share")
        )
        for covariate, content in next((tree for tree in trees if tree), {}).items():
            rho, p = read_estimate(content, "rho"), number(find(content, "p_holm"))
            if rho is not None:
                found[source, covariate] = (rho, p is not None and p < _SIGNIFICANT)
    if not found:
        raise NothingToDrawError("its correlations with covariates are undefined")
    return found


def _read_fits(model: ModelResult, sources: set[str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for source in _SOURCES:
        fit = find(model.summary, "covariates", "regressions", f"centred_share_{source}")
        r2 = number(find(fit, "r2"))
        if source in sources and r2 is not None:
            told = f"R² = {tell_number(r2)}"
            rows.append((model.label, name_term(source), "all together (regression)", told, ""))
    return rows


def _name(covariate: str) -> str:
    return printable(covariate.replace("_", " "))


def _mark(clear: bool) -> str:
    return "yes" if clear else "no"
