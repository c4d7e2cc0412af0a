"""Where a run writes its result, and what becomes of an earlier one there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from vitscope.errors import ResultError, UsageError
from vitscope.files.printable import printable_path
from vitscope.files.storage import (
    Replaces,
    as_folder,
    check_target,
    is_result,
    never,
    scratch_folder,
    staged_folder,
)
from vitscope.files.workspace import (
    Plan,
    Workspace,
    describe_difference,
    discard_workspace,
    open_workspace,
    place_of,
    told_of_kept,
)
from vitscope.results.saved_result import SavedResult

_Result = TypeVar("_Result", bound=SavedResult)


@dataclass(frozen=True)
class Output:
    """Where a result goes."""

    folder: Path | None  # a temporary one if None
    overwrite: bool
    resume: bool

    @classmethod
    def check(cls, out: str | Path | None, *, overwrite: bool, resume: bool) -> "Output":
        """Refuse early a folder that the result may not go to."""
        folder = as_folder(out)
        if folder is not None:
            check_target(folder, is_result if overwrite or resume else never)
        elif resume:
            raise UsageError("no folder was given for the result: resume needs `out`")
        return cls(folder, overwrite, resume)

    @property
    def replaces(self) -> Replaces:
        """What may be replaced when the result is written."""
        return is_result if self.overwrite else never

    def write(
        self,
        kind: type[_Result],
        plan: Plan,
        parts: str,
        execute: Callable[[Path, Workspace], None],
        *,
        rescued: bool = True,
    ) -> _Result:
        """Write a result that is made of parts, such as "49 images", unless it is there."""
        if self.folder is None:
            with scratch_folder() as folder, TemporaryDirectory(prefix="vitscope-parts-") as parts:
                execute(folder, Workspace(Path(parts)))
            return kind.own(folder)
        if self.has(kind, plan):
            discard_workspace(self.folder)  # left by a run that was killed at its very end
        else:
            check_target(self.folder, self.replaces)
            with (
                open_workspace(
                    self.folder, plan, resume=self.resume, overwrite=self.overwrite
                ) as workspace,
                told_of_kept(workspace, parts, resume=self.resume),
                staged_folder(self.folder, replaces=self.replaces, rescued=rescued) as staging,
            ):
                execute(staging, workspace)
        return kind(self.folder)

    def has(self, kind: type[SavedResult], plan: Plan) -> bool:
        """Whether a resumed run finds the result of its plan; another one is refused."""
        target = self.folder
        if not self.resume or target is None or not (target.is_dir() and is_result(target)):
            return False
        if plan.get("unknown"):  # what cannot be compared: no result is known to be this one
            return False
        provenance, workspace = read_provenance(kind, target), Workspace(place_of(target))
        if workspace.find_done() and workspace.run_id != provenance.get("run"):
            return False  # resume the run that was going to replace it
        difference = describe_difference(provenance.get("plan"), plan)
        if difference is not None and not self.overwrite:
            raise UsageError(
                f"{printable_path(target)} holds a different result ({difference}): choose "
                "another folder, or give overwrite=True to replace it"
            )
        return difference is None


def read_provenance(kind: type[SavedResult], target: Path) -> Mapping[str, Any]:
    """Provenance of the result at a target; empty without one of this kind and version."""
    try:
        return kind.load(target).provenance
    except ResultError:
        return {}
