"""What differs between a run and one that repeats it."""

from collections.abc import Iterator
from pathlib import PurePath

from vitscope.errors import ResultError
from vitscope.files.printable import printable, printable_path
from vitscope.files.reading import plain_damage
from vitscope.results.saved_result import SavedResult, list_of_images
from vitscope.results.schema import Provenance

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
        with plain_damage(earlier.folder):
            changes = [*_list_changes(earlier, later)]
            both = earlier.provenance, later.provenance
            unknown = [told for key, told in _DIGESTS.items() if not _is_known(key, *both)]
            # Behaviour that no digest covers: a hook of the user's, say. A comparison has no plan.
            plans = [one.get("plan", {}) for one in both]
            if any(plan.get("result", plan).get("unknown") for plan in plans):
                unknown.append("what else changes what the model computes")
    except ResultError:  # it was moved or removed
        return ""
    place = printable_path(earlier.folder)
    told = [f"changed since {place}: {printable('; '.join(changes))}"] if changes else []
    if unknown:
        told.append(f"what cannot be compared with {place}: {', '.join(unknown)}")
    if told:
        return "; ".join(told)
    images = ", images" if list_of_images(later, "image_id") else ""
    return f"model{images} and versions are the same as in {place}"


def _name_model(result: SavedResult) -> str:
    return PurePath(result.summary.model.id).name  # its folder is named from where a run starts


def _list_changes(earlier: SavedResult, later: SavedResult) -> Iterator[str]:
    before, after = earlier.provenance, later.provenance
    for key, told in _DIGESTS.items():
        if _is_known(key, before, after) and before[key] != after[key]:
            yield told
    old, new = (set(list_of_images(one, "image_id")) for one in (earlier, later))
    if old != new:
        yield f"images ({len(old & new)} of {len(new)} were among the {len(old)} then)"
    versions = before["versions"], after["versions"]
    for name in dict(versions[0]) | versions[1]:
        then, now = (each.get(name, "none") for each in versions)
        if then != now:
            yield f"{name} ({then}, now {now})"


def _is_known(key: str, *provenances: Provenance) -> bool:
    return all(one.get(key) not in (None, "") for one in provenances)
