"""Find local images with identical bytes before decoding: by size, by last bytes, then by all."""

import stat
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

from vitscope.errors import ImageReadError
from vitscope.images.addresses import ImageAddress, read_image
from vitscope.images.decoding import image_id
from vitscope.images.stores import plain_read_errors, read_range
from vitscope.images.tar_shards import TarMember

_END_BYTES = 4096


def find_copies(addresses: Sequence[ImageAddress]) -> list[list[int]]:
    """Find images on this machine that have the same bytes."""
    groups = [list(range(len(addresses)))]
    for tell in (_tell_size, _tell_end, _tell_bytes):
        groups = [alike for group in groups for alike in _split(group, addresses, tell)]
    return groups


def _split(
    places: Sequence[int],
    addresses: Sequence[ImageAddress],
    tell: Callable[[ImageAddress], Hashable | None],
) -> Iterator[list[int]]:
    alike: dict[Hashable, list[int]] = {}
    for place in places:
        try:
            told = tell(addresses[place])
        except ImageReadError:
            continue  # the run will report it
        if told is not None:
            alike.setdefault(told, []).append(place)
    yield from (group for group in alike.values() if len(group) > 1)


def _locate(address: ImageAddress) -> tuple[Path, int, int] | None:
    # File, first byte and number of bytes.
    if isinstance(address, Path):
        with plain_read_errors(address):
            status = address.stat()
            return (address, 0, status.st_size) if stat.S_ISREG(status.st_mode) else None
    if isinstance(address, TarMember) and isinstance(address.archive, Path):
        return address.archive, address.offset, address.size or 0
    return None


def _tell_size(address: ImageAddress) -> int | None:
    found = _locate(address)
    return None if found is None else found[2] or None


def _tell_end(address: ImageAddress) -> str | None:
    found = _locate(address)
    if found is None:
        return None
    file, start, size = found
    length = min(size, _END_BYTES)
    return image_id(read_range(file, start + size - length, length))


def _tell_bytes(address: ImageAddress) -> str:
    return image_id(read_image(address))
