"""Files of an unfinished run beside its target, to resume after any interruption.

A part is whole or absent, its plan comes first, links and foreign files are left alone.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from vitscope.errors import ResultError, UsageError
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.json_files import read_json, write_json
from vitscope.files.locking import held_alone, remove_leftovers
from vitscope.files.printable import printable_path
from vitscope.files.storage import flush, made_parents, replace_json, staged_folder

_PLAN, _COPIES, _PARTS, _LOCK = "plan.json", "copies.json", "parts", ".lock"
_CHECKSUMS = "checksums.json"
_UNFINISHED = re.compile(r"\.\d{6,}\..*")
"""Names of parts that were being written or removed."""

_RUN = "run"
_DIGESTS = {
    "images": "the images differ or have changed",
    "names": "the names differ or have changed",
    "labels": "the labels differ or have changed",
    "references": "the references differ or have changed",
    "weights_hash": "the model's weights differ",
    "classifier_hash": "the model's classifier differs",
    "behaviour_hash": "the model's computation differs: a hook, a parametrisation, a replaced part "
    "or a setting",
}
"""What a different digest in a plan means."""

Plan = Mapping[str, Any]
"""Everything the numbers of a run depend on, as JSON."""


@dataclass(frozen=True)
class Workspace:
    """Finished parts of a run, by number."""

    folder: Path

    @contextmanager
    def new_part(self, number: int) -> Iterator[Path]:
        """Write a part; it appears only when complete."""
        with staged_folder(self.part(number)) as staging:
            yield staging
            write_json(staging / _CHECKSUMS, _checksum(staging))

    def part(self, number: int) -> Path:
        """Folder of a part, existing or not."""
        return self.folder / _PARTS / f"{number:06d}"

    @property
    def run_id(self) -> str | None:
        """Id of the run; None before one has started."""
        plan = self.read_plan()
        return None if plan is None else plan.get(_RUN)

    def read_plan(self) -> Plan | None:
        """Read the plan of the run."""
        try:
            found = read_json(self.folder / _PLAN)
        except ResultError:
            return None
        return found if isinstance(found, dict) else None

    def read_copies(self) -> dict[int, frozenset[str]]:
        """Read which images each part omits because an earlier part has them."""
        try:
            found = read_json(self.folder / _COPIES)
            return {int(number): frozenset(ids) for number, ids in found.items()}
        except (ResultError, AttributeError, TypeError, ValueError):
            return {}

    def write_copies(self, copies: Mapping[int, Iterable[str]]) -> None:
        """Save which images each part omits."""
        replace_json(self.folder / _COPIES, {k: sorted(ids) for k, ids in copies.items()})

    def is_whole(self, number: int) -> bool:
        """Whether the files of a finished part are unchanged."""
        part = self.part(number)
        try:
            return bool(read_json(part / _CHECKSUMS) == _checksum(part))
        except (OSError, ResultError):
            return False

    def remove_part(self, number: int) -> None:
        """Remove a finished part atomically: a killed process leaves all of it or nothing."""
        part = self.part(number)
        aside = part.with_name(f".{part.name}.old-{uuid4().hex}")
        part.rename(aside)
        shutil.rmtree(aside)

    def clear(self) -> None:
        """Remove all parts one by one; the remaining ones always belong to the saved plan."""
        for number in self.find_done():
            self.remove_part(number)
        self.remove_unfinished()

    def remove_unfinished(self) -> None:
        """Remove parts that a killed process was writing or removing."""
        for path in self._list_parts():
            if not _UNFINISHED.fullmatch(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def find_done(self) -> set[int]:
        """Numbers of the finished parts."""
        # Unfinished parts have names that start with a dot.
        return {int(p.name) for p in self._list_parts() if p.name.isdecimal() and p.is_dir()}

    def _list_parts(self) -> list[Path]:
        parts = self.folder / _PARTS
        return list(parts.iterdir()) if parts.is_dir() else []


def _checksum(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != _CHECKSUMS:
            with path.open("rb") as file:
                make = partial(hashlib.blake2b, digest_size=16)
                found[name] = hashlib.file_digest(file, make).hexdigest()
    return found


def place_of(target: Path) -> Path:
    """Path of the workspace of a run."""
    target = target.resolve()
    return target.parent / f".{target.name[:100]}.run"


@contextmanager
def open_workspace(
    target: Path, plan: Plan, *, resume: bool, overwrite: bool
) -> Iterator[Workspace]:
    """Open a target's workspace exclusively, with the parts that an earlier run finished."""
    with _held(target) as workspace:
        try:
            with plain_disk_errors(target):
                _prepare(workspace, target, plan, resume=resume, overwrite=overwrite)
                remove_leftovers(target)
            yield workspace
        except BaseException:
            if not workspace.find_done():
                _remove(workspace)
            raise
        _remove(workspace)


