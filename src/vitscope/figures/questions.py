"""The list of figures: some of all models together, some of a single model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vitscope.errors import UsageError
from vitscope.figures.anatomy import describe_anatomy
from vitscope.figures.contributions import (
    TOPS,
    Readout,
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
    describe_high_norm_grid,
    describe_high_norm_layers,
    describe_layer_similarity,
    describe_routes_by_block,
    describe_shares_by_depth,
)
from vitscope.figures.description import FigureData, NothingToDrawError, over_size
from vitscope.figures.differences import describe_remedies
from vitscope.figures.image_numbers import (
    describe_covariates,
    describe_interdependence,
    describe_patch_share,
)
from vitscope.figures.judged import describe_map_curves, describe_map_scores
from vitscope.figures.layers import describe_sources_by_layer
from vitscope.figures.pairs import describe_directions, describe_gram_ledger
from vitscope.figures.rendering import by_depth, clouds, rows
from vitscope.figures.rendering.by_size import draw_families_by_size, draw_terms_by_size
from vitscope.figures.rendering.matrices import draw_directions, draw_grid, draw_ledgers
from vitscope.figures.rendering.style import in_style
from vitscope.figures.rendering.tokens import draw_tokens
from vitscope.figures.saved import ModelResult, name_apart, slug, tell_apart
from vitscope.results.saved_result import SavedResult

Results = Sequence[ModelResult]
_MAIN_FAMILY = "DINOv2"


@dataclass(frozen=True)
class Drawing:
    """A matplotlib figure with its data."""

    figure: Figure
    data: FigureData  # what it shows
    name: str  # as `plot` takes it


Plan = tuple[str, Callable[[], Drawing]]
"""Name of a figure's files, and what draws it or raises NothingToDrawError."""


@dataclass(frozen=True)
class Question:
    """A figure that results may have."""

    describe: Callable[..., FigureData]  # returns what it shows, or raises NothingToDrawError
    render: Callable[[FigureData], Figure]
    of_one: bool = False  # whether it shows a single result
    kind: str = "audit"  # kind of the results it is about


FIGURES: Mapping[str, Question] = {
    "variance_share": Question(describe_variance_share, rows.draw_parts),
    "attention_mass": Question(over_size(describe_attention_mass), draw_terms_by_size),
    "norms": Question(over_size(describe_norms), draw_terms_by_size),
    "residual_cka": Question(over_size(describe_residual_cka), draw_terms_by_size),
    "restricted_cka": Question(over_size(describe_restricted_cka), draw_families_by_size),
    "patch_share": Question(describe_patch_share, clouds.draw_distributions),
    "layer_similarity": Question(describe_layer_similarity, by_depth.draw_by_depth),
    "sources_by_layer": Question(describe_sources_by_layer, by_depth.draw_sources_by_layer),
    "shares_by_depth": Question(describe_shares_by_depth, by_depth.draw_shares_by_depth),
    "routes_by_block": Question(describe_routes_by_block, by_depth.draw_routes_by_block),
    "high_norm_fraction": Question(describe_high_norm_fraction, by_depth.draw_by_depth),
    "interdependence": Question(describe_interdependence, clouds.draw_clouds),
    "anatomy": Question(describe_anatomy, draw_tokens, of_one=True),
    "gram_ledger": Question(describe_gram_ledger, draw_ledgers, of_one=True),
    "directions": Question(describe_directions, draw_directions, of_one=True),
    "covariates": Question(describe_covariates, rows.draw_correlations, of_one=True),
    "high_norm_layers": Question(describe_high_norm_layers, by_depth.draw_by_layer, of_one=True),
    "high_norm_grid": Question(describe_high_norm_grid, draw_grid, of_one=True),
    "one_shot": Question(over_size(describe_one_shot), draw_terms_by_size, kind="one-shot"),
    "map_scores": Question(describe_map_scores, rows.draw_map_scores, kind="judgement"),
    "map_curves": Question(
        describe_map_curves, by_depth.draw_map_curves, of_one=True, kind="judgement"
    ),
    "remedies": Question(describe_remedies, rows.draw_remedies, kind="remedies"),
}
"""By the name that `plot` takes."""
_BY_FAMILY = {
    "norms": ("fig5a_norms", "fig7_norms"),
    "layer_similarity": ("fig5b_layer_similarity", "fig9_layer_similarity"),
    "residual_cka": ("fig6_residual_cka", "fig8_residual_cka"),
}
"""Names of files of figures of the main family, and of the others."""
_FILES = {
    "patch_share": "fig2a_patch_share",
    "anatomy": "fig2b_anatomy",
    "restricted_cka": "fig3a_restricted_cka",
}
OF_ALL_MODELS, OF_EACH_MODEL = (
    {
        _FILES.get(name, name): name
        for name, question in FIGURES.items()
        if question.kind == "audit" and question.of_one == of_one and name not in _BY_FAMILY
    }
    for of_one in (False, True)
)
"""Other figures of audits, by file name."""


