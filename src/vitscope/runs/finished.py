"""Whether a run that is to be resumed has finished before."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitscope.errors import ResultError, UsageError
from vitscope.files.printable import printable_path
from vitscope.files.storage import is_result
from vitscope.files.workspace import Plan, Workspace, describe_difference, place_of
from vitscope.results.saved_result import SavedResult


def read_provenance(kind: type[SavedResult], target: Path) -> Mapping[str, Any]:
    """Provenance of the result at a target; empty without one of this kind and version."""
    try:
        return kind.load(target).provenance
    except ResultError:
        return {}


def is_finished(kind: type[SavedResult], target: Path, plan: Plan, *, overwrite: bool) -> bool:
    """Whether the target holds the result of this plan; another one is refused."""
    if not (target.is_dir() and is_result(target)):
        return False
    provenance, workspace = read_provenance(kind, target), Workspace(place_of(target))
    if workspace.find_done() and workspace.run_id != provenance.get("run"):
        return False  # resume the run that was going to replace it
    difference = describe_difference(provenance.get("plan"), plan)
    if difference is not None and not overwrite:
        raise UsageError(
            f"{printable_path(target)} holds a different result ({difference}): choose "
            "another folder, or give overwrite=True to replace it"
        )
    return difference is None