@contextmanager
def told_of_kept(
    workspace: Workspace, total: str, *, resume: bool, leads: bool = True
) -> Iterator[None]:
    """Add to an error how many of all parts, such as "49 shards", are kept."""
    # If no part is finished, the leading process alone removes the workspace.
    try:
        yield
    except BaseException as error:
        if (done := len(workspace.find_done())) or not leads:
            error.add_note(f"{done} of {total} are kept: {how_to_resume(resume=resume)}")
        raise


def how_to_resume(*, resume: bool) -> str:
    """Say how to resume a run that was called with `resume`."""
    return "the same call resumes it" if resume else "give resume=True to resume"


@contextmanager
def kept_from_runs(target: Path) -> Iterator[None]:
    """Keep runs from working on a target while it is written."""
    with _held(target) as workspace:
        try:
            yield
        finally:
            _remove_folder(workspace)


def discard_workspace(target: Path) -> None:
    """Remove the workspace of an earlier run unless it is still running."""
    if place_of(target).exists():
        with _held(target) as workspace, plain_disk_errors(target):
            remove_leftovers(target)
            _remove(workspace)


@contextmanager
def _held(target: Path) -> Iterator[Workspace]:
    folder = place_of(target)
    entries = [folder, *(folder / name for name in (_PLAN, _COPIES, _PARTS))]
    for path in chain(entries, (folder / _PARTS).glob("*")):
        if path.is_symlink():
            raise UsageError(
                f"{printable_path(path)} is a link, which vitscope does not create: remove it"
            )
    with made_parents(target.resolve()), held_alone(folder, _LOCK, shown=target):
        yield Workspace(folder)


def _remove(workspace: Workspace) -> None:
    # Parts first: if the process is killed here, the plan of the remaining parts is still known.
    with suppress(OSError):
        workspace.clear()
        for name in (_COPIES, _PLAN):
            remove_leftovers(workspace.folder / name)
            (workspace.folder / name).unlink(missing_ok=True)
    _remove_folder(workspace)


def _remove_folder(workspace: Workspace) -> None:
    # Folders that are not empty stay: they hold a run's parts, or files of the user.
    with suppress(OSError):
        (workspace.folder / _PARTS).rmdir()
    with suppress(OSError):
        (workspace.folder / _LOCK).unlink()
        workspace.folder.rmdir()


def _prepare(
    workspace: Workspace, target: Path, plan: Plan, *, resume: bool, overwrite: bool
) -> None:
    done = len(workspace.find_done())
    name = printable_path(target)
    if done and not resume and not overwrite:
        raise UsageError(
            f"{name} holds an unfinished run (shards done: {done}): give resume=True to resume it, "
            "or overwrite=True to start again"
        )
    if done and resume:
        difference = describe_difference(workspace.read_plan(), plan)
        if difference is None:
            workspace.remove_unfinished()
            return
        if not overwrite:
            raise UsageError(
                f"{name} holds a different unfinished run ({difference}): resume with the "
                "same images and settings, or give overwrite=True to start again"
            )
    workspace.clear()  # before the new plan is saved, to which they do not belong
    (workspace.folder / _COPIES).unlink(missing_ok=True)
    replace_json(workspace.folder / _PLAN, {**plan, _RUN: uuid4().hex})
    (workspace.folder / _PARTS).mkdir(exist_ok=True)
    flush(workspace.folder)
    flush(workspace.folder.parent)


def describe_difference(found: object, plan: Plan) -> str | None:
    """Describe the first difference between two plans."""
    if not isinstance(found, dict):
        return "its plan cannot be read"
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


def pack_folder(folder: Path) -> dict[str, bytes]:
    """Read a folder of a few files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def unpack_folder(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the files read by `pack_folder`."""
    for name, content in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ResultError(f"a file called {name!r} was sent: expected names within a part")
        target = folder / path
        with plain_disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