def plot(name: str, results: Sequence[SavedResult | str | Path], **settings: Any) -> Figure:
    """Draw one figure of one or several results.

    Args:
        name: One of `FIGURES`, "maps" or "heads_by_layer" of an explained image, or "judged_maps"
            of a judged one.
        results: Results, or their folders.
        **settings: Settings of the figure: `terms` for "norms", "residual_cka" and
            "restricted_cka"; `readout` for the last; `classifier`, `top` and `readout` for
            "one_shot"; `image` (its index in the first result) for "maps", "heads_by_layer" and
            "judged_maps"; `heads` for "maps".

    Returns:
        A matplotlib figure, which a notebook displays.

    Raises:
        UsageError: If there is no such figure or setting.
        NothingToDrawError: If the results have no numbers for it, or differ in what these mean.
    """
    return draw_figure(name, open_results(results), **settings).figure


def open_results(results: Sequence[SavedResult | str | Path]) -> list[ModelResult]:
    """Open results, given as objects or folders, under distinct names."""
    return tell_apart(list(map(_open, results)))


def _open(result: SavedResult | str | Path) -> ModelResult:
    if isinstance(result, SavedResult):
        return ModelResult(result)
    if isinstance(result, (str, Path)):
        return ModelResult(SavedResult.load(result))
    raise UsageError(
        f"a result was given as {type(result).__name__}: expected a result or a folder"
    )


def draw_figure(name: str, results: Results, **settings: Any) -> Drawing:
    """Draw one figure."""
    known = {**{key: one.describe for key, one in FIGURES.items()}, **_SHEETS}
    if name not in known:
        raise UsageError(f"figure {name!r}: expected one of {', '.join(known)}")
    taken = list(signature(known[name]).parameters)[1:]
    if unknown := [setting for setting in settings if setting not in taken]:
        raise UsageError(
            f"the figure {name} takes no {unknown[0]!r}: expected {', '.join(taken) or 'none'}"
        )
    if name in _SHEETS:
        return _SHEETS[name](results, **settings)
    question = FIGURES[name]
    if question.of_one and len(results) != 1:
        raise UsageError(f"the figure {name} shows one result: {len(results)} were given")
    data = question.describe(results, **settings)
    with in_style():
        return Drawing(question.render(data.in_unit()), data, name)


def draw_maps(results: Results, image: int = 0, *, heads: bool = False) -> Drawing:
    """One image's maps, a row for each model that explains it (Fig. 4)."""
    explanations = _take(results, "explanation", image)
    return draw_image(explanations, explanations[0].explanation.images[image].image_id, heads=heads)


def draw_heads_by_layer(results: Results, image: int = 0) -> Drawing:
    """Attention of every head in every layer of one image, by the first model that explains it."""
    first = _take(results, "explanation", image)[0]
    return draw_heads(first, first.explanation.images[image].image_id)


def _take(results: Results, kind: str, image: int) -> Results:
    """Results of a kind, of which the first has such an image."""
    found = [result for result in results if result.kind == kind]
    if not found:
        raise NothingToDrawError(f"no result of the kind {kind!r}")
    first = found[0]
    count = len((first.judgement if kind == "judgement" else first.explanation).images)
    if not count:
        raise NothingToDrawError("no image was kept with its maps (judge with gallery=12)")
    if not 0 <= image < count:
        raise UsageError(f"image {image} does not exist: expected 0 to {count - 1}")
    return found


def draw_heads(result: ModelResult, image_id: str) -> Drawing:
    """Attention of every head in every layer of the image with an identity."""
    # Reading maps needs torch.
    from vitscope.figures.explained import describe_heads_by_layer
    from vitscope.figures.rendering.maps import plot_heads_by_layer
    from vitscope.results.explanation import Explanation

    explanation = Explanation(result.folder)
    if image_id not in explanation.image_ids:
        raise NothingToDrawError("no result explains this image")
    one = explanation.read_image(explanation.image_ids.index(image_id))
    data = describe_heads_by_layer(result, one)
    return Drawing(plot_heads_by_layer(result, one.path, one), data, "heads_by_layer")


