"""Files that are written whole or not at all."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vitscope.errors import ResultError, UsageError, VitscopeError

MARKER = "summary.json"
"""The file that makes a folder a result: written last, so a folder that has it is complete."""


@contextmanager
def staged_folder(target: Path, *, overwrite: bool = False, marker: str = MARKER) -> Iterator[Path]:
    """Write a folder beside its place and move it there when it is whole.

    Args:
        target: Where the folder shall be.
        overwrite: Whether what was written there earlier is replaced; anything else never is.
        marker: The file by which what was written earlier is known.

    Yields:
        The folder to write into; it is removed if the body raises.

    Raises:
        VitscopeError: If the disk does not take it.
    """
    check_target(target, overwrite=overwrite, marker=marker)
    with _plain_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        try:
            yield staging
            open_to_readers(staging)
            _move_into_place(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder that is removed if the body raises, and otherwise the caller's to remove.

    Yields:
        The folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="vitscope-"))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_target(target: Path, *, overwrite: bool, marker: str = MARKER) -> None:
    """Refuse a folder that something else lives in.

    Args:
        target: Where a folder shall be written.
        overwrite: Whether what was written there earlier may be replaced.
        marker: The file by which it is known.

    Raises:
        UsageError: If the folder is not empty and may not be replaced.
    """
    existing = next(place for place in (target, *target.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise UsageError(f"{existing} is a file: give a folder to write the result into")
    if existing != target:
        return
    if not any(target.iterdir()):
        return
    if not (target / marker).is_file():
        raise UsageError(
            f"{target} is not empty and was not written by vitscope: choose another folder"
        )
    if not overwrite:
        raise UsageError(
            f"{target} already holds a result: choose another folder or add --overwrite"
        )


def write_json(path: Path, content: Any) -> None:
    """Write JSON that any reader takes: NaN and infinities become null.

    Args:
        path: File to write.
        content: Dictionaries, sequences, strings, numbers.
    """
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    """Read a JSON file of a result.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        ResultError: If it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(
            f"{path.parent} is not a vitscope result: {path.name} is missing"
        ) from None
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} cannot be read: {error}") from None


def printable_path(path: Path) -> str:
    r"""A path as text that any file format takes.

    Args:
        path: Any path; its name may hold bytes that are not UTF-8.

    Returns:
        The path with such bytes written as \xNN.
    """
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def _plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def open_to_readers(path: Path) -> None:
    """Give a file or folder the permissions that new ones have here.

    Libraries that write through temporary files leave theirs private to the user.

    Args:
        path: The file or folder.
    """
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _move_into_place(staging: Path, target: Path) -> None:
    if target.exists() and any(target.iterdir()):
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
        target.rename(old / target.name)
        staging.rename(target)
        shutil.rmtree(old)
    else:
        staging.replace(target)


@contextmanager
def _plain_disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VitscopeError(f"cannot write {target}: {reason}; nothing was left behind") from error
