"""The maps of an explained or judged image, patch by patch (Fig. 4)."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from vitscope.figures.description import FigureData, NothingToDrawError, Point
from vitscope.figures.intervals import Interval
from vitscope.figures.judged import order_kept
from vitscope.figures.saved import ModelResult, as_sentence, name_apart, slug
from vitscope.files.printable import without_folders
from vitscope.results.explanation import Explanation, ImageExplanation
from vitscope.results.judge_result import JudgeResult
from vitscope.results.judgement_text import describe_skill, tell_judgement
from vitscope.results.schema import ExplanationSummary, JudgementSummary

_Panel = tuple[np.ndarray, np.ndarray | None]
"""Values of a map and their standard errors."""

_INTERVAL = 1.96
"""Standard errors on either side of a value that make its 95 % interval."""


def describe_maps(
    results: Sequence[ModelResult], image_id: str, *, heads: bool = False
) -> FigureData:
    """Maps of one image by each model that explains it, with column and row of each patch."""
    points: list[Point] = []
    notes: dict[ModelResult, str] = {}
    for result in results:
        explanation = Explanation(result.folder)
        if image_id in explanation.image_ids:
            index = explanation.image_ids.index(image_id)
            one, summary = explanation.read_image(index), explanation.summary
            points += _list_explained(result, one, heads)
            notes[result] = " ".join(chain(*tell_explained(summary, index, one)))
    if not notes:
        raise NothingToDrawError("no result explains this image")
    named = [f"{result.label}: {told}" for result, told in notes.items()]
    return FigureData(
        points=tuple(points),
        notes=tuple(named if len(notes) > 1 else notes.values()),
        shown=tuple(notes),
        omitted={one.label: "does not explain this image" for one in results if one not in notes},
    )


def name_images(results: Sequence[ModelResult]) -> dict[str, str]:
    """A name for each image that is valid on any file system; its folder tells it from others."""
    paths: dict[str, Path] = {}
    for image in chain.from_iterable(one.explanation.images for one in results):
        paths.setdefault(image.image_id, Path(image.path))
    stems = Counter(path.stem.casefold() for path in paths.values())
    names: dict[str, str] = {}
    for image_id, path in paths.items():
        alone = stems[path.stem.casefold()] == 1 or not path.parent.name
        name = path.stem if alone else f"{path.parent.name}-{path.stem}"
        readable = any(letter.isascii() and letter.isalnum() for letter in path.stem)
        names[name_apart(slug(name) if readable else "image", names)] = image_id
    return names


def _list_explained(result: ModelResult, one: ImageExplanation, heads: bool) -> Iterator[Point]:
    panels: dict[str, _Panel] = {
        name: (each.values, each.error) for name, each in one.shown.items()
    }
    if heads:
        panels |= {
            f"head_{name} {head}": (values, None)
            for name, each in one.shown.items()
            if each.heads is not None
            for head, values in enumerate(each.heads)
        }
    yield from _list_patches(result, one.path, panels)
    place = _place(result, one.path)
    for score, values in (("skill", one.skill), ("gap", one.gap)):
        for name, value in values.items():
            yield place(panel=name, other=score, number=Interval(value, n=1))


def tell_explained(
    summary: ExplanationSummary, index: int, one: ImageExplanation
) -> tuple[list[str], list[str]]:
    """Whether an image's maps may be read, and what this rests on, in sentences."""
    told = (tell_judgement(summary, summary.images[index]), one.verdict.text)
    verdict = [as_sentence(without_folders(text)) for text in filter(None, told)]
    basis = [f"This rests on {without_folders(one.verdict.basis)}."]
    if summary.scoring is not None:
        basis.append(describe_skill(summary.scoring.target, summary.scoring.removal))
    return verdict, basis


def tell_judged(summary: JudgementSummary) -> tuple[list[str], list[str]]:
    """The verdict on judged maps, and what is below each, in sentences."""
    skill = describe_skill(summary.target, next(iter(summary.removals)))
    order = f"{skill} Maps are in their order over all images."
    return [as_sentence(summary.verdict.text)], [order]


def describe_judged_maps(result: ModelResult, index: int) -> FigureData:
    """Maps of a kept image with column and row of each patch, the best-judged map first."""
    image = result.judgement.images[index]
    maps = JudgeResult(result.folder).read_maps(index).maps
    names = order_kept(result.judgement, image)
    panels = {name: (maps[name].values, maps[name].error) for name in names}
    return FigureData(
        points=tuple(_list_patches(result, image.path, panels)),
        notes=tuple(chain(*tell_judged(result.judgement))),
        shown=(result,),
    )


def describe_heads_by_layer(result: ModelResult, image: ImageExplanation) -> FigureData:
    """The largest attention on a patch of each head in each layer, which scales its map."""
    if image.heads_by_layer is None:
        raise NothingToDrawError("attention of all layers was not kept: explain with heads=True")
    place = partial(_place(result, image.path), panel="largest attention on a patch")
    points = (
        place(other=f"head {head}", x=layer, number=Interval(float(values.max()), n=1))
        for layer, heads in enumerate(image.heads_by_layer)
        for head, values in enumerate(heads)
    )
    return FigureData(points=tuple(points), notes=(), shown=(result,))


def _list_patches(result: ModelResult, path: str, panels: Mapping[str, _Panel]) -> Iterator[Point]:
    place = _place(result, path)
    for panel, (values, error) in panels.items():
        for (row, column), value in np.ndenumerate(values.astype(float)):
            number = Interval(value, n=1)
            if error is not None:
                half = _INTERVAL * float(error[row, column])
                number = Interval(value, value - half, value + half, 1)
            yield place(panel=panel, other=str(row), x=column, number=number)


def _place(result: ModelResult, path: str) -> Callable[..., Point]:
    return partial(Point, model=result, term=path.rsplit("/", 1)[-1])
