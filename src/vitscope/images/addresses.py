"""Image addresses: where an image is, and how to read it; sent to other processes."""

import os
import stat
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from vitscope.errors import ImageReadError, UsageError
from vitscope.files.printable import printable_path
from vitscope.images.decoding import image_id
from vitscope.images.in_memory import HeldImage, Items
from vitscope.images.parquet_rows import ParquetRow
from vitscope.images.paths import name_folder
from vitscope.images.stores import StoredObject, plain_read_errors, read_file, read_range
from vitscope.images.tar_shards import TarMember

_END_BYTES = 4096

ImageAddress = Path | StoredObject | TarMember | ParquetRow | HeldImage
"""Location of an image: a file, an object in a store, a member of an archive, a row of a table, or
an object in memory."""

Images = str | ImageAddress | Image.Image | Iterable[Any] | Items | Dataset[Any]
"""Sources of images: a path or URL, the result of an earlier search, an object that holds images
(docs/data.md), or several of these."""


def read_image(address: ImageAddress) -> bytes:
    """Read an image's bytes."""
    return read_file(address) if isinstance(address, Path) else address.read()


def size_of(address: ImageAddress) -> int | None:
    """Size of an image in bytes, if known without reading it."""
    if isinstance(address, (StoredObject, TarMember)):
        return address.size
    with suppress(OSError, ValueError):
        return address.stat().st_size if isinstance(address, Path) else None
    return None


def printable_address(address: ImageAddress) -> str:
    r"""An address as printable text without secrets."""
    return printable_path(address) if isinstance(address, Path) else address.name


def name_set(addresses: Iterable[ImageAddress]) -> str:
    """Name of the folder that has all images; empty if there is none."""
    local, others = set[str](), set[str]()
    for address in addresses:
        if isinstance(address, Path):
            local.add(os.path.dirname(address))  # noqa: PTH120 - of a million paths
        else:
            others.add(address.name)
    return name_folder([*(f"{printable_path(Path(one).absolute())}/" for one in local), *others])


def image_stem(address: ImageAddress) -> str:
    """Name of an image without folder and extension; its mask has the same."""
    if isinstance(address, (ParquetRow, HeldImage)):
        raise UsageError(
            f"{address.name} has no name that a mask could be matched with: give masks with files "
            "or tar archives"
        )
    if isinstance(address, Path):
        return address.stem
    return PurePosixPath(address.member if isinstance(address, TarMember) else address.shown).stem


def find_copies(addresses: Sequence[ImageAddress]) -> list[list[int]]:
    """Find images of this machine with the same bytes: by size, by last bytes, then by all."""
    groups = [list(range(len(addresses)))]
    for last in (0, _END_BYTES, sys.maxsize):
        groups = [alike for group in groups for alike in _split(group, addresses, last)]
    return groups


def _split(places: list[int], addresses: Sequence[ImageAddress], last: int) -> list[list[int]]:
    alike: dict[tuple[int, str], list[int]] = {}
    for place in places:
        with suppress(ImageReadError):  # the run will report it
            file, start, size = _locate(addresses[place])
            length = min(size, last)
            data = read_range(file, start + size - length, length) if length else b""
            if size:
                alike.setdefault((size, image_id(data)), []).append(place)
    return [group for group in alike.values() if len(group) > 1]


def _locate(address: ImageAddress) -> tuple[Path, int, int]:
    # File, first byte and number of bytes, none of what is elsewhere.
    if isinstance(address, Path):
        with plain_read_errors(address):
            status = address.stat()
            return address, 0, status.st_size if stat.S_ISREG(status.st_mode) else 0
    if isinstance(address, TarMember) and isinstance(address.archive, Path):
        return address.archive, address.offset, address.size or 0
    return Path(), 0, 0
