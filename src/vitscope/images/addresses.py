"""Where an image lies, and how its bytes are had from there.

An address is a few words, which go to another process or machine by the hundred thousand; nothing
is open in it, and whoever has it can read.
"""

from pathlib import Path, PurePosixPath

from vitscope.errors import UsageError
from vitscope.files.printable import printable_path
from vitscope.images.parquet_rows import ParquetRow
from vitscope.images.stores import StoredObject, read_file
from vitscope.images.tar_shards import TarMember

ImageAddress = Path | StoredObject | TarMember | ParquetRow
"""Where an image lies: a file, an object in a store, a member of an archive, a row of a table."""

Source = str | ImageAddress
"""What images are looked for in: a name as a person gives it, or what an earlier search found."""


def read_image(address: ImageAddress) -> bytes:
    """Read an image's bytes from where they lie.

    Args:
        address: Where.

    Returns:
        Its bytes.

    Raises:
        ImageReadError: If they cannot be had or are too many.
    """
    return read_file(address) if isinstance(address, Path) else address.read()


def size_of(address: ImageAddress) -> int | None:
    """How many bytes an image has, as far as that is known without reading it.

    Args:
        address: Where it lies.

    Returns:
        Its size; None where it is not known.
    """
    if isinstance(address, ParquetRow):
        return None
    if not isinstance(address, Path):
        return address.size
    try:
        return address.stat().st_size
    except (OSError, ValueError):
        return None


def printable_address(address: ImageAddress) -> str:
    r"""An address as text that any file format and any terminal takes, and that holds no secret.

    Args:
        address: Any address; the names in it may hold bytes that are not UTF-8, and control
            characters.

    Returns:
        The names with such bytes written as \xNN and what cannot be printed as Python escapes it;
        a member or a row stands behind its file and two colons.
    """
    return printable_path(address) if isinstance(address, Path) else address.name


def image_stem(address: ImageAddress) -> str:
    """What an image is called, without folder and extension: what its mask is called too.

    Args:
        address: Where it lies.

    Returns:
        The stem of its file's name, or the key of its sample in an archive.

    Raises:
        UsageError: If it is the row of a table, which has no name.
    """
    if isinstance(address, ParquetRow):
        raise UsageError(
            f"{address.name} is a row of a table and has no name that a mask could be called by: "
            "give masks with files or tar archives"
        )
    if isinstance(address, TarMember):
        return address.key
    return (address if isinstance(address, Path) else PurePosixPath(address.shown)).stem
