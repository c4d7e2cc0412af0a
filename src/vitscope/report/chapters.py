"""The figures of the report: the question that each answers, and how it is shown."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
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
from vitscope.report import tables, vega, vega_layers, vega_rows
from vitscope.report.vega_parts import Chart
from vitscope.results.result_text import TextTable
from vitscope.results.vocabulary import SOURCES

Results = Sequence[ModelResult]
Describe = Callable[[Results], FigureData]


@dataclass(frozen=True)
class Mark:
    """How numbers are shown."""

    draw: Callable[[FigureData], list[Chart]]
    tabulate: Callable[[FigureData], TextTable]  # makes the table below them


_TERMS = Mark(vega.draw_terms, tables.tabulate_terms)
_DEPTHS = Mark(vega.draw_depths, tables.tabulate_depths)


@dataclass(frozen=True)
class Entry:
    """A figure that the report may have."""

    key: str  # its anchor in the page
    title: str  # the question that it answers
    meaning: str  # what it shows, in one plain line
    definitions: Sequence[str]  # keys of the definitions it needs
    describe: Describe  # returns what it shows, or raises NothingToDrawError
    mark: Mark


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report, made from results."""

    entry: Entry
    data: FigureData | None = None  # what it shows; None if there is nothing to show
    missing: str = ""  # why there is nothing to show; empty otherwise

    @classmethod
    def make(cls, entry: Entry, results: Results) -> "ReportFigure":
        """Make the figure, or give the reason why there is none."""
        try:
            return cls(entry, entry.describe(results))
        except NothingToDrawError as reason:
            return cls(entry, missing=str(reason))

    @cached_property
    def charts(self) -> list[Chart]:
        """Its charts."""
        return [] if self.data is None else self.entry.mark.draw(self.data)

    @property
    def table(self) -> TextTable | None:
        """Its numbers."""
        return None if self.data is None else self.entry.mark.tabulate(self.data)


@cache
def _read_words() -> dict[str, dict[str, Any]]:
    text = files("vitscope.report").joinpath("figures.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _ask(key: str, describe: Describe, mark: Mark) -> Entry:
    return Entry(key=key, describe=describe, mark=mark, **_read_words()[key])


def list_sources(results: Results) -> list[Entry]:
    """Figures of where the output comes from, with one for each classifier."""
    return [*_SOURCES, *map(_ask_classes, enumerate(list_classifiers(results)))]


def _ask_classes(numbered: tuple[int, str]) -> Entry:
    number, classifier = numbered
    asked = partial(describe_one_shot, classifier=classifier, top="top1")
    entry = _ask("one-shot", asked, _TERMS)
    title = entry.title.format(classifier=printable(classifier))
    return replace(entry, key=f"one-shot-{number}", title=title)


_SOURCES = (
    _ask("variance-share", describe_variance_share, _TERMS),
    _ask("attention", describe_attention_mass, _TERMS),
    _ask("norms", partial(describe_norms, terms=(*SOURCES, "bias")), _TERMS),
    _ask("cka-residual", partial(describe_residual_cka, terms=SOURCES), _TERMS),
    _ask("cka-attention", partial(describe_restricted_cka, terms=SOURCES), _TERMS),
)
_LAYERS = (
    _ask("layer-similarity", describe_layer_similarity, _DEPTHS),
    _ask("high-norm", describe_high_norm_fraction, _DEPTHS),
)
_AUDITED = (
    _ask(
        "sources-by-layer",
        describe_sources_by_layer,
        Mark(vega_layers.draw_sources_by_layer, tables.tabulate_sources_by_layer),
    ),
)
_TRACED = (
    _ask(
        "shares-by-depth",
        describe_shares_by_depth,
        Mark(vega.draw_shares_by_depth, tables.tabulate_shares_by_depth),
    ),
    _ask(
        "routes-by-block",
        describe_routes_by_block,
        Mark(vega.draw_routes_by_block, tables.tabulate_routes_by_block),
    ),
)


def list_layers(results: Results) -> list[Entry]:
    """Figures over depth; of several audited layers and of traced images if there are any."""
    audits = [result.audit for result in results if result.kind == "audit"]
    audited = any(len(audit.layers) > 1 for audit in audits)
    traced = any(audit.trace is not None for audit in audits)
    return [*(_AUDITED if audited else ()), *_LAYERS, *(_TRACED if traced else ())]


TOKENS = (
    _ask("anatomy", describe_anatomy, Mark(vega.draw_norms_of_tokens, tables.tabulate_tokens)),
)
IMAGES = (
    _ask(
        "covariates",
        describe_share_covariates,
        Mark(vega.draw_correlations, tables.tabulate_correlations),
    ),
)
COMPARED = (
    _ask(
        "differences",
        describe_differences,
        Mark(vega_rows.draw_differences, tables.tabulate_differences),
    ),
)
JUDGED = (
    _ask(
        "map-scores",
        describe_map_scores,
        Mark(vega_rows.draw_map_scores, tables.tabulate_map_scores),
    ),
    _ask("map-curves", describe_map_curves, Mark(vega.draw_map_curves, tables.tabulate_map_curves)),
)
REMEDIES = (
    _ask("changes", describe_remedies, Mark(vega_rows.draw_remedies, tables.tabulate_remedies)),
)
