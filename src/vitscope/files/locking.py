"""Locks that end with their process, on folders in use and on unfinished files beside a target."""

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Literal, get_args

from vitscope.errors import UsageError, VitscopeError
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.printable import printable_path

Purpose = Literal["old", "partial"]
_RANDOM_BYTES = 8
_RANDOM = f"[0-9a-f]{{{2 * _RANDOM_BYTES}}}"

_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}

# Anyone who can write beside a result may have put anything under the lock's name, so links are not
# followed, nothing is truncated, and a pipe does not block.
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@contextmanager
def held_alone(folder: Path, lock: str, shown: Path | None = None) -> Iterator[None]:
    """Lock a folder exclusively; the lock is released if the process dies."""
    name = printable_path(shown or folder)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.callback(os.close, _open_locked(folder / lock, _FLAGS))
            _check_regular(folder / lock)
        except (BlockingIOError, FileNotFoundError):
            raise UsageError(
                f"another run is using {name}: wait for it, or choose another folder"
            ) from None
        except OSError as error:
            _check_regular(folder / lock)
            if error.errno in _WITHOUT_LOCKS:
                raise VitscopeError(
                    f"{name} is on a file system without locks, so two runs could not be "
                    "kept apart: choose another folder"
                ) from error
            raise VitscopeError(f"{name} cannot be written to: {error.strerror}") from error
        yield


def _check_regular(path: Path) -> None:
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise UsageError(f"{printable_path(path)} is not a regular file: remove it")


def _open_locked(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags, 0o666)
    try:
        if os.name == "posix":  # no other system has a lock that ends with its process
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last owner may have removed it meanwhile: this lock would then be on a deleted file.
        if not os.path.samestat(os.fstat(descriptor), path.lstat()):
            raise FileNotFoundError(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def new_beside(target: Path, purpose: Purpose, *, folder: bool) -> Iterator[Path]:
    """Make a private, locked folder or file beside a target for the duration of the context."""
    while True:
        path = target.parent / f"{_prefix(target, purpose)}{token_hex(_RANDOM_BYTES)}"
        with plain_disk_errors(target):
            if folder:
                path.mkdir(mode=0o700)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        descriptor = _hold(path)
        if descriptor is not None or path.exists():
            break  # otherwise another process took it for a leftover before it was locked
    try:
        yield path
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_leftovers(target: Path) -> None:
    """Remove what killed processes left beside a target; a folder just moved aside is restored."""
    target = target.resolve()
    for purpose in get_args(Purpose):
        ours = re.compile(re.escape(_prefix(target, purpose)) + _RANDOM)
        with suppress(OSError):  # no such folder, or not listable: the write will report it
            for path in list(target.parent.iterdir()):
                if ours.fullmatch(path.name) and not path.is_symlink():
                    _remove_if_left(path, target)


def _remove_if_left(path: Path, target: Path) -> None:
    held = _hold(path)
    if held is None:
        return
    try:
        if (path / "old").exists() and not os.path.lexists(target):
            (path / "old").rename(target)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    finally:
        os.close(held)


def _hold(path: Path) -> int | None:
    # None if it is gone, locked by another process, or locks are not supported.
    with suppress(OSError):
        return _open_locked(path, os.O_RDONLY) if os.name == "posix" else None
    return None


def _prefix(target: Path, purpose: Purpose) -> str:
    return f".{target.name[:100]}.{purpose}-"
