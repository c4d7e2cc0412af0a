"""Which figures there are: one of all models for each question, and one a model for others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vitscope.figures.anatomy import plot_anatomy
from vitscope.figures.cka import plot_residual_cka, plot_restricted_cka
from vitscope.figures.covariates import plot_covariates
from vitscope.figures.directions import plot_directions
from vitscope.figures.drawing import Drawing, NothingToDrawError
from vitscope.figures.gram import plot_gram_ledger
from vitscope.figures.high_norm_grid import plot_high_norm_grid
from vitscope.figures.interdependence import plot_interdependence
from vitscope.figures.layers import (
    plot_high_norm_fraction,
    plot_high_norm_layers,
    plot_layer_similarity,
)
from vitscope.figures.map_figures import list_images, plot_maps
from vitscope.figures.norms import plot_norms
from vitscope.figures.one_shot import TOPS, list_classifiers, plot_one_shot
from vitscope.figures.patch_share import plot_patch_share
from vitscope.figures.readouts import Readout
from vitscope.figures.saved import ModelResult, slug
from vitscope.figures.variance_share import plot_variance_share

Results = Sequence[ModelResult]
_MAIN_FAMILY = "DINOv2"

OF_ALL_MODELS: Mapping[str, Callable[[Results], Drawing]] = {
    "fig2a_patch_share": plot_patch_share,
    "fig3a_restricted_cka": plot_restricted_cka,
    "variance_share": plot_variance_share,
    "high_norm_fraction": plot_high_norm_fraction,
    "interdependence": plot_interdependence,
}
OF_THE_MAIN_FAMILY: Mapping[str, Callable[[Results], Drawing]] = {
    "fig5a_norms": plot_norms,
    "fig5b_layer_similarity": plot_layer_similarity,
    "fig6_residual_cka": plot_residual_cka,
}
OF_THE_OTHER_FAMILIES: Mapping[str, Callable[[Results], Drawing]] = {
    "fig7_norms": plot_norms,
    "fig8_residual_cka": plot_residual_cka,
    "fig9_layer_similarity": plot_layer_similarity,
}
OF_EACH_MODEL: Mapping[str, Callable[[ModelResult], Drawing]] = {
    "fig2b_anatomy": plot_anatomy,
    "gram_ledger": plot_gram_ledger,
    "directions": plot_directions,
    "covariates": plot_covariates,
    "high_norm_layers": plot_high_norm_layers,
    "high_norm_grid": plot_high_norm_grid,
}


@dataclass(frozen=True)
class PlannedFigure:
    """A figure that is to be drawn.

    Attributes:
        name: Of its files.
        draw: Draws it, or raises NothingToDrawError.
    """

    name: str
    draw: Callable[[], Drawing]


def plan_figures(results: Results, readout: Readout = "attention") -> list[PlannedFigure]:
    """Every figure that the results could have."""
    plans = [
        *_plan_audits(results, readout),
        *_plan_one_shot(results, readout),
        *_plan_maps(results),
    ]
    return sorted(plans, key=lambda plan: (not plan.name.startswith("fig"), plan.name))


def _plan_audits(results: Results, readout: Readout) -> Iterator[PlannedFigure]:
    audits = [result for result in results if result.kind == "audit"]
    main = [result for result in audits if result.family == _MAIN_FAMILY]
    others = [result for result in audits if result.family != _MAIN_FAMILY]
    of_all = dict(OF_ALL_MODELS)
    of_all["fig3a_restricted_cka"] = partial(plot_restricted_cka, readout=readout)
    for figures, chosen, whose in (
        (of_all, audits, "no audit"),
        (OF_THE_MAIN_FAMILY, main, f"no audit of {_MAIN_FAMILY} without registers"),
        (OF_THE_OTHER_FAMILIES, others, f"no audit of another family than {_MAIN_FAMILY}"),
    ):
        for name, draw in figures.items():
            yield PlannedFigure(name, partial(_draw_some, draw, chosen, whose))
    names = _name_each(audits)
    for name, draw_one in OF_EACH_MODEL.items():
        if not audits:
            yield PlannedFigure(name, partial(_refuse, "no audit among the results"))
        for result in audits:
            yield PlannedFigure(f"{name}__{names[result.folder]}", partial(draw_one, result))


def _plan_one_shot(results: Results, readout: Readout) -> Iterator[PlannedFigure]:
    classifiers = list_classifiers(results)
    if not classifiers:
        yield PlannedFigure("fig3b_one_shot", partial(_refuse, "no one-shot result among them"))
    for classifier in classifiers:
        for top in TOPS:
            name = f"fig3b_one_shot_{slug(classifier)}_{top}"
            yield PlannedFigure(name, partial(plot_one_shot, results, classifier, top, readout))


def _plan_maps(results: Results) -> Iterator[PlannedFigure]:
    explanations = [result for result in results if result.kind == "explanation"]
    images = list_images(explanations)
    if not images:
        yield PlannedFigure("fig4_maps", partial(_refuse, "no explained image among the results"))
    families = dict.fromkeys(result.family for result in explanations)
    for number, image_id in enumerate(images):
        # A sheet a family: a row for every model of all families would be as tall as a tower.
        for family in families:
            rows = [result for result in explanations if result.family == family]
            name = f"fig4_maps_{number:03d}__{slug(family)}"
            yield PlannedFigure(name, partial(plot_maps, rows, image_id))


def _draw_some(draw: Callable[[Results], Drawing], results: Results, whose: str) -> Drawing:
    if not results:
        raise NothingToDrawError(f"{whose} among the results")
    return draw(results)


def _refuse(reason: str) -> Drawing:
    raise NothingToDrawError(reason)


def _name_each(results: Results) -> dict[Path, str]:
    names: dict[Path, str] = {}
    for result in results:
        stem = name = slug(result.label)
        taken = {other.casefold() for other in names.values()}
        number = 2
        while name.casefold() in taken:
            name, number = f"{stem}-{number}", number + 1
        names[result.folder] = name
    return names
