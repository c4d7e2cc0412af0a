"""What is being written beside its place, and what a killed process left there.

What is being written is locked by whoever writes it, and a lock goes with its process: what nobody
holds was left. Where a file system knows no locks nothing is taken for left or removed.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Literal, get_args

from vitscope.files.disk_errors import plain_disk_errors

Purpose = Literal["old", "partial"]
_RANDOM_BYTES = 8
_RANDOM = f"[0-9a-f]{{{2 * _RANDOM_BYTES}}}"


@contextmanager
def new_beside(target: Path, purpose: Purpose, *, folder: bool) -> Iterator[Path]:
    """A new folder or file beside a place, private and locked while the context lasts."""
    while True:
        path = target.parent / f"{_prefix(target, purpose)}{token_hex(_RANDOM_BYTES)}"
        with plain_disk_errors(target):
            if folder:
                path.mkdir(mode=0o700)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        descriptor = _hold(path)
        if descriptor is not None or path.exists():
            break  # otherwise another process took it for left, before it was locked
    try:
        yield path
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_leftovers(target: Path) -> None:
    """Remove what killed processes left beside a place.

    What one had just moved out of the way comes back, if nothing is in its place.
    """
    target = target.resolve()
    for purpose in get_args(Purpose):
        ours = re.compile(re.escape(_prefix(target, purpose)) + _RANDOM)
        with suppress(OSError):  # no folder yet, or one that cannot be listed: the writing will say
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
    # None where it is gone, another holds it, or there are no locks.
    if os.name != "posix":
        return None
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _prefix(target: Path, purpose: Purpose) -> str:
    return f".{target.name[:100]}.{purpose}-"
