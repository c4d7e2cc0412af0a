"""What goes with an image's sources: rank correlations with what can be seen in it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vitscope.figures.description import NothingToDrawError, select
from vitscope.figures.numbers import Interval
from vitscope.figures.saved import ModelResult
from vitscope.report.charts import plot_dots
from vitscope.report.figure import (
    Panel,
    ReportFigure,
    Table,
    describe_interval,
    make_figure,
    note_omitted,
    tell_interval,
    tell_number,
)
from vitscope.results.choices import LAYER, SHARES, count_cls
from vitscope.results.vocabulary import COVARIATES, name_term

_SOURCES = ("patches", "registers", "skip")
_SIGNIFICANT = 0.05
Correlations = Mapping[tuple[str, str], tuple[Interval, bool]]
"""Rank correlation of the centred share of a source with a covariate, and whether it is clear."""


def draw_covariates(results: Sequence[ModelResult]) -> ReportFigure:
    """Rank correlations of the sources' shares with covariates of the image."""

    def draw() -> Mapping[str, Any]:
        selection = select(results, _read, choices=[count_cls(*_SOURCES), LAYER, SHARES])
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
            "table": Table(("model", "source", "covariate", "ρ", "differs from 0"), tuple(rows)),
            "legend": tuple(source for source in _SOURCES if source in sources),
            "notes": (
                "Thin lines: 95 % intervals. Filled: differs from 0 (p < 0.05 after Holm’s "
                "correction).",
                *selection.choices,
                *note_omitted(selection.omitted),
            ),
        }

    return make_figure(
        draw,
        key="covariates",
        title="Which images rely on which source?",
        meaning="Whether images that rely more on a source have something visible in common: to "
        "the right of zero, the share of the source rises with it.",
        terms=("covariates", "rank-correlation", "centred-share"),
    )


def _read(result: ModelResult) -> Correlations:
    correlations = result.audit.covariates.correlations
    found: dict[tuple[str, str], tuple[Interval, bool]] = {}
    for source in _SOURCES:
        # Where features were dropped there are plain shares alone.
        of_covariates = correlations.get(f"centred_share_{source}") or correlations.get(
            f"share_{source}", {}
        )
        for covariate, one in of_covariates.items():
            if not math.isnan(one.rho):
                rho = Interval(one.rho, *(one.ci95 or (None, None)))
                found[source, covariate] = (rho, one.p_holm < _SIGNIFICANT)
    if not found:
        raise NothingToDrawError("its correlations with covariates are undefined")
    return found


def _read_fits(model: ModelResult, sources: set[str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for source in _SOURCES:
        fit = model.audit.covariates.regressions.get(f"centred_share_{source}")
        if source in sources and fit is not None and not math.isnan(fit.r2):
            told = f"R² = {tell_number(fit.r2)}"
            rows.append((model.label, name_term(source), "all together (regression)", told, ""))
    return rows


def _name(covariate: str) -> str:
    return COVARIATES[covariate].name if covariate in COVARIATES else name_term(covariate)


def _mark(clear: bool) -> str:
    return "yes" if clear else "no"
