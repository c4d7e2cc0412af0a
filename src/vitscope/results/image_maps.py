"""An image as the model saw it with its maps, in one file of arrays; reading runs no code."""

import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from vitscope.errors import ResultError
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.printable import printable_path
from vitscope.files.reading import read_bounded
from vitscope.short_repr import ShortRepr

_DAMAGE = (
    *(EOFError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError, TypeError),
    *(ValueError, zipfile.BadZipFile, zlib.error),
)
"""Exceptions of numpy and zipfile on a damaged or foreign archive of arrays."""

_MAX_BYTES = 2**27  # of a file, and of its arrays; 4,096 x 4,096 pixels take 48 MiB

_OPTIONAL = ("centred_share", "head_centred_share")
"""Maps that exist only for images centred on means."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ImageMaps(ShortRepr):
    """An image and its maps: numbers per patch, on the patch grid."""

    # the image as the model saw it, before normalisation
    image: UInt8[np.ndarray, "height width 3"]
    # attention of the [CLS] query on each patch, mean over heads
    attention: Float[np.ndarray, "row column"]
    head_attention: Float[np.ndarray, "head row column"]  # the same per head, a_h[i]
    # ‖c_i‖, the norm of each patch's contribution
    contribution_norm: Float[np.ndarray, "row column"]
    share: Float[np.ndarray, "row column"]  # ⟨c_i, r⟩ / ‖r‖², its signed share of the row
    # the same per head; sums to `share` over heads
    head_share: Float[np.ndarray, "head row column"]
    # ⟨c_i − m, r − mean r⟩ / ‖r − mean r‖², where m is mean c_patches divided by the number of
    # patches, so that it sums to the patches' centred share; None without means or where r equals
    # its mean
    centred_share: Float[np.ndarray, "row column"] | None = None
    # the same per head, with m divided by the number of heads; sums to `centred_share`
    head_centred_share: Float[np.ndarray, "head row column"] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Patches as (rows, columns)."""
        rows, columns = self.attention.shape
        return rows, columns


def write_maps(path: Path, maps: ImageMaps) -> None:
    """Write an image and its maps."""
    arrays = {field.name: getattr(maps, field.name) for field in fields(ImageMaps)}
    with plain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **{name: a for name, a in arrays.items() if a is not None})


def read_maps(path: Path) -> ImageMaps:
    """Read an image and its maps."""
    try:
        data = read_bounded(path, _MAX_BYTES)
        _check_sizes(data)
        with np.load(BytesIO(data), allow_pickle=False) as arrays:
            names = [field.name for field in fields(ImageMaps)]
            optional = {name for name in _OPTIONAL if name not in arrays}
            found = {name: arrays[name] for name in names if name not in optional}
        _check(found)
    except _DAMAGE as error:
        raise ResultError(f"{printable_path(path)} cannot be read as maps: {error}") from None
    return ImageMaps(**found)


def _check_sizes(data: bytes) -> None:
    # Sizes from the arrays' headers, which decide how much memory is allocated.
    total = 0
    with zipfile.ZipFile(BytesIO(data)) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError("expected arrays of version 1.0")
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            total += math.prod(shape) * dtype.itemsize
    if total > _MAX_BYTES:
        raise ValueError(f"its arrays take more than {_MAX_BYTES >> 20} MiB")


def _check(maps: Mapping[str, np.ndarray]) -> None:
    image, grid = maps["image"], maps["attention"].shape
    heads = maps["head_attention"].shape[:1]
    wanted = {"attention": grid, "contribution_norm": grid, "share": grid}
    wanted |= {"head_attention": heads + grid, "head_share": heads + grid}
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or len(grid) != 2:
        raise ValueError("expected an image of red, green and blue, and maps of rows and columns")
    if not all(n and size and size % n == 0 for n, size in zip(grid, image.shape, strict=False)):
        raise ValueError("expected an image of whole patches")
    wanted |= {"centred_share": grid, "head_centred_share": heads + grid}
    for name, shape in wanted.items():
        if (found := maps.get(name)) is None:
            continue
        if found.dtype.kind != "f" or found.shape != shape or not np.isfinite(found).all():
            raise ValueError(f"expected finite numbers of shape {shape} in {name}")
