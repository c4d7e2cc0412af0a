"""Where the report's images come from: galleries of audits, explained and judged images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from vitscope.errors import ResultError
from vitscope.figures.judged import order_kept
from vitscope.figures.saved import ModelResult, as_sentence
from vitscope.files.printable import printable_path, without_folders
from vitscope.report.columns import (
    SKILL,
    ImageNumbers,
    describe_column,
)
from vitscope.results.explanation import Explanation, ImageExplanation
from vitscope.results.gallery import Gallery
from vitscope.results.image_maps import ImageMaps
from vitscope.results.judge_result import JudgeResult
from vitscope.results.judgement_text import (
    describe_skill,
    tell_failure,
    tell_judgement,
    tell_score,
)
from vitscope.results.number_text import write_number
from vitscope.results.schema_maps import JudgedImage
from vitscope.results.verdict import judge_image

_REASONS = {
    "lowest": "among the lowest",
    "highest": "among the highest",
    "quantile": "in between",
    "random": "drawn at random",
    "original": "one of the original’s gallery",
}
Entry = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Images of one result."""

    label: str
    note: str  # how they were chosen
    numbers: ImageNumbers
    count: int
    # reads an image with its maps, and as other results saw it with theirs; and its text
    read: Callable[[int], tuple[list[ImageMaps], Entry]]
    # by which number they are sorted at first: the first of these that exists
    first: tuple[str, ...] = ("centred_share_patches", "share_patches")
    side_by_side: str = ""  # the map that a card shows of all models


def open_gallery(result: ModelResult, gallery: Gallery, numbers: ImageNumbers) -> Source:
    """The gallery of an audit."""

    def read(index: int) -> tuple[list[ImageMaps], Entry]:
        image = gallery.images[index]
        if (row := numbers.rows.get(image.image_id)) is None:
            raise ResultError(
                f"{printable_path(result.folder)} is damaged: image {index} of its gallery is "
                "not in its table"
            )
        why = f"Chosen for this gallery: {_REASONS[image.why]}."
        entry = _describe_image(image, numbers, row, told=_judge(numbers, row), why=why)
        return [gallery.read_maps(index)], entry

    chosen = describe_column(gallery.number)
    note = f"{len(gallery.images)} of {gallery.num_images:,} images"
    if gallery.num_candidates != gallery.num_images:
        note += f" (out of {gallery.num_candidates:,} drawn at random)"
    if gallery.images[0].why == "original":
        note += ": those of the original’s gallery"
    elif len(gallery.images) != gallery.num_images:
        note += (
            f": in equal parts those with the lowest and the highest “{chosen.group}: "
            f"{chosen.label}”, those at even steps in between, and some drawn at random"
        )
    return Source(result.label, f"{note}.", numbers, len(gallery.images), read)


def open_explanation(result: ModelResult) -> Source:
    """Explained images."""
    explanation, summary = Explanation.load(result.folder), result.explanation
    images = [explanation.read_image(index) for index in range(len(explanation))]
    flat = [
        _flatten(asdict(image.numbers)) | {f"{SKILL}{k}": v for k, v in image.skill.items()}
        for image in images
    ]
    numbers = _number_images(flat, images)

    def read(index: int) -> tuple[list[ImageMaps], Entry]:
        image = images[index]
        told = without_folders(image.verdict.text), tell_failure(summary, summary.images[index])
        return [image], _describe_image(
            image,
            numbers,
            index,
            told=" ".join(map(as_sentence, filter(None, told))),
            why=as_sentence(without_folders(image.verdict.basis)),
            scores={name: tell_score(v, image.gap[name]) for name, v in image.skill.items()},
        )

    # Of an image on which the map to publish fails, its own text says so instead.
    passed = [image for image in summary.images if not tell_failure(summary, image)]
    judged = dict.fromkeys(tell_judgement(summary, image) for image in passed)
    told = ["Images that were explained."]
    told += map(as_sentence, map(without_folders, filter(None, judged)))
    if summary.scoring is not None:
        told.append(describe_skill(summary.scoring.target, summary.scoring.removal))
    return Source(f"{result.label}, explained", " ".join(told), numbers, len(images), read)


def open_judgement(result: ModelResult) -> Source:
    """Judged images."""
    summary, judged = result.judgement, JudgeResult(result.folder)
    images, removal = summary.images, next(iter(summary.removals))
    names = order_kept(summary, images[0])
    flat = [{f"{SKILL}{name}": image.skill[name] for name in names} for image in images]
    numbers = _number_images(flat, images)

    def read(index: int) -> tuple[list[ImageMaps], Entry]:
        image = images[index]
        found = judged.read_maps(index)
        return [replace(found, maps={name: found.maps[name] for name in names})], _describe_image(
            image,
            numbers,
            index,
            told=as_sentence(summary.verdict.text),
            why="Maps are in their order over all images, the most faithful first.",
            scores={name: f"skill {write_number(image.skill[name], 2)}" for name in names},
        )

    how = describe_skill(summary.target, removal)
    note = f"{len(images)} of {result.num_images:,} judged images. {how}"
    return Source(f"{result.label}, judged", note, numbers, len(images), read, tuple(flat[0]))


def _judge(numbers: ImageNumbers, row: int) -> str:
    prefix = "centred_share_"
    shares = {
        column.name.removeprefix(prefix): float(values[row])
        for column, values in zip(numbers.columns, numbers.values, strict=True)
        if column.name.startswith(prefix)
    }
    # Without kept features there are no centred shares to judge an image by.
    if "patches" not in shares:
        return ""
    return as_sentence(judge_image(shares, len(numbers.rows), "of this audit").text)


def _number_images(
    flat: Sequence[Mapping[str, float]], images: Sequence[ImageExplanation | JudgedImage]
) -> ImageNumbers:
    names = dict.fromkeys(name for one in flat for name in one)
    columns = {name: np.array([one.get(name, np.nan) for one in flat]) for name in names}
    ids, paths = zip(*((image.image_id, image.path) for image in images), strict=True)
    return ImageNumbers.of_columns(columns, ids, paths)


def _describe_image(image: Any, numbers: ImageNumbers, row: int, **words: Any) -> Entry:
    path = numbers.paths[row]
    return {
        "id": image.image_id,
        "path": path,
        "name": path.rsplit("/", 1)[-1],
        # to five digits, more than the page shows
        "numbers": [None if np.isnan(x) else float(f"{x:.5g}") for x in numbers.values[:, row]],
        **words,
    }


def _flatten(tree: Mapping[str, Any], *path: str) -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, *path, key)
        else:
            flat["_".join((*path, key))] = float(value)
    return flat
