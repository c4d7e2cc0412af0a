"""Files of a saved result as bytes: regular files alone, and no more of one than was expected."""

import os
import stat
from pathlib import Path

from vitscope.errors import ResultError
from vitscope.files.printable import printable_path


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a file that may come from anywhere: a pipe would wait, a device might never end.

    Args:
        path: The file.
        max_bytes: Bytes that it may have.

    Returns:
        Its bytes.

    Raises:
        ResultError: If it cannot be read, is no regular file or is larger.
    """
    try:
        # Without waiting for whoever might write into a pipe.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ResultError(f"{printable_path(path)} cannot be read: not a regular file")
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        name = printable_path(path.parent)
        raise ResultError(f"{name} is not a vitscope result: {path.name} is missing") from None
    except OSError as error:
        raise ResultError(f"{printable_path(path)} cannot be read: {error.strerror}") from None
    if len(data) > max_bytes:
        raise ResultError(
            f"{printable_path(path)} cannot be read: it has more than {max_bytes >> 20} MiB, and "
            "vitscope writes less"
        )
    return data
