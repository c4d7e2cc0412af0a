"""Where a picture lies, and how its bytes are had from there."""

import stat
from pathlib import Path

from vitscope.errors import ImageReadError
from vitscope.files.storage import printable_path

MAX_FILE_BYTES = 2**31
"""Largest file that is read: more than the largest picture that is decoded takes uncompressed."""

PictureAddress = Path
"""Where a picture lies: a file."""

Source = str | PictureAddress
"""What pictures are looked for in: a name as a person gives it, or what an earlier search found."""


def read_picture(address: PictureAddress) -> bytes:
    """Read a picture's bytes from where they lie.

    Args:
        address: Where.

    Returns:
        Its bytes.

    Raises:
        ImageReadError: If they cannot be had or are too many.
    """
    return read_file(address)


def printable_address(address: PictureAddress) -> str:
    r"""An address as text that any file format and any terminal takes.

    Args:
        address: Any address; the names in it may hold bytes that are not UTF-8, and control
            characters.

    Returns:
        The names with such bytes written as \xNN and what cannot be printed as Python escapes it.
    """
    return printable_path(address)


def read_file(path: Path) -> bytes:
    """Read a picture's file, whatever is called one.

    Args:
        path: The file.

    Returns:
        Its bytes.

    Raises:
        ImageReadError: If it cannot be opened, is no regular file or is too large.
    """
    try:
        status = path.stat()
        # A pipe or a device may keep whoever opens it waiting, or never end.
        if not stat.S_ISREG(status.st_mode):
            raise ImageReadError("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageReadError(f"too large: {status.st_size} bytes, more than {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ImageReadError(f"cannot be opened: {error.strerror or error}") from error
    except ValueError as error:  # A null character in the path.
        raise ImageReadError(f"cannot be opened: {error}") from error
