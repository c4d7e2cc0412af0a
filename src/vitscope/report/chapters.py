"""The figures of the report: the question that each answers, and how it is shown."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.resources import files
from typing import Any

from vitscope.figures.anatomy import describe_anatomy
from vitscope.figures.contributions import (
    describe_attention_mass,
    describe_norms,
    describe_one_shot,
    describe_residual_cka,
    describe_restricted_cka,
    describe_variance_share,
    list_classifiers,
)
from vitscope.figures.depths import (
    describe_high_norm_fraction,
    describe_layer_similarity,
    describe_routes_by_block,
    describe_shares_by_depth,
)
from vitscope.figures.description import FigureData, NothingToDrawError
from vitscope.figures.differences import describe_differences, describe_remedies
from vitscope.figures.image_numbers import describe_share_covariates
from vitscope.figures.judged import describe_map_curves, describe_map_scores
from vitscope.figures.layers import describe_sources_by_layer
from vitscope.figures.saved import ModelResult, printable
from vitscope.report import tables, vega, vega_rows
from vitscope.report.vega_parts import Chart
from vitscope.results.result_text import TextTable
from vitscope.results.vocabulary import SOURCES

Results = Sequence[ModelResult]


@dataclass(frozen=True)
class Figure:
    """A figure that the report may have."""

    describe: Callable[[Results], FigureData]  # what it shows, or raises NothingToDrawError
    draw: Callable[[FigureData], list[Chart]]
    tabulate: Callable[[FigureData], TextTable]  # the numbers, below the charts


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report, made from results."""

    key: str  # its anchor in the page
    title: str  # the question that it answers
    meaning: str  # what it shows, in one plain line
    definitions: Sequence[str]  # keys of the definitions it needs
    charts: Sequence[Chart] = ()
    table: TextTable | None = None
    data: FigureData | None = None  # what it shows; None if there is nothing to show
    missing: str = ""  # why there is nothing to show; empty otherwise


def _show_terms(describe: Callable[..., FigureData], **how: Any) -> Figure:
    return Figure(partial(describe, **how), vega.draw_terms, tables.tabulate_terms)


_DEPTHS = (vega.draw_depths, partial(tables.tabulate_along, along="depth"))
CHAPTERS: Mapping[str, Mapping[str, Figure]] = {
    "compared": {
        "differences": Figure(
            describe_differences, vega_rows.draw_differences, tables.tabulate_differences
        ),
    },
    "judged": {
        "map-scores": Figure(
            describe_map_scores, vega_rows.draw_map_scores, tables.tabulate_map_scores
        ),
        "map-curves": Figure(describe_map_curves, vega.draw_map_curves, tables.tabulate_map_curves),
    },
    "remedies": {
        "changes": Figure(describe_remedies, vega_rows.draw_remedies, tables.tabulate_remedies),
    },
    "sources": {
        "variance-share": _show_terms(describe_variance_share),
        "attention": _show_terms(describe_attention_mass),
        "norms": _show_terms(describe_norms, terms=(*SOURCES, "bias")),
        "cka-residual": _show_terms(describe_residual_cka, terms=SOURCES),
        "cka-attention": _show_terms(describe_restricted_cka, terms=SOURCES),
    },
    "layers": {
        "sources-by-layer": Figure(
            describe_sources_by_layer,
            vega.draw_sources_by_layer,
            tables.tabulate_sources_by_layer,
        ),
        "layer-similarity": Figure(describe_layer_similarity, *_DEPTHS),
        "high-norm": Figure(describe_high_norm_fraction, *_DEPTHS),
        "shares-by-depth": Figure(
            describe_shares_by_depth,
            partial(vega.draw_tokens_along, along=vega.DEPTH),
            partial(tables.tabulate_tokens_along, along="depth"),
        ),
        "routes-by-block": Figure(
            describe_routes_by_block,
            partial(vega.draw_tokens_along, along="block"),
            partial(tables.tabulate_tokens_along, along="block"),
        ),
    },
    "tokens": {
        "anatomy": Figure(describe_anatomy, vega_rows.draw_norms_of_tokens, tables.tabulate_tokens),
    },
    "images": {
        "covariates": Figure(
            describe_share_covariates, vega_rows.draw_correlations, tables.tabulate_correlations
        ),
    },
}


def make_chapter(chapter: str, results: Results) -> list[ReportFigure]:
    """The figures of a chapter, without those that need several layers, or a trace, if none has."""
    audits = [result.audit for result in results if result.kind == "audit"]
    left_out = set()
    if all(len(audit.layers) == 1 for audit in audits):
        left_out.add("sources-by-layer")
    if all(audit.trace is None for audit in audits):
        left_out |= {"shares-by-depth", "routes-by-block"}
    found = CHAPTERS[chapter].items()
    figures = [_make_figure(key, one, results) for key, one in found if key not in left_out]
    if chapter == "images" and audits:
        figures.insert(0, _show_distributions(results))
    if chapter == "sources":
        figures += map(partial(_make_one_shot, results), enumerate(list_classifiers(results)))
    if not audits:  # what only audits have is not missed
        figures = [one for one in figures if not one.missing.startswith("no result of the kind")]
    return figures


def _show_distributions(results: Results) -> ReportFigure:
    charts = [vega.draw_histogram(one.label) for one in results if one.kind == "audit"]
    return ReportFigure("distribution", **read_words("figures.toml")["distribution"], charts=charts)


def _make_one_shot(results: Results, numbered: tuple[int, str]) -> ReportFigure:
    number, classifier = numbered
    asked = _show_terms(describe_one_shot, classifier=classifier, top="top1")
    figure = _make_figure("one-shot", asked, results)
    title = figure.title.format(classifier=printable(classifier))
    return replace(figure, key=f"one-shot-{number}", title=title)


def _make_figure(key: str, figure: Figure, results: Results) -> ReportFigure:
    made = ReportFigure(key, **read_words("figures.toml")[key])
    try:
        data = figure.describe(results)
    except NothingToDrawError as reason:
        return replace(made, missing=str(reason))
    return replace(made, data=data, charts=figure.draw(data), table=figure.tabulate(data))


@cache
def read_words(name: str) -> dict[str, dict[str, Any]]:
    """A file of titles and texts, by anchor in the order of the page."""
    text = files("vitscope.report").joinpath(name).read_text(encoding="utf-8")
    return tomllib.loads(text)
