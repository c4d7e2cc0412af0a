"""What differs between a run and one that repeats it."""

from collections.abc import Iterator
from pathlib import PurePath

from vitscope.errors import ResultError
from vitscope.files.printable import printable, printable_path
from vitscope.files.reading import plain_damage
from vitscope.results.saved_result import SavedResult, list_of_images

_DIGESTS = {
    "weights_hash": "the weights",
    "behaviour_hash": "what the model computes with its weights",
    "preprocessing": "the preprocessing",
}


def tell_changes(earlier: SavedResult, later: SavedResult) -> str:
    """Sentence on what changed since an earlier run; empty if that was of another model."""
    try:
        if _name_model(earlier) != _name_model(later):
            return ""
        changes = [*_list_changes(earlier, later)]
    except ResultError:  # it was moved or removed
        return ""
    place = printable_path(earlier.folder)
    if not changes:
        images = ", images" if list_of_images(later, "image_id") else ""
        return f"model{images} and versions are the same as in {place}"
    return f"changed since {place}: {printable('; '.join(changes))}"


def _name_model(result: SavedResult) -> str:
    return PurePath(result.summary.model.id).name  # its folder is named from where a run starts


def _list_changes(earlier: SavedResult, later: SavedResult) -> Iterator[str]:
    before, after = earlier.provenance, later.provenance
    yield from (told for key, told in _DIGESTS.items() if before.get(key) != after.get(key))
    old, new = (set(list_of_images(one, "image_id")) for one in (earlier, later))
    if old != new:
        yield f"images ({len(old & new)} of {len(new)} were among the {len(old)} then)"
    with plain_damage(earlier.folder):
        versions = before["versions"], after["versions"]
        for name in dict(versions[0]) | versions[1]:
            then, now = (each.get(name, "none") for each in versions)
            if then != now:
                yield f"{name} ({then}, now {now})"
