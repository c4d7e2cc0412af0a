"""The images of the report: thumbnails, maps and numbers, within a limit of bytes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import matplotlib as mpl
import numpy as np

from vitscope.errors import ResultError
from vitscope.figures.judged import order_kept
from vitscope.figures.saved import ModelResult, as_sentence, printable
from vitscope.files.printable import printable_path, without_folders
from vitscope.files.reading import open_table
from vitscope.report.columns import (
    SKILL,
    ImageNumbers,
    collect_numbers,
    count_bins,
    describe_column,
    round_numbers,
)
from vitscope.report.embedding import encode_bytes, encode_image, encode_map
from vitscope.results.explanation import Explanation, ImageExplanation
from vitscope.results.gallery import Gallery, read_gallery
from vitscope.results.image_maps import ImageMap, ImageMaps
from vitscope.results.judge_result import JudgeResult
from vitscope.results.judgement_text import (
    describe_skill,
    tell_failure,
    tell_judgement,
    tell_score,
)
from vitscope.results.number_text import write_number
from vitscope.results.remedy_result import RemedyResult
from vitscope.results.result_text import tell_map
from vitscope.results.schema_maps import JudgedImage
from vitscope.results.verdict import judge_image

MAX_BYTES = 18 * 2**20
"""Most bytes for images and maps in the page; if that is too little, fewer images are shown."""

_REASONS = {
    "lowest": "among the lowest",
    "highest": "among the highest",
    "quantile": "in between",
    "random": "drawn at random",
    "original": "one of the original’s gallery",
}
_COLOURMAPS = {"sequential": "cividis", "diverging": "PuOr"}
Entry = dict[str, Any]


@dataclass(frozen=True)
class _Source:
    """Images of one result."""

    label: str
    note: str  # how they were chosen
    numbers: ImageNumbers
    count: int
    read: Callable[[int], tuple[ImageMaps, Entry]]  # reads an image with its maps and text
    first: tuple[str, ...] = ("centred_share_patches", "share_patches")
    """Initial sort key of the images: the first of these that exists."""
    side_by_side: str = ""  # the map that a card shows of all models


def collect_images(results: Sequence[ModelResult], *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Data of the gallery and the distributions."""
    sources: list[_Source] = []
    distributions = []
    for result in results:
        if result.kind == "audit":
            numbers = _read_table(result)
            distributions.append(_describe_distributions(result, numbers))
            if (gallery := read_gallery(result.folder)) is not None and gallery.images:
                sources.append(_open_gallery(result, gallery, numbers))
        elif result.kind == "explanation":
            sources.append(_open_explanation(result))
        elif result.kind == "judgement" and result.judgement.images:
            sources.append(_open_judgement(result))
        elif result.kind == "remedies" and (source := _open_remedies(result)) is not None:
            sources.append(source)
    sources.sort(key=lambda source: not source.side_by_side)
    shelf = _Shelf(max_bytes)
    shown = shelf.fill(sources)
    names = {name for one in distributions for name in one["bins"]}
    names |= {column.name for source in sources for column in source.numbers.columns}
    columns = sorted(map(describe_column, names), key=lambda column: column.order)
    return {
        "thumbnails": shelf.thumbnails,
        "galleries": [
            _describe_source(source, images) for source, images in zip(sources, shown, strict=True)
        ],
        "distributions": distributions,
        "columns": [
            {"name": c.name, "group": c.group, "label": c.label, "description": c.description}
            for c in columns
        ],
        "colourmaps": {use: _encode_colours(name) for use, name in _COLOURMAPS.items()},
    }


@dataclass
class _Shelf:
    """Images within a limit of bytes; models share the thumbnails."""

    max_bytes: int
    thumbnails: list[str] = field(default_factory=list)  # JPEG files, base64
    _places: dict[str, int] = field(default_factory=dict)
    _num_bytes: int = 0

    def fill(self, sources: Sequence[_Source]) -> list[list[Entry]]:
        """Take images from the sources in turn until the limit is reached."""
        shown: list[list[Entry]] = [[] for _ in sources]
        for index in range(max((source.count for source in sources), default=0)):
            for source, entries in zip(sources, shown, strict=True):
                if index < source.count and self._num_bytes < self.max_bytes:
                    entries.append(self._put(*source.read(index)))
        return shown

    def _put(self, maps: ImageMaps, entry: Entry) -> Entry:
        thumbnail = encode_image(maps.image)
        place = self._places.setdefault(thumbnail, len(self.thumbnails))
        if place == len(self.thumbnails):
            self.thumbnails.append(thumbnail)
            self._num_bytes += len(thumbnail)
        drawn = {name: _encode_map(one) for name, one in maps.shown.items()}
        heads = next(filter(None, (_encode_heads(*one) for one in maps.shown.items())), None)
        self._num_bytes += sum(len(one["data"]) for one in (*drawn.values(), heads) if one)
        height, width = maps.image.shape[:2]
        return {
            **entry,
            "thumbnail": place,
            "size": [width, height],
            "grid": list(maps.grid),
            "maps": drawn,
            "heads": heads,  # of the first map that has any
        }


