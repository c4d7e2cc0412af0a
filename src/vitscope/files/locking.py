"""Having a folder to oneself."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vitscope.errors import UsageError, VitscopeError
from vitscope.files.storage import printable_path

_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextmanager
def held_alone(folder: Path, lock: str, shown: Path | None = None) -> Iterator[None]:
    """Have a folder to oneself; a process that dies lets go of it.

    Args:
        folder: The folder; made where it is not there.
        lock: Name of a file in it that stands for it.
        shown: What the folder is called in errors; itself if None.

    Yields:
        Nothing.

    Raises:
        UsageError: If another process has it.
        VitscopeError: If it cannot be written to.
    """
    name = printable_path(shown or folder)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / lock).open("w"))
            _lock(file.fileno())
            # Whoever had it may have removed it meanwhile: this lock then is of no folder.
            gone = not os.path.samestat(os.fstat(file.fileno()), (folder / lock).stat())
        except (BlockingIOError, FileNotFoundError):
            gone = True
        except OSError as error:
            if error.errno in _WITHOUT_LOCKS:
                raise VitscopeError(
                    f"{name} lies on a file system that knows no locks, so two runs could not be "
                    "told apart: choose a folder elsewhere"
                ) from error
            raise VitscopeError(f"{name} cannot be written to: {error.strerror}") from error
        if gone:
            raise UsageError(
                f"another run is at work in {name}: wait for it, or choose another folder"
            )
        yield


def _lock(descriptor: int) -> None:
    if os.name == "posix":  # the others have no lock that goes with its process
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
