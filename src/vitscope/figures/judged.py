"""Judged maps: the skill of each, and its curves."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from vitscope.figures.description import FigureData, NothingToDrawError, Point, select
from vitscope.figures.intervals import Interval, read_estimate, span
from vitscope.figures.saved import ModelResult
from vitscope.results.choices import MAP_LAYER, REMOVAL, TARGET
from vitscope.results.judgement_text import find_best, name_map, order_maps
from vitscope.results.schema import JudgementSummary
from vitscope.results.schema_maps import JudgedImage

CURVES = {"deletion": "patches removed", "insertion": "patches present"}
"""What is along a curve, the most important patches first."""


def describe_map_scores(results: Iterable[ModelResult]) -> FigureData:
    """Skill of each map, the best first; a panel for each removal that all results share."""
    selection = select(
        results,
        lambda one: one.judgement,
        kind="judgement",
        choices=(TARGET, REMOVAL, MAP_LAYER),
    )
    of_each = [summary.removals for _, summary in selection.found]
    removals = [name for name in of_each[0] if all(name in each for each in of_each)]
    points = [
        Point(model=model, panel=removal, term=name, x=name_map(summary, name), number=number)
        for model, summary in selection.found
        for removal in removals
        for name, scores in summary.removals[removal].items()
        if name not in _ENDS
        and (number := read_estimate(scores.scores["skill"], model.num_images)) is not None
    ]
    left = ", ".join(sorted({name for each in of_each for name in each} - {*removals}))
    return selection.describe(
        _sort(points),
        (
            f"{selection.n}. Skill: 0 is random orders, 1 the order by single "
            "deletions (the oracle). Bar: 95 % interval. Grey: baselines, which do not see the "
            "model.",
            *([f"Left out, since not every result has it: removal {left}."] if left else []),
        ),
        axis="skill",
        limits=span([point.number for point in points], 0.0, 1.0),
        titles={removal: f"removal {removal}" for removal in removals},
    )


_ENDS = ("oracle", "random")
"""Baselines whose skill is 1 and 0 by definition."""


def _sort(points: Sequence[Point]) -> list[Point]:
    # By the mean skill over models with the first removal.
    first = points[0].panel if points else ""
    skills: dict[str, list[float]] = {}
    for point in points:
        skills.setdefault(point.term, [])
        if point.panel == first:
            skills[point.term].append(point.number.value)
    means = {name: np.mean(found) if found else -np.inf for name, found in skills.items()}
    return sorted(points, key=lambda point: -means[point.term])


def describe_map_curves(results: Iterable[ModelResult]) -> FigureData:
    """Target over the fraction of patches removed and added, of every map."""
    selection = select(results, lambda one: one.judgement, kind="judgement")
    points = [
        Point(
            model=model,
            panel=f"{removal} {curve}",
            term=name,
            x=step / (len(values) - 1),
            number=Interval(value, n=model.num_images),
        )
        for model, summary in selection.found
        for removal in summary.removals
        for curve in CURVES
        for name in reversed(order_maps(summary, removal))  # the best is drawn last
        for values in [getattr(summary.removals[removal][name], curve)]
        for step, value in enumerate(values)
        if value == value
    ]
    if not points:
        raise NothingToDrawError("no curve is defined")
    told = [f"target {summary.target}" for _, summary in selection.found]
    if len({*told}) > 1:
        told = [f"{model.label}: {one}" for model, one in zip(selection.results, told, strict=True)]
    return selection.describe(
        points,
        (
            f"{selection.n}. s is what maps explain ({'; '.join(dict.fromkeys(told))}), mean over "
            "images. Deletion: the most important patches are removed first, so that s falls early "
            "if a map is faithful. Insertion: they are added first, so that it rises early.",
        ),
        axis="s",
        titles={point.panel: ": ".join(point.panel.rsplit(" ", 1)) for point in points},
        limits=span([point.number for point in points], 0.0, 1.0),
    )


Role = Literal["best", "attention", "oracle", "random", "other"]
"""What a map is for the reader of a chart with many."""


def find_role(point: Point) -> Role:
    """The role of a point's map."""
    if point.term == find_best(point.model.judgement):
        return "best"
    roles: tuple[Role, ...] = ("attention", "oracle", "random")
    return next((role for role in roles if role == point.term), "other")


def name_role(point: Point) -> str:
    """The role of a point's map, in the legend."""
    role, summary = find_role(point), point.model.judgement
    title, place = name_map(summary, point.term), "best" if summary.verdict.best else "first"
    return {"best": f"{title} ({place})", "other": "other maps"}.get(role, title)


def order_kept(summary: JudgementSummary, image: JudgedImage) -> list[str]:
    """Names of a kept image's maps, that of the best-judged map first."""
    best = find_best(summary)
    kept = [name for name in order_maps(summary) if name in image.maps]
    return sorted(kept, key=lambda name: name != best)