def _encode_map(one: ImageMap) -> Entry:
    about = one.about
    return {
        **encode_map(one.values, signed=about.signed),
        "title": about.title,
        "unit": about.unit,
        "target": about.target,
        "part": about.is_part,
        "signed": about.signed,
        "told": "; ".join(tell_map(about, float(one.values.sum()))),
    }


def _encode_heads(name: str, one: ImageMap) -> Entry | None:
    if one.heads is None:
        return None
    return {**encode_map(one.heads, signed=one.about.signed), "map": name}


def _open_gallery(result: ModelResult, gallery: Gallery, numbers: ImageNumbers) -> _Source:
    def read(index: int) -> tuple[ImageMaps, Entry]:
        image = gallery.images[index]
        if (row := numbers.rows.get(image.image_id)) is None:
            raise ResultError(
                f"{printable_path(result.folder)} is damaged: image {index} of its gallery is "
                "not in its table"
            )
        entry = _describe_image(image.image_id, numbers, row)
        entry["told"] = _judge(numbers, row)
        entry["why"] = f"Chosen for this gallery: {_REASONS[image.why]}."
        return gallery.read_maps(index), entry

    chosen = describe_column(gallery.number)
    of_all = (
        ""
        if gallery.num_candidates == gallery.num_images
        else (f" (out of {gallery.num_candidates:,} drawn at random)")
    )
    how = (
        "those of the original’s gallery."
        if gallery.images[0].why == "original"
        else f"in equal parts those with the lowest and the highest “{chosen.group}: "
        f"{chosen.label}”, those at even steps in between, and some drawn at random."
    )
    note = f"{len(gallery.images)} of {gallery.num_images:,} images{of_all}: {how}"
    return _Source(result.label, note, numbers, len(gallery.images), read)


def _open_explanation(result: ModelResult) -> _Source:
    explanation, summary = Explanation.load(result.folder), result.explanation
    images = [explanation.read_image(index) for index in range(len(explanation))]
    flat = [
        _flatten(asdict(image.numbers)) | {f"{SKILL}{k}": v for k, v in image.skill.items()}
        for image in images
    ]
    names = dict.fromkeys(name for one in flat for name in one)
    columns = {name: np.array([one.get(name, np.nan) for one in flat]) for name in names}
    numbers = _number_images(columns, images)

    def read(index: int) -> tuple[ImageMaps, Entry]:
        image = images[index]
        entry = _describe_image(image.image_id, numbers, index)
        told = image.verdict.text, tell_failure(summary, summary.images[index])
        entry["told"] = " ".join(map(as_sentence, filter(None, told)))
        entry["why"] = as_sentence(without_folders(image.verdict.basis))
        entry["scores"] = {k: tell_score(v, image.gap[k]) for k, v in image.skill.items()}
        return image, entry

    # Of an image on which the map to publish fails, its own text says so instead.
    judged = dict.fromkeys(
        tell_judgement(summary, image)
        for image in summary.images
        if not tell_failure(summary, image)
    )
    scoring = summary.scoring
    note = " ".join(
        [
            "Images that were explained.",
            *map(as_sentence, map(without_folders, filter(None, judged))),
            *([] if scoring is None else [describe_skill(scoring.target, scoring.removal)]),
        ]
    )
    return _Source(f"{result.label}, explained", note, numbers, len(images), read)


def _open_judgement(result: ModelResult) -> _Source:
    summary, judged = result.judgement, JudgeResult(result.folder)
    images, removal = summary.images, next(iter(summary.removals))
    names = order_kept(summary, images[0])
    columns = {f"{SKILL}{name}": np.array([one.skill[name] for one in images]) for name in names}
    numbers = _number_images(columns, images)

    def read(index: int) -> tuple[ImageMaps, Entry]:
        image = images[index]
        entry = _describe_image(image.image_id, numbers, index)
        entry["told"] = as_sentence(summary.verdict.text)
        entry["why"] = "Maps are in their order over all images, the most faithful first."
        entry["scores"] = {name: f"skill {write_number(image.skill[name], 2)}" for name in names}
        found = judged.read_maps(index)
        return replace(found, maps={name: found.maps[name] for name in names}), entry

    note = (
        f"{len(images)} of {result.num_images:,} judged images. "
        f"{describe_skill(summary.target, removal)}"
    )
    first = tuple(columns)
    return _Source(f"{result.label}, judged", note, numbers, len(images), read, first)


