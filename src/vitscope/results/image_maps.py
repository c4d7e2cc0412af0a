"""An image as the model saw it with its maps, in one file of arrays; reading runs no code."""

import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from vitscope.errors import ResultError
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.json_files import write_json
from vitscope.files.printable import printable_path
from vitscope.files.reading import read_bounded
from vitscope.files.storage import link_or_copy
from vitscope.files.typed_json import read_typed_file
from vitscope.layout import TokenLayout
from vitscope.results.schema_maps import KeptImage, MapSummary
from vitscope.results.vocabulary import ROW_MAPS, MapKind
from vitscope.row_maps import RowMaps
from vitscope.short_repr import ShortRepr

MAP_NAME = re.compile(r"[a-z][a-z0-9_]*")
"""Names of maps, which are also names of arrays."""

_DAMAGE = (
    *(EOFError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError, TypeError),
    *(ValueError, zipfile.BadZipFile, zlib.error),
)
"""Exceptions of numpy and zipfile on a damaged or foreign archive of arrays."""

K = TypeVar("K", bound=KeptImage)
_ABOUT = "image.json"
_BY_LAYER = "heads_by_layer"
_PLACES = {"values": "maps", "heads": "heads", "error": "errors"}
"""Where the arrays of maps are in a file, by field of `ImageMap`."""
_MAX_BYTES = 2**27  # of a file, and of its arrays; 4,096 x 4,096 pixels take 48 MiB


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ImageMap(ShortRepr):
    """One map of an image: a number for each patch, on the patch grid."""

    about: MapSummary
    values: Float[np.ndarray, "row column"]
    # the same per attention head; None for a map without heads
    heads: Float[np.ndarray, "head row column"] | None = None
    error: Float[np.ndarray, "row column"] | None = None  # standard errors, for a map with any


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ImageMaps(ShortRepr):
    """An image and its maps by name; indexed by a name it gives the numbers of one."""

    # the image as the model saw it, before normalisation
    image: UInt8[np.ndarray, "height width 3"]
    maps: Mapping[str, ImageMap]
    # attention on the patches in every analysable layer, if it was kept
    heads_by_layer: Float[np.ndarray, "layer head row column"] | None = None

    def __getitem__(self, name: str) -> Float[np.ndarray, "row column"]:
        return self.maps[name].values

    @property
    def grid(self) -> tuple[int, int]:
        """Patches as (rows, columns)."""
        rows, columns = next(iter(self.maps.values())).values.shape
        return rows, columns

    @property
    def shown(self) -> dict[str, ImageMap]:
        """The maps that figures show: of raw and centred shares the centred ones alone."""
        raw = {"share"} if "centred_share" in self.maps else set()
        return {name: one for name, one in self.maps.items() if name not in raw}


def place_map(
    kind: MapKind,
    layout: TokenLayout,
    values: Float[Tensor, " token"],
    *,
    heads: Float[Tensor, "head token"] | None = None,
    error: Float[Tensor, " token"] | None = None,
    total: float | None = None,
    target: str | None = None,
) -> ImageMap:
    """A map of all tokens on the patch grid; what other tokens have is summed."""
    # A pooling head's layout may omit leading tokens.
    unread = len(values) - layout.num_tokens
    places = {n: slice(unread + p.start, unread + p.stop) for n, p in layout.groups.items()}
    patches = places.pop("patches")
    if unread:
        places["unread"] = slice(0, unread)

    def arrange(tokens: Tensor | None) -> np.ndarray | None:
        if tokens is None:
            return None
        grid = tokens[..., patches].reshape(*tokens.shape[:-1], *layout.grid)
        return np.asarray(grid.detach().cpu())

    arranged = arrange(values)
    assert arranged is not None
    about = MapSummary(
        **{one.name: getattr(kind, one.name) for one in fields(MapKind)},
        target=target,
        unplaced={name: float(values[place].sum()) for name, place in places.items()},
        total=total,
    )
    return ImageMap(about=about, values=arranged, heads=arrange(heads), error=arrange(error))


def place_row_maps(maps: RowMaps, image: int = 0) -> dict[str, ImageMap]:
    """The maps of one image's attention row, by name."""
    attention, share = maps.attention[image], maps.share[image]
    placed = {
        "attention": (attention.mean(dim=0), attention),
        "contribution_norm": (maps.contribution_norm[image], None),
        "share": (share, maps.head_share[image]),
    }
    found = {
        name: place_map(ROW_MAPS[name], maps.layout, values, heads=heads)
        for name, (values, heads) in placed.items()
    }
    # The shares of all tokens, skip and bias sum to 1.
    rest = "bias" if maps.layout.query is None else "skip_and_bias"
    unplaced = {**found["share"].about.unplaced, rest: 1 - float(share.sum())}
    return found | {"share": with_unplaced(found["share"], unplaced)}


