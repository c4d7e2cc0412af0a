"""The images of the report: thumbnails, maps and numbers, within a limit of bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float

from vitscope.figures.rendering.overlays import DIVERGING, SEQUENTIAL
from vitscope.figures.saved import ModelResult
from vitscope.images.paths import find_root
from vitscope.report.columns import SKILL, count_bins, describe_column, read_numbers
from vitscope.report.embedding import encode_bytes, encode_image, encode_map
from vitscope.report.image_sources import (
    Entry,
    Source,
    open_explanation,
    open_gallery,
    open_judgement,
)
from vitscope.report.side_by_side import list_compared, open_compared, open_remedies
from vitscope.results.gallery import read_gallery
from vitscope.results.image_maps import ImageMaps
from vitscope.results.result_text import tell_map
from vitscope.results.schema_maps import MapSummary
from vitscope.results.vocabulary import ROW_MAPS, MapKind

MAX_BYTES = 18 * 2**20
"""Most bytes for images and maps in the page; if that is too little, fewer images are shown."""


def collect_images(results: Sequence[ModelResult], *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Data of the gallery and the distributions."""
    sources: list[Source] = []
    distributions = []
    for result in results:
        if result.kind == "audit":
            numbers = read_numbers(result)
            rows = zip(numbers.columns, numbers.values, strict=True)
            bins = {column.name: count_bins(values) for column, values in rows}
            distributions.append({"label": result.label, "bins": bins})
            if (gallery := read_gallery(result.folder)) is not None and gallery.images:
                sources.append(open_gallery(result, gallery, numbers))
        elif result.kind == "explanation":
            sources.append(open_explanation(result))
        elif result.kind == "judgement" and result.judgement.images:
            sources.append(open_judgement(result))
        elif result.kind == "remedies" and (source := open_remedies(result)) is not None:
            sources.append(source)
    sources.sort(key=lambda source: not source.side_by_side)
    sources += open_compared(list_compared(results))
    shelf = _Shelf(max_bytes)
    shown = shelf.fill(sources)
    names = {name for one in distributions for name in one["bins"]}
    names |= {column.name for source in sources for column in source.numbers.columns}
    drawn = [one for images in shown for entry in images for one in entry["maps"].items()]
    titles = {f"{SKILL}{name}": one["title"] for name, one in drawn}
    columns = sorted(map(describe_column, names), key=lambda column: column.order)
    return {
        "thumbnails": list(shelf.thumbnails),
        "galleries": [
            _describe_source(source, images) for source, images in zip(sources, shown, strict=True)
        ],
        "distributions": distributions,
        "columns": [
            {
                "name": c.name,
                "group": c.group,
                "label": titles.get(c.name, c.label),
                "description": c.description,
            }
            for c in columns
        ],
        "sequential": _encode_colours(SEQUENTIAL),
        "diverging": _encode_colours(DIVERGING),
    }


@dataclass
class _Shelf:
    """Images within a limit of bytes; models share the thumbnails."""

    max_bytes: int
    thumbnails: dict[str, int] = field(default_factory=dict)  # JPEG files, base64; numbered
    _num_bytes: int = 0

    def fill(self, sources: Sequence[Source]) -> list[list[Entry]]:
        """Take images from the sources in turn until the limit is reached."""
        shown: list[list[Entry]] = [[] for _ in sources]
        for index in range(max((source.count for source in sources), default=0)):
            for source, entries in zip(sources, shown, strict=True):
                if index < source.count and self._num_bytes < self.max_bytes:
                    entries.append(self._put(*source.read(index)))
        return shown

    def _put(self, views: Sequence[ImageMaps], entry: Entry) -> Entry:
        first = self._place(views[0])
        drawn: dict[str, Entry] = {}
        for maps in views:
            # What another model saw of the image, if it is not the same.
            view = self._place(maps)
            seen = {} if view == first else {"view": view}
            for name, one in maps.shown.items():
                told = "; ".join(tell_map(one.about, float(one.values.sum())))
                drawn[name] = _encode_map(one.values, one.about) | {"told": told, **seen}
        shown, by_layer = views[0].shown.values(), views[0].heads_by_layer
        heads = (_encode_map(one.heads, one.about) for one in shown if one.heads is not None)
        layers = None
        if by_layer is not None and len(by_layer) > 1:  # else the heads are there already
            layers = _encode_map(by_layer, ROW_MAPS["attention"]) | {"count": len(by_layer)}
        # The heads are of the first map that has any.
        own = {"maps": drawn, "heads": next(heads, None), "layers": layers}
        encoded = (*drawn.values(), own["heads"], layers)
        self._num_bytes += sum(len(one["data"]) for one in encoded if one)
        return {**entry, **first, **own}

    def _place(self, maps: ImageMaps) -> Entry:
        thumbnail = encode_image(maps.image)
        if thumbnail not in self.thumbnails:
            self._num_bytes += len(thumbnail)
        place = self.thumbnails.setdefault(thumbnail, len(self.thumbnails))
        height, width = maps.image.shape[:2]
        return {"thumbnail": place, "size": [width, height], "grid": list(maps.grid)}


def _encode_map(values: Float[np.ndarray, "*head row column"], about: MapKind) -> Entry:
    return {
        **encode_map(values, signed=about.signed),
        "title": about.title,
        "unit": about.unit,
        "target": about.target if isinstance(about, MapSummary) else None,
        "part": about.is_part,
        "signed": about.signed,
    }


def _describe_source(source: Source, images: Sequence[Entry]) -> dict[str, Any]:
    names = [column.name for column in source.numbers.columns]
    note = source.note
    if left_out := source.count - len(images):
        note += f" {left_out} of them are left out, so that this file stays small."
    return {
        "label": source.label,
        "note": note,
        "root": find_root(str(image["path"]) for image in images),
        "columns": names,
        "side_by_side": source.side_by_side,
        "sort": next((name for name in source.first if name in names), names[0] if names else ""),
        "images": list(images),
    }


def _encode_colours(name: str) -> str:
    colours = mpl.colormaps[name](np.arange(256), bytes=True)
    return encode_bytes(colours[:, :3])
