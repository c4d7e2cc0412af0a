"""Atomic writing of files and folders: a target is written completely or not at all."""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from vitscope.config import check_kind
from vitscope.errors import ResultError, UsageError, VitscopeError
from vitscope.files.disk_errors import named_disk_errors, plain_disk_errors
from vitscope.files.json_files import read_json, write_json
from vitscope.files.locking import new_beside, remove_leftovers
from vitscope.files.printable import printable_path

MARKER = "summary.json"
"""File that marks a complete result folder; it is written last."""
RUN_FILE = "run.toml"
"""File with the options of the command that made a result."""

_RESULT_FILE = re.compile(
    r"(summary|provenance|gallery)\.json|run\.toml|failures\.csv|(draws|images|maps|scores|traced)\.parquet"
    r"|(token_)?sums\.safetensors|layers/\d+\.parquet|(gallery|maps)/\d+\.npz"
    r"|(features|sums)/\d+(/moments)?/\d+\.safetensors",
    re.ASCII,
)

Replaces = Callable[[Path], bool]
"""Whether a non-empty folder may be replaced."""


def as_folder(out: str | Path | None) -> Path | None:
    """Convert the output path to a `Path`."""
    if out is None:
        return None
    check_kind("out", out, (str, os.PathLike), "the path of a folder")
    return Path(out)


def never(_: Path) -> bool:
    """Replace nothing."""
    return False


def is_result(folder: Path) -> bool:
    """Whether a folder holds a result of vitscope and nothing else."""
    return holds_result_files(folder) and _has_summary(folder)


def holds_result_files(folder: Path) -> bool:
    """Whether a folder holds only what a run writes, however damaged or incomplete."""
    return not _list_other_files(folder)


def _has_summary(folder: Path) -> bool:
    try:
        return "schema_version" in read_json(folder / MARKER)
    except (ResultError, TypeError):
        return False


def _list_other_files(folder: Path) -> list[str]:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    return sorted(name for name in names if not _RESULT_FILE.fullmatch(name))


@contextmanager
def staged_folder(
    target: Path, *, replaces: Replaces = never, durable: bool = True, rescued: bool = False
) -> Iterator[Path]:
    """Write a folder beside its target and move it there when complete."""
    remove_leftovers(target)
    check_target(target, replaces)
    # Resolved: links are written through, and "." gets a name and a parent.
    target = target.resolve()
    with made_parents(target), new_beside(target, "partial", folder=True) as staging:
        try:
            with named_disk_errors(target):
                yield staging
            with _kept_if_refused(staging, target) if rescued else nullcontext():
                check_target(target, replaces)
                with plain_disk_errors(target):
                    open_to_readers(staging)
                    if durable:
                        for path in [*staging.rglob("*"), staging]:
                            flush(path)
                    _move_into_place(staging, target)
                    if durable:
                        flush(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _kept_if_refused(staging: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except VitscopeError as error:
        with suppress(OSError):  # of a full disk, say; the first error says more
            kept = Path(tempfile.mkdtemp(prefix="vitscope-")) / target.name
            shutil.move(staging, kept)
            error.add_note(f"the finished result is kept in {printable_path(kept)}")
        raise


@contextmanager
def staged_file(target: Path, *, replaces: Replaces = never) -> Iterator[Path]:
    """Write a file beside its target and move it there when complete."""
    remove_leftovers(target)
    check_file_target(target, replaces)
    target = target.resolve()
    with made_parents(target), new_beside(target, "partial", folder=False) as staging:
        try:
            with named_disk_errors(target):
                yield staging
            check_file_target(target, replaces)
            with plain_disk_errors(target):
                open_to_readers(staging)
                flush(staging)  # otherwise a crash could replace the old file with an empty one
                staging.replace(target)
                flush(target.parent)
        finally:
            staging.unlink(missing_ok=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder; it is removed if the body raises, otherwise the caller removes it."""
    folder = Path(tempfile.mkdtemp(prefix="vitscope-"))
    try:
        with named_disk_errors(folder):
            yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_target(target: Path, replaces: Replaces = never) -> None:
    """Raise an error for a folder that may not be written to or replaced."""
    try:
        str(target).encode()
        existing = next(p for p in (target, *target.absolute().parents) if _is_there(p))
        if not existing.is_dir():
            raise UsageError(f"{existing} is a file: give a folder to write into")
        occupied = existing == target and any(target.iterdir())
    except UnicodeEncodeError:
        name = printable_path(target)
        raise UsageError(f"{name} is not valid UTF-8: give a folder of another name") from None
    except OSError as error:
        raise UsageError(f"{target} cannot be written to: {error.strerror}") from None
    if not occupied or replaces(target):
        return
    if is_result(target):
        raise UsageError(
            f"{target} already holds a result: choose another folder or give overwrite=True"
        )
    if _has_summary(target):
        other = printable_path(Path(_list_other_files(target)[0]))
        raise UsageError(
            f"{target} also holds {other}, which was not written by vitscope: move it away or "
            "choose another folder"
        )
    raise UsageError(
        f"{target} is not empty and was not written by vitscope: choose another folder"
    )


def check_writable(folder: Path) -> None:
    """Raise an error early for a target that cannot be written."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        name = printable_path(folder)
        where = printable_path(existing)
        raise UsageError(f"{name} cannot be written to: no permission for {where}")


def check_file_target(target: Path, replaces: Replaces) -> None:
    """Refuse a file that is there and may not be replaced, or that cannot be written."""
    name = printable_path(target)
    check_target(target.absolute().parent, lambda _: True)
    try:
        if target.is_dir():
            raise UsageError(f"{name} is a folder: give a file to write")
        refused = _is_there(target) and not (target.is_file() and replaces(target))
    except OSError as error:
        raise UsageError(f"{name} cannot be written to: {error.strerror}") from None
    if refused:
        raise UsageError(
            f"{name} is already there and is not replaced: choose another file, or give "
            "overwrite=True if vitscope wrote it and it has not been changed since"
        )


def replace_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically: readers see either the old or the new one."""
    with staged_file(path, replaces=lambda _: True) as staging:
        write_json(staging, content)


def open_to_readers(path: Path) -> None:
    """Give what a library wrote through a private temporary file the default permissions."""
    # Reading the umask would mean changing it, for all threads of the process. A new file shows it
    # instead.
    probe = Path(f"{path}.{token_hex(4)}")
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o777)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink()
    path.chmod(mode if path.is_dir() else mode & 0o666)


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _move_into_place(staging: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        staging.replace(target)
        return
    with new_beside(target, "old", folder=True) as attic:
        try:
            target.rename(attic / "old")
            staging.rename(target)
        except BaseException:
            if not target.exists():
                (attic / "old").rename(target)
            raise
        finally:
            if target.exists():
                shutil.rmtree(attic)


def flush(path: Path) -> None:
    """Flush a file or folder to the disk."""
    posix = os.name == "posix"
    if path.is_dir() and not posix:  # folders cannot be opened there
        return
    # Windows needs write access to flush; POSIX must not, as hard-linked files may belong to
    # others.
    descriptor = os.open(path, os.O_RDONLY if posix else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def made_parents(target: Path) -> Iterator[None]:
    """Make the parent folders of a target; those left empty are removed afterwards."""
    with plain_disk_errors(target):
        missing = [parent for parent in target.parents if not parent.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        for parent in missing:
            flush(parent.parent)
    try:
        yield
    finally:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()  # not empty: it stays


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file that never changes; copy it if that is impossible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # another file system, or one without hard links
        with source.open("rb") as old, target.open("xb") as new:
            shutil.copyfileobj(old, new)
