"""Where an image lies, and how its bytes are read from there.

An address is a few words, which go to another process or machine by the hundred thousand; nothing
is open in it, and whoever has it can read.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from vitscope.errors import UsageError
from vitscope.files.printable import printable_path
from vitscope.images.in_memory import HeldImage, Items
from vitscope.images.parquet_rows import ParquetRow
from vitscope.images.stores import StoredObject, read_file
from vitscope.images.tar_shards import TarMember

ImageAddress = Path | StoredObject | TarMember | ParquetRow | HeldImage
"""Where an image lies: a file, an object in a store, a member of an archive, a row of a table, or
in the caller's hands."""

Images = str | ImageAddress | Image.Image | Iterable[Any] | Items | Dataset[Any]
"""What images are looked for in: a path or URL, what an earlier search found, an object that holds
images (docs/data.md), or several of these."""


def read_image(address: ImageAddress) -> bytes:
    """Read an image's bytes from where they lie."""
    return read_file(address) if isinstance(address, Path) else address.read()


def size_of(address: ImageAddress) -> int | None:
    """How many bytes an image has, as far as that is known without reading it."""
    if isinstance(address, (ParquetRow, HeldImage)):
        return None
    if not isinstance(address, Path):
        return address.size
    try:
        return address.stat().st_size
    except (OSError, ValueError):
        return None


def printable_address(address: ImageAddress) -> str:
    r"""An address as text that any file format and any terminal takes, and that holds no secret."""
    return printable_path(address) if isinstance(address, Path) else address.name


def image_stem(address: ImageAddress) -> str:
    """What an image is called, without folder and extension: what its mask is called too."""
    if isinstance(address, (ParquetRow, HeldImage)):
        raise UsageError(
            f"{address.name} has no name that a mask could be matched with: give masks with files "
            "or tar archives"
        )
    if isinstance(address, TarMember):
        return address.key
    return (address if isinstance(address, Path) else PurePosixPath(address.shown)).stem
