"""What an unfinished run keeps beside its place, so that it can go on after whatever stopped it.

Requirements met here:

- A part is there whole, on the disk itself, or not at all: kill -9, a power cut and a full disk
  leave the parts that were finished before.
- Parts of another plan are never mixed in: a plan is written down before the first part.
- Two runs never work for one place at the same time.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from vitscope.errors import ResultError, UsageError
from vitscope.files.json_files import read_json
from vitscope.files.leftovers import remove_leftovers
from vitscope.files.locking import held_alone
from vitscope.files.storage import (
    flush,
    made_parents,
    plain_disk_errors,
    printable_path,
    replace_json,
    staged_folder,
)

_PLAN, _PARTS, _LOCK = "plan.json", "parts", ".lock"
_RUN = "run"
_DIGESTS = {
    "pictures": "its pictures are others, or were changed since",
    "names": "its names are others, or were changed since",
    "weights_hash": "the model has other weights",
    "behaviour_hash": "the model computes otherwise: a hook, a parametrisation, a replaced part or "
    "a setting is another",
}
"""What it means if a digest in a plan is another."""

Plan = Mapping[str, Any]
"""What the numbers of a run depend on, as JSON holds it."""


@dataclass(frozen=True)
class Workspace:
    """Finished parts of a run, by number.

    Attributes:
        folder: Where they lie.
    """

    folder: Path

    @contextmanager
    def new_part(self, number: int) -> Iterator[Path]:
        """Write a part, which is there when it is whole.

        Args:
            number: Its number.

        Yields:
            The folder to write into.

        Raises:
            VitscopeError: If the disk does not take it.
        """
        with staged_folder(self.part(number)) as staging:
            yield staging

    def part(self, number: int) -> Path:
        """Where a part lies, or will.

        Args:
            number: Its number.

        Returns:
            Its folder.
        """
        return self.folder / _PARTS / f"{number:06d}"

    @property
    def run_id(self) -> str | None:
        """What the run is called, whose parts these are; None before one has begun."""
        plan = self.read_plan()
        return None if plan is None else plan.get(_RUN)

    def read_plan(self) -> Plan | None:
        """What the numbers of the run depend on.

        Returns:
            The plan; None where there is none, or it cannot be read.
        """
        try:
            found = read_json(self.folder / _PLAN)
        except ResultError:
            return None
        return found if isinstance(found, dict) else None

    def clear(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder / _PARTS)

    def remove_unfinished(self) -> None:
        """Remove what a killed process was writing, and whatever else is no part."""
        for path in (self.folder / _PARTS).iterdir():
            if path.name.isdecimal():
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def find_done(self) -> set[int]:
        """Numbers of the parts that are finished.

        Returns:
            The numbers.
        """
        # What is being written begins with a dot.
        parts = self.folder / _PARTS
        names = [path.name for path in parts.iterdir()] if parts.is_dir() else []
        return {int(name) for name in names if name.isdecimal()}


def place_of(target: Path) -> Path:
    """Where the workspace of a run lies.

    Args:
        target: Folder that its result shall be in.

    Returns:
        A hidden folder beside it.
    """
    target = target.resolve()
    return target.parent / f".{target.name[:100]}.run"


@contextmanager
def open_workspace(
    target: Path, plan: Plan, *, resume: bool, overwrite: bool
) -> Iterator[Workspace]:
    """Work for a place alone, on top of what an earlier run of the same plan has finished.

    Args:
        target: Folder that the result shall be in.
        plan: What its numbers depend on.
        resume: Whether to go on where an earlier run stopped.
        overwrite: Whether what an earlier run left may be removed; with `resume`, where it cannot
            be gone on with.

    Yields:
        The workspace. It is removed when the context ends well, and where it holds nothing.

    Raises:
        UsageError: If another run is at work there, or an earlier one has left parts that may
            neither be gone on with nor removed.
        VitscopeError: If the disk does not take it.
    """
    folder = place_of(target)
    with made_parents(folder), held_alone(folder, _LOCK, shown=target):
        workspace = Workspace(folder)
        with plain_disk_errors(target):
            _prepare(workspace, target, plan, resume=resume, overwrite=overwrite)
            remove_leftovers(target)
        try:
            yield workspace
        except BaseException:
            if not workspace.find_done():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        _remove(folder)


def discard_workspace(target: Path) -> None:
    """Remove what an earlier run left, unless it is still at work.

    Args:
        target: Folder that its result is in.

    Raises:
        UsageError: If another run is at work there.
    """
    folder = place_of(target)
    if folder.exists():
        with held_alone(folder, _LOCK, shown=target), plain_disk_errors(target):
            remove_leftovers(target)
            _remove(folder)


def _remove(folder: Path) -> None:
    # The parts go first: those that are left by a process killed here still say whose they are.
    shutil.rmtree(folder / _PARTS, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _prepare(
    workspace: Workspace, target: Path, plan: Plan, *, resume: bool, overwrite: bool
) -> None:
    done = len(workspace.find_done())
    name = printable_path(target)
    if done and not resume and not overwrite:
        raise UsageError(
            f"{name} holds an unfinished run (shards done: {done}): add --resume to go on, or "
            "--overwrite to start again"
        )
    if done and resume:
        difference = describe_difference(workspace.read_plan(), plan)
        if difference is None:
            workspace.remove_unfinished()
            return
        if not overwrite:
            raise UsageError(
                f"{name} holds an unfinished run of something else ({difference}): go on with the "
                "same pictures and settings, or add --overwrite to start again"
            )
    if (workspace.folder / _PARTS).exists():
        workspace.clear()  # before the new plan is there, which they are not of
    replace_json(workspace.folder / _PLAN, {**plan, _RUN: uuid4().hex})
    (workspace.folder / _PARTS).mkdir()
    flush(workspace.folder)
    flush(workspace.folder.parent)


def describe_difference(found: object, plan: Plan) -> str | None:
    """The first thing in which two plans differ, in words.

    Args:
        found: What was read of an earlier plan.
        plan: The present one.

    Returns:
        Its name and both values; None where they are the same.
    """
    if not isinstance(found, dict):
        return "what it was of cannot be read"
    for key in [*plan, *found]:
        old, new = found.get(key), plan.get(key)
        if key == _RUN or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            return f"{key}: {describe_difference(old, new)}"
        if key in _DIGESTS:
            return _DIGESTS[key] if old else f"its {key} was not recorded"
        return f"{key} was {old!r} and now is {new!r}"
    return None
