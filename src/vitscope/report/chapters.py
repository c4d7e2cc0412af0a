"""The figures of the report: the question that each answers, and how it is shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

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
from vitscope.figures.depths import describe_high_norm_fraction, describe_layer_similarity
from vitscope.figures.description import FigureData, NothingToDrawError
from vitscope.figures.differences import describe_differences, describe_remedies
from vitscope.figures.image_numbers import describe_share_covariates
from vitscope.figures.judged import describe_map_curves, describe_map_scores
from vitscope.figures.layers import describe_sources_by_layer
from vitscope.figures.saved import ModelResult, printable
from vitscope.figures.traced import describe_routes_by_block, describe_shares_by_depth
from vitscope.report.tables import (
    tabulate_correlations,
    tabulate_depths,
    tabulate_differences,
    tabulate_map_curves,
    tabulate_map_scores,
    tabulate_remedies,
    tabulate_routes_by_block,
    tabulate_shares_by_depth,
    tabulate_sources_by_layer,
    tabulate_terms,
    tabulate_tokens,
)
from vitscope.report.vega import (
    draw_correlations,
    draw_depths,
    draw_map_curves,
    draw_norms_of_tokens,
    draw_routes_by_block,
    draw_shares_by_depth,
    draw_terms,
)
from vitscope.report.vega_layers import draw_sources_by_layer
from vitscope.report.vega_parts import Chart
from vitscope.report.vega_rows import draw_differences, draw_map_scores, draw_remedies
from vitscope.results.result_text import TextTable
from vitscope.results.vocabulary import SOURCES

Results = Sequence[ModelResult]


@dataclass(frozen=True)
class Mark:
    """How numbers are shown."""

    draw: Callable[[FigureData], list[Chart]]
    tabulate: Callable[[FigureData], TextTable]  # makes the table below them


_TERMS = Mark(draw_terms, tabulate_terms)
_DEPTHS = Mark(draw_depths, tabulate_depths)
_TOKENS = Mark(draw_norms_of_tokens, tabulate_tokens)
_CORRELATIONS = Mark(draw_correlations, tabulate_correlations)


@dataclass(frozen=True)
class Entry:
    """A figure that the report may have."""

    key: str  # its anchor in the page
    title: str  # the question that it answers
    meaning: str  # what it shows, in one plain line
    definitions: tuple[str, ...]  # keys of the definitions it needs
    describe: Callable[[Results], FigureData]  # returns what it shows, or raises NothingToDrawError
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


def list_sources(results: Results) -> list[Entry]:
    """Figures of where the output comes from, with one for each classifier."""
    return [*_SOURCES, *map(_ask_classes, enumerate(list_classifiers(results)))]


def _ask_classes(numbered: tuple[int, str]) -> Entry:
    number, classifier = numbered
    return Entry(
        key=f"one-shot-{number}",
        title=f"Do the classes survive? ({printable(classifier)} classifier)",
        meaning="A classifier learns from the full outputs of one image per class and is tested on "
        "the contribution of one source alone.",
        definitions=("one-shot", "terms"),
        describe=partial(describe_one_shot, classifier=classifier, top="top1"),
        mark=_TERMS,
    )


_SOURCES = (
    Entry(
        key="variance-share",
        title="Where does the output come from?",
        meaning="The part of the output’s variance over images that each source contributes. The "
        "parts of a model add up to 100 %; one below zero takes away from the others.",
        definitions=("variance-share", "terms", "interval"),
        describe=describe_variance_share,
        mark=_TERMS,
    ),
    Entry(
        key="attention",
        title="Where does [CLS] look?",
        meaning="How much of the [CLS] token’s attention goes to each kind of token. A map can "
        "only show the patches’ part.",
        definitions=("attention-mass", "terms"),
        describe=describe_attention_mass,
        mark=_TERMS,
    ),
    Entry(
        key="norms",
        title="How much does each source add?",
        meaning="The mean length of the vector that each source adds to [CLS]. What is the same "
        "for every image counts here, but not in the variance share.",
        definitions=("contribution-norm", "terms"),
        describe=partial(describe_norms, terms=(*SOURCES, "bias")),
        mark=_TERMS,
    ),
    Entry(
        key="cka-residual",
        title="Would one source suffice?",
        meaning="How similarly the residual stream r and one source’s contribution arrange the "
        "images: 1 is the same arrangement, 0 an unrelated one.",
        definitions=("cka", "readouts", "interval"),
        describe=partial(describe_residual_cka, terms=SOURCES),
        mark=_TERMS,
    ),
    Entry(
        key="cka-attention",
        title="Would one kind of token suffice?",
        meaning="How similarly the attention branch’s output t and one source’s contribution "
        "arrange the images: 1 is the same arrangement, 0 an unrelated one.",
        definitions=("cka", "readouts", "interval"),
        describe=partial(describe_restricted_cka, terms=SOURCES),
        mark=_TERMS,
    ),
)
_LAYERS = (
    Entry(
        key="layer-similarity",
        title="When is the output made?",
        meaning="How similar [CLS] after each layer is to the final one. A jump at the last layer "
        "means that the output is gathered there; a slow rise, that it was built along the way.",
        definitions=("layer-similarity",),
        describe=describe_layer_similarity,
        mark=_DEPTHS,
    ),
    Entry(
        key="high-norm",
        title="Are patches used as storage?",
        meaning="The part of patch tokens with a norm far above all others, by depth. Such tokens "
        "no longer describe their place in the image.",
        definitions=("high-norm",),
        describe=describe_high_norm_fraction,
        mark=_DEPTHS,
    ),
)
_AUDITED = (
    Entry(
        key="sources-by-layer",
        title="At which layer does it break?",
        meaning="What each source contributes to [CLS] at each audited layer, and how much "
        "attention it gets. The symbols above are the verdicts of the layers.",
        definitions=("verdict", "variance-share", "attention-mass", "cka", "terms", "interval"),
        describe=describe_sources_by_layer,
        mark=Mark(draw_sources_by_layer, tabulate_sources_by_layer),
    ),
)
_TRACED = (
    Entry(
        key="shares-by-depth",
        title="From which depth on does the output no longer live in the patches?",
        meaning="The output is followed back through every block. At each depth the lines show "
        "which tokens hold what will become the output; at depth 0 it is all in the patches.",
        definitions=("traced", "interval"),
        describe=describe_shares_by_depth,
        mark=Mark(draw_shares_by_depth, tabulate_shares_by_depth),
    ),
    Entry(
        key="routes-by-block",
        title="Is it what is read, or where it is read?",
        meaning="What each block’s attention passed on, by what tokens hold (values) and by "
        "which tokens are looked at (routing). A map of attention weights shows where alone.",
        definitions=("routes", "traced", "interval"),
        describe=describe_routes_by_block,
        mark=Mark(draw_routes_by_block, tabulate_routes_by_block),
    ),
)


def list_layers(results: Results) -> list[Entry]:
    """Figures over depth; of several audited layers and of traced images if there are any."""
    audits = [result.audit for result in results if result.kind == "audit"]
    audited = any(len(audit.layers) > 1 for audit in audits)
    traced = any(audit.trace is not None for audit in audits)
    return [*(_AUDITED if audited else ()), *_LAYERS, *(_TRACED if traced else ())]


TOKENS = (
    Entry(
        key="anatomy",
        title="What do the special tokens hold?",
        meaning="The norm of each special token at the input of the audited block, compared with "
        "that of patches. A token that is far longer than all others and the same for every image "
        "does not describe the image.",
        definitions=("anatomy", "high-norm"),
        describe=describe_anatomy,
        mark=_TOKENS,
    ),
)
IMAGES = (
    Entry(
        key="covariates",
        title="Which images rely on which source?",
        meaning="Whether images that rely more on a source have something visible in common: to "
        "the right of zero, the share of the source rises with it.",
        definitions=("covariates", "rank-correlation", "centred-share"),
        describe=describe_share_covariates,
        mark=_CORRELATIONS,
    ),
)

COMPARED = (
    Entry(
        key="differences",
        title="What differs on the same images?",
        meaning="Each result less the one that its chart names, number by number: to the right of "
        "zero, the number is higher. An interval that spans zero may be no difference.",
        definitions=("paired", "variance-share", "attention-mass", "cka", "cosine", "interval"),
        describe=describe_differences,
        mark=Mark(draw_differences, tabulate_differences),
    ),
)

JUDGED = (
    Entry(
        key="map-scores",
        title="Which map shows what the output depends on?",
        meaning="Patches are removed in the order of each map, and the output is measured. A map "
        "at 0 orders patches no better than chance; at 1 it is as good as removing every patch "
        "once to see what it does.",
        definitions=("skill", "removals", "interval"),
        describe=describe_map_scores,
        mark=Mark(draw_map_scores, tabulate_map_scores),
    ),
    Entry(
        key="map-curves",
        title="How fast is the output lost, and regained?",
        meaning="What is left of the output while patches are removed, and while they are added "
        "back, the most important of each map first. Point at a line to see which map it is.",
        definitions=("skill", "removals"),
        describe=describe_map_curves,
        mark=Mark(draw_map_curves, tabulate_map_curves),
    ),
)

REMEDIES = (
    Entry(
        key="changes",
        title="Cleaner, truer, and at what price?",
        meaning="What each edit changed, to the right of 0 if it rose. A map is cleaner if fewer "
        "images have high-norm patches; it is truer if the patches’ share rises. The price is how "
        "far the global feature moved.",
        definitions=("edits", "high-norm-images", "variance-share", "cka", "price"),
        describe=describe_remedies,
        mark=Mark(draw_remedies, tabulate_remedies),
    ),
)