def with_unplaced(one: ImageMap, unplaced: Mapping[str, float]) -> ImageMap:
    """A map that leaves these out."""
    return replace(one, about=replace(one.about, unplaced=dict(unplaced)))


def write_maps(path: Path, maps: ImageMaps) -> dict[str, MapSummary]:
    """Write an image and its maps; what the file does not say of each is returned."""
    arrays: dict[str, Any] = {"image": maps.image, _BY_LAYER: maps.heads_by_layer}
    for name, one in maps.maps.items():
        arrays |= {f"{place}/{name}": getattr(one, field) for field, place in _PLACES.items()}
    known = {name: array for name, array in arrays.items() if array is not None}
    with plain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **known)
    return {name: one.about for name, one in maps.maps.items()}


def name_maps(index: int, place: str = "maps") -> str:
    """File of an image's maps within its result."""
    return f"{place}/{index:04d}.npz"


def keep_maps(folder: Path, index: int, file: Path, place: str = "maps") -> str:
    """Take over the file of an image's maps; its new name."""
    name = name_maps(index, place)
    if not file.is_file():  # flushing a pipe would never end
        raise ResultError(
            f"{printable_path(file)} cannot be read: it is missing, or not a regular file"
        )
    with plain_disk_errors(folder):
        link_or_copy(file.resolve(), folder / name)
    return name


def write_kept(part: Path, image: KeptImage) -> None:
    """Write what a part says of its image, besides its maps."""
    write_json(part / _ABOUT, asdict(image))


def keep_parts(kind: type[K], folder: Path, parts: Iterable[Path]) -> tuple[K, ...]:
    """Take over the images that parts have kept, in their order, with their maps."""
    filled = (part for part in parts if (part / _ABOUT).exists())
    return tuple(
        replace(
            read_typed_file(kind, part / _ABOUT),
            file=keep_maps(folder, index, part / name_maps(0)),
        )
        for index, part in enumerate(filled)
    )


def read_maps(path: Path, about: Mapping[str, MapSummary]) -> ImageMaps:
    """Read an image and the maps that its result says it has."""
    try:
        data = read_bounded(path, _MAX_BYTES)
        with zipfile.ZipFile(BytesIO(data)) as archive:
            _check_members(archive)
        with np.load(BytesIO(data), allow_pickle=False) as arrays:
            _check_names(about, arrays.files)
            found = {name: arrays[name] for name in arrays.files}
        _check(found)
    except _DAMAGE as error:
        raise ResultError(f"{printable_path(path)} cannot be read as maps: {error}") from None
    maps = {}
    for name, one in about.items():
        placed: dict[str, Any] = {f: found.get(f"{place}/{name}") for f, place in _PLACES.items()}
        maps[name] = ImageMap(about=one, **placed)
    return ImageMaps(image=found["image"], maps=maps, heads_by_layer=found.get(_BY_LAYER))


def _check_members(archive: zipfile.ZipFile) -> None:
    # Claimed sizes may be too small: numpy reads at once what is no array, and zipfile unpacks at
    # once what is not deflated.
    members = archive.infolist()
    if sum(member.file_size for member in members) > _MAX_BYTES:
        raise ValueError(f"its arrays take more than {_MAX_BYTES >> 20} MiB")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("expected arrays that are stored or deflated")
        with archive.open(member) as file:
            np.lib.format.read_magic(file)


def _check_names(names: Iterable[str], found: Iterable[str]) -> None:
    known = {"image", _BY_LAYER}
    for name in names:
        if not MAP_NAME.fullmatch(name):
            raise ValueError(f"{name[:60]!r} is no name of a map")
        known |= {f"{place}/{name}" for place in _PLACES.values()}
    if missing := {"image", *(f"maps/{name}" for name in names)} - {*found}:
        raise ValueError(f"{min(missing)} is missing")
    if unknown := {*found} - known:
        raise ValueError(f"{min(unknown)[:60]!r} is none of its arrays")


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    image = arrays["image"]
    maps = {name: array for name, array in arrays.items() if name != "image"}
    grid = next(array.shape for name, array in maps.items() if name.startswith("maps/"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or len(grid) != 2:
        raise ValueError("expected an image of red, green and blue, and maps of rows and columns")
    if not all(n and size and size % n == 0 for n, size in zip(grid, image.shape, strict=False)):
        raise ValueError("expected an image of whole patches")
    heads = next((a.shape[:1] for name, a in maps.items() if name.startswith("heads/")), ())
    for name, found in maps.items():
        shape = heads + grid if name.startswith("heads/") else grid
        if name == _BY_LAYER:
            shape = (*found.shape[:-2], *grid) if found.ndim == 4 and found.size else ()
        if found.dtype.kind != "f" or found.shape != shape or not np.isfinite(found).all():
            raise ValueError(f"expected finite numbers of shape {shape} in {name}")