def draw_image(explanations: Results, image_id: str, *, heads: bool = False) -> Drawing:
    """Maps of the image with an identity."""
    # Reading maps needs torch.
    from vitscope.figures.explained import describe_maps
    from vitscope.figures.rendering.maps import plot_explanations
    from vitscope.results.explanation import Explanation

    data = describe_maps(explanations, image_id, heads=heads)
    opened = [Explanation(result.folder) for result in data.shown]
    return Drawing(plot_explanations(opened, image_id, heads=heads), data, "maps")


def draw_judged_maps(results: Results, image: int = 0) -> Drawing:
    """One kept image of a judgement: its maps with the skill of each, the best-judged first."""
    judged = _take(results, "judgement", image)[0]
    # Reading maps needs torch.
    from vitscope.figures.explained import describe_judged_maps
    from vitscope.figures.rendering.maps import plot_judged

    return Drawing(plot_judged(judged, image), describe_judged_maps(judged, image), "judged_maps")


_SHEETS: Mapping[str, Callable[..., Drawing]] = {
    "maps": draw_maps,
    "heads_by_layer": draw_heads_by_layer,
    "judged_maps": draw_judged_maps,
}
"""Figures of one image, by the name that `plot` takes."""


def plan_figures(results: Results, readout: Readout = "attention") -> list[Plan]:
    """Every figure that the results could have."""
    plans: list[Plan] = [
        *_plan_audits(results, readout),
        *_plan_one_shot(results, readout),
        *_plan_maps(results),
        *_plan_judgements(results),
        ("remedies", partial(draw_figure, "remedies", results)),
    ]
    return sorted(plans, key=lambda plan: (not plan[0].startswith("fig"), plan[0]))


def _plan_audits(results: Results, readout: Readout) -> Iterator[Plan]:
    audits = [result for result in results if result.kind == "audit"]
    for name, figure in OF_ALL_MODELS.items():
        settings = {"readout": readout} if figure == "restricted_cka" else {}
        yield name, partial(draw_figure, figure, audits, **settings)
    main = [result for result in audits if result.family == _MAIN_FAMILY]
    others = [result for result in audits if result.family != _MAIN_FAMILY]
    for figure, (of_main, of_others) in _BY_FAMILY.items():
        without = f"no audit of {_MAIN_FAMILY} without registers among the results"
        yield of_main, partial(_draw_some, figure, main, without)
        another = f"no audit of another family than {_MAIN_FAMILY} among the results"
        yield of_others, partial(_draw_some, figure, others, another)
    named = _name_each(audits)
    for name, figure in OF_EACH_MODEL.items():
        if not audits:
            yield name, partial(_draw_some, figure, [], "no result of the kind 'audit'")
        for own, result in named.items():
            yield f"{name}__{own}", partial(draw_figure, figure, [result])


def _plan_one_shot(results: Results, readout: Readout) -> Iterator[Plan]:
    classifiers = list_classifiers(results)
    if not classifiers:
        yield "fig3b_one_shot", partial(draw_figure, "one_shot", [])
    for classifier in classifiers:
        for top in TOPS:
            name = f"fig3b_one_shot_{slug(classifier)}_{top}"
            settings = {"classifier": classifier, "top": top, "readout": readout}
            yield name, partial(draw_figure, "one_shot", results, **settings)


def _plan_maps(results: Results) -> Iterator[Plan]:
    explanations = [result for result in results if result.kind == "explanation"]
    ids = (image.image_id for one in explanations for image in one.explanation.images)
    images = list(dict.fromkeys(ids))
    if not images:
        yield "fig4_maps", partial(draw_figure, "maps", [])
    families = dict.fromkeys(result.family for result in explanations)
    for number, image_id in enumerate(images):
        # One sheet per family, or sheets would be too tall.
        for family in families:
            rows = [result for result in explanations if result.family == family]
            name = f"fig4_maps_{number:03d}__{slug(family)}"
            yield name, partial(draw_image, rows, image_id)


def _plan_judgements(results: Results) -> Iterator[Plan]:
    judgements = [result for result in results if result.kind == "judgement"]
    yield "map_scores", partial(draw_figure, "map_scores", judgements)
    for own, result in _name_each(judgements).items():
        yield f"map_curves__{own}", partial(draw_figure, "map_curves", [result])
        for image in range(len(result.judgement.images)):
            yield f"judged_maps_{image:03d}__{own}", partial(draw_judged_maps, [result], image)


def _name_each(results: Results) -> dict[str, ModelResult]:
    named: dict[str, ModelResult] = {}
    for result in results:
        named[name_apart(slug(result.label), named)] = result
    return named


def _draw_some(figure: str, results: Results, reason: str) -> Drawing:
    if not results:
        raise NothingToDrawError(reason)
    return draw_figure(figure, results)
