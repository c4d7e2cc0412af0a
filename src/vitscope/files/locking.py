"""Having a folder to oneself."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vitscope.errors import UsageError, VitscopeError
from vitscope.files.printable import printable_path

_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}

# Whoever may write beside a result may have put anything under the lock's name: a link is not
# followed, nothing is emptied, and a pipe does not keep this process waiting.
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@contextmanager
def held_alone(folder: Path, lock: str, shown: Path | None = None) -> Iterator[None]:
    """Have a folder to oneself; a process that dies lets go of it."""
    name = printable_path(shown or folder)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / lock, _FLAGS, 0o666)
            stack.callback(os.close, descriptor)
            _check_regular(folder / lock)
            _lock(descriptor)
            # Whoever had it may have removed it meanwhile: this lock then is of no folder.
            gone = not os.path.samestat(os.fstat(descriptor), (folder / lock).lstat())
        except (BlockingIOError, FileNotFoundError):
            gone = True
        except OSError as error:
            _check_regular(folder / lock)
            if error.errno in _WITHOUT_LOCKS:
                raise VitscopeError(
                    f"{name} is on a file system without locks, so two runs could not be "
                    "kept apart: choose another folder"
                ) from error
            raise VitscopeError(f"{name} cannot be written to: {error.strerror}") from error
        if gone:
            raise UsageError(
                f"another run is at work in {name}: wait for it, or choose another folder"
            )
        yield


def _check_regular(path: Path) -> None:
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise UsageError(f"{printable_path(path)} is not a regular file: remove it")


def _lock(descriptor: int) -> None:
    if os.name == "posix":  # the others have no lock that goes with its process
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
