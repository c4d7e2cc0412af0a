"""The same image as several results saw it, with their maps side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from vitscope.errors import ResultError
from vitscope.figures.saved import ModelResult, printable
from vitscope.report.columns import read_numbers
from vitscope.report.image_sources import Entry, Source, open_gallery
from vitscope.results.choices import enumerate_labels
from vitscope.results.gallery import Gallery, read_gallery
from vitscope.results.image_maps import ImageMaps
from vitscope.results.remedy_result import RemedyResult
from vitscope.results.schema_remedies import ORIGINAL


def open_remedies(result: ModelResult) -> Source | None:
    """The gallery of the original, with the same images' maps in those of the edited models."""
    compared = RemedyResult(result.folder)
    try:
        audits = {one.edit: compared.read_audit(one.edit) for one in result.remedies.remedies}
        original = ModelResult(compared.read_audit())
    except ResultError:  # the comparison was moved without its audits
        return None
    after = {edit: read_gallery(audit.folder) for edit, audit in audits.items()}
    source = _set_side_by_side(original, after, "original", "the original")
    return source and replace(source, label=f"{result.label}, before and after")


def list_compared(results: Sequence[ModelResult]) -> list[ModelResult]:
    """Audits to compare; those of edits are left out, which a comparison of their own has."""
    edits = {
        (one.folder.parent / name).resolve()
        for one in results
        if one.kind == "remedies"
        for name in (ORIGINAL, *(edit.folder for edit in one.remedies.remedies))
    }
    return [one for one in results if one.kind == "audit" and one.folder.resolve() not in edits]


def open_compared(results: Sequence[ModelResult]) -> Iterator[Source]:
    """Galleries of audits, each with those of later audits that share images with it."""
    galleries = {one: found for one in results if (found := read_gallery(one.folder))}
    ids = {one: {image.image_id for image in found.images} for one, found in galleries.items()}
    left = list(galleries)
    while left:
        first, *left = left
        alike = [result for result in left if ids[first] & ids[result]]
        left = [result for result in left if result not in alike]
        others = {result.label: galleries[result] for result in alike}
        if source := _set_side_by_side(first, others, first.label, first.label):
            yield replace(source, label=f"Side by side: {enumerate_labels([first.label, *others])}")


def _set_side_by_side(
    first: ModelResult, others: Mapping[str, Gallery | None], title: str, whose: str
) -> Source | None:
    gallery = read_gallery(first.folder)
    drawn = [one.images[0].maps for one in (gallery, *others.values()) if one and one.images]
    # The first map of the first result that all have: no trace goes through some edits.
    name = next((n for n in drawn[0] if all(n in maps for maps in drawn)), None) if drawn else None
    if gallery is None or name is None:
        return None
    source = open_gallery(first, gallery, read_numbers(first))
    places = {
        label: {one.image_id: i for i, one in enumerate(found.images) if name in one.maps}
        for label, found in others.items()
        if found is not None
    }
    known = [
        sum(one.image_id in found for found in places.values()) * (name in one.maps)
        for one in gallery.images
    ]
    shown = [index for index, count in enumerate(known) if count]
    if not shown:
        return None

    def read(index: int) -> tuple[list[ImageMaps], Entry]:
        (own,), entry = source.read(shown[index])
        views = [_take_map(own, name, "first", title)]
        for number, (label, found) in enumerate(others.items(), 1):
            if found is not None and (place := places[label].get(entry["id"])) is not None:
                views.append(_take_map(found.read_maps(place), name, f"other_{number}", label))
        told = entry["told"] and f"{whose[0].upper()}{whose[1:]}: {entry['told']}"
        return views, {**entry, "told": told}

    note = (
        f"{len(shown)} of the {len(known)} images in {whose}’s gallery, with the maps of other "
        "results that have them too. Each map goes up to its own largest value; shares and other "
        f"numbers are {whose}’s."
    )
    if missing := len(shown) * len(others) - sum(known):
        note += f" {missing} maps are missing: the other galleries have other images."
    return replace(
        source, note=note, count=len(shown), read=read, side_by_side=drawn[0][name].title
    )


def _take_map(maps: ImageMaps, name: str, key: str, title: str) -> ImageMaps:
    one = maps.maps[name]
    about = replace(one.about, title=printable(title))
    return replace(maps, maps={key: replace(one, heads=None, about=about)})