def _open_remedies(result: ModelResult) -> _Source | None:
    # The gallery of the original, with the same images' maps in those of the edited models.
    compared = RemedyResult(result.folder)
    try:
        audits = {one.edit: compared.read_audit(one.edit) for one in result.remedies.remedies}
        original = ModelResult(compared.read_audit())
    except ResultError:  # the comparison was moved without its audits
        return None
    gallery = read_gallery(original.folder)
    after = {edit: read_gallery(audit.folder) for edit, audit in audits.items()}
    drawn = [one.images[0].maps for one in (gallery, *after.values()) if one and one.images]
    # The first map of the original that all have: no trace goes through some edits.
    name = next((n for n in drawn[0] if all(n in maps for maps in drawn)), None) if drawn else None
    if gallery is None or name is None:
        return None
    before = _open_gallery(original, gallery, _read_table(original))
    places = {
        edit: {one.image_id: i for i, one in enumerate(found.images) if name in one.maps}
        for edit, found in after.items()
        if found is not None
    }
    known = [
        sum(one.image_id in others for others in places.values()) * (name in one.maps)
        for one in gallery.images
    ]
    shown = [index for index, count in enumerate(known) if count]
    if not shown:
        return None

    def read(index: int) -> tuple[ImageMaps, Entry]:
        maps, entry = before.read(shown[index])
        found = {"original": _take_map(maps, name, "original")}
        for number, (edit, others) in enumerate(after.items(), 1):
            if others is not None and (place := places[edit].get(entry["id"])) is not None:
                found[f"edit_{number}"] = _take_map(others.read_maps(place), name, edit)
        told = entry["told"] and f"The original: {entry['told']}"
        return replace(maps, maps=found), {**entry, "told": told}

    note = (
        f"{len(shown)} of the {len(known)} images in the original’s gallery, with a map before and "
        "after. Each map goes up to its own largest value; shares and other numbers are the "
        "original’s."
    )
    if missing := len(shown) * len(after) - sum(known):
        note += f" {missing} maps are missing: the edited models’ galleries have other images."
    return replace(
        before,
        label=f"{result.label}, before and after",
        note=note,
        count=len(shown),
        read=read,
        side_by_side=drawn[0][name].title,
    )


def _take_map(maps: ImageMaps, name: str, edit: str) -> ImageMap:
    one = maps.maps[name]
    return replace(one, heads=None, about=replace(one.about, title=printable(edit)))


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
    columns: Mapping[str, np.ndarray], images: Sequence[ImageExplanation | JudgedImage]
) -> ImageNumbers:
    ids, paths = zip(*((image.image_id, image.path) for image in images), strict=True)
    return ImageNumbers.of_columns(columns, ids, paths)


def _describe_image(digest: str, numbers: ImageNumbers, row: int) -> Entry:
    path = numbers.paths[row]
    return {
        "id": digest,
        "path": path,
        "name": path.rsplit("/", 1)[-1],
        "numbers": round_numbers(numbers.values[:, row]),
    }


def _describe_source(source: _Source, images: Sequence[Entry]) -> dict[str, Any]:
    names = [column.name for column in source.numbers.columns]
    left_out = source.count - len(images)
    note = source.note
    if left_out:
        note += f" {left_out} of them are left out, so that this file stays small."
    return {
        "label": source.label,
        "note": note,
        "columns": names,
        "side_by_side": source.side_by_side,
        "sort": next((name for name in source.first if name in names), names[0] if names else ""),
        "images": list(images),
    }


def _describe_distributions(result: ModelResult, numbers: ImageNumbers) -> dict[str, Any]:
    rows = zip(numbers.columns, numbers.values, strict=True)
    return {"label": result.label, "bins": {c.name: count_bins(values) for c, values in rows}}


def _read_table(result: ModelResult) -> ImageNumbers:
    with open_table(result.folder / "images.parquet") as file:
        return collect_numbers(file.read())


def _flatten(tree: Mapping[str, Any], *path: str) -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, *path, key)
        else:
            flat["_".join((*path, key))] = float(value)
    return flat


def _encode_colours(name: str) -> str:
    """A colour map."""
    colours = mpl.colormaps[name](np.arange(256), bytes=True)
    return encode_bytes(colours[:, :3])
