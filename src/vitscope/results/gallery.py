"""The gallery of an audit: a sample of its images, kept with their maps from its own pass."""

import math
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from vitscope.errors import ImageReadError
from vitscope.files.json_files import write_json
from vitscope.files.reading import open_table
from vitscope.files.tensor_files import read_tensors, write_tensors
from vitscope.files.typed_json import read_typed_file
from vitscope.images.addresses import ImageAddress, read_image
from vitscope.images.decoding import decode_for_model, image_id, prepare_image
from vitscope.images.image_set import ImageSet
from vitscope.images.preprocessing import Preprocessing
from vitscope.layout import TokenLayout
from vitscope.results.image_maps import (
    ImageMap,
    ImageMaps,
    keep_maps,
    name_maps,
    place_row_maps,
    read_maps,
    write_maps,
)
from vitscope.results.schema_maps import KeptImage
from vitscope.row_maps import RowMaps

CANDIDATE_BYTES = 16 * 2**20
"""Memory for the maps of candidates: 1,160 images of 16 x 16 patches with 6 heads, or 60 of
37 x 37 with 24."""

NUM_CANDIDATES = 1000
"""Approximate number of candidates: enough that their extremes are rare images."""

_DIGITS = 16  # hexadecimal digits of a digest used for the draw

_INDEX, _FOLDER = "gallery.json", "gallery"
_CANDIDATES = "candidates.safetensors"
_NUMBERS = ("centred_share_patches", "share_patches")
"""Columns to choose by: the first that the table has."""
_ROW = ("attention", "contribution_norm", "share", "head_share")
"""Fields of `RowMaps` that candidates are kept with."""


Why = Literal["lowest", "highest", "quantile", "random", "original"]
"""Why an image was chosen: for its number among all images, at random, or as in the original of an
edited model."""


@dataclass(frozen=True, kw_only=True)
class GalleryImage(KeptImage):
    """An image of a gallery."""

    why: Why


@dataclass(frozen=True)
class _Index:
    number: str  # column of `images.parquet` they were chosen by
    limit: int  # number of images asked for
    num_candidates: int  # number of images they were chosen from, a random sample of all
    num_images: int  # number of all images
    images: tuple[GalleryImage, ...]  # any first n of them are a balanced sample too


@dataclass(frozen=True)
class Gallery(_Index):
    """Images of an audit, kept with their maps."""

    folder: Path  # of the result
    # the result, whose temporary folder must outlive the gallery
    owner: object = field(default=None, repr=False, compare=False)

    def read_maps(self, index: int) -> ImageMaps:
        """One of the images with its maps, by its index in `images`."""
        return read_maps(self.folder / name_maps(index, _FOLDER), self.images[index].maps)


@dataclass(frozen=True)
class Choice:
    """An image that was chosen among the candidates."""

    index: int  # among all images
    image_id: str
    why: Why


class GalleryCandidates:
    """Maps of about `NUM_CANDIDATES` images with the smallest digests, in bounded memory."""

    def __init__(self, num_images: int = 0, max_bytes: int = CANDIDATE_BYTES) -> None:
        self._bound = None
        if num_images > NUM_CANDIDATES:
            self._bound = f"{16**_DIGITS * NUM_CANDIDATES // num_images:0{_DIGITS}x}"
        self._max_bytes = max_bytes
        self._limit: float = math.inf
        # One block per map: small arrays between large short-lived ones would fragment the heap.
        self._blocks: dict[str, np.ndarray] = {}
        self._free: list[int] = []
        self._held: dict[str, tuple[int, int]] = {}  # index and slot of each image
        self._digests: list[str] = []  # of the held images, sorted

    def __len__(self) -> int:
        return len(self._held)

    def wants(self, digest: str) -> bool:
        """Whether an image would be kept."""
        if digest in self._held or (self._bound is not None and digest >= self._bound):
            return False
        return len(self._held) < self._limit or digest < self._digests[-1]

    def update(self, indices: Sequence[int], ids: Sequence[str], maps: RowMaps) -> None:
        """Add a batch."""
        for image, (index, digest) in enumerate(zip(indices, ids, strict=True)):
            if self.wants(digest):
                row = {name: getattr(maps, name)[image].numpy() for name in _ROW}
                self._hold(digest, index, row)

    def write(self, folder: Path) -> None:
        """Write the candidates of a part."""
        held = [self._held[digest] for digest in self._digests]
        tensors = {"index": torch.tensor([index for index, _ in held], dtype=torch.int64)}
        for name, block in self._blocks.items():
            tensors[name] = torch.from_numpy(block[[slot for _, slot in held]])
        write_tensors(folder / _CANDIDATES, tensors, {"digests": ",".join(self._digests)})

    def read(self, folder: Path) -> None:
        """Add the candidates of a part."""
        tensors, metadata = read_tensors(folder / _CANDIDATES)
        indices = tensors.pop("index").tolist()
        digests = metadata["digests"].split(",")
        for image, index in enumerate(indices):
            if self.wants(digests[image]):
                row = {name: stack[image].numpy() for name, stack in tensors.items()}
                self._hold(digests[image], index, row)

    def _hold(self, digest: str, index: int, row: Mapping[str, np.ndarray]) -> None:
        if not self._blocks:
            self._make_blocks(row)
        slot = self._free.pop()
        for name, array in row.items():
            self._blocks[name][slot] = array
        self._held[digest] = (index, slot)
        insort(self._digests, digest)
        if len(self._held) > self._limit:
            self._free.append(self._held.pop(self._digests.pop())[1])

    def _make_blocks(self, row: Mapping[str, np.ndarray]) -> None:
        limit = max(1, self._max_bytes // (4 * sum(array.size for array in row.values())))
        # One slot more, since a new image is added before another is dropped. Unwritten pages take
        # no memory.
        self._blocks = {
            name: np.empty((limit + 1, *array.shape), np.float32) for name, array in row.items()
        }
        self._limit, self._free = limit, list(range(limit + 1))

    def choose(self, folder: Path, limit: int, shown: Sequence[str] | None) -> list[Choice]:
        """Choose images by their numbers in the result's table, or those of the original."""
        chosen: list[tuple[str, Why]] = (
            _read_numbers(folder).choose(self._held, limit)
            if shown is None
            else [(digest, "original") for digest in shown if digest in self._held]
        )
        return [Choice(self._held[digest][0], digest, why) for digest, why in chosen]

    def place(self, digest: str, layout: TokenLayout) -> dict[str, ImageMap]:
        """The maps of a candidate's attention row."""
        _, slot = self._held[digest]
        row = {name: torch.from_numpy(block[[slot]]) for name, block in self._blocks.items()}
        return place_row_maps(RowMaps(layout=layout, **row))


def write_gallery(
    folder: Path,
    images: ImageSet,
    chosen: Sequence[tuple[Choice, Mapping[str, ImageMap]]],
    *,
    limit: int,
    num_candidates: int,
) -> None:
    """Write the chosen images with their maps, but not those changed or gone."""
    kept: list[GalleryImage] = []
    for one, maps in chosen:
        image = _read_image(images.addresses[one.index], one.image_id, images.preprocessing)
        if image is not None:
            name = name_maps(len(kept), _FOLDER)
            kept.append(
                GalleryImage(
                    path=images.name_image(one.index),
                    image_id=one.image_id,
                    file=name,
                    maps=write_maps(folder / name, ImageMaps(image=image, maps=maps)),
                    why=one.why,
                )
            )
    numbers = _read_numbers(folder)
    index = _Index(numbers.name, limit, num_candidates, len(numbers.values), tuple(kept))
    write_json(folder / _INDEX, asdict(index))


def read_gallery(folder: Path, owner: object = None) -> Gallery | None:
    """Read the gallery of a result; None if there is none."""
    path = folder / _INDEX
    if not path.exists():
        return None
    index = read_typed_file(_Index, path)
    return Gallery(**vars(index), folder=folder, owner=owner)


def merge_galleries(folder: Path, parts: Sequence[Path]) -> None:
    """Choose the gallery of a merged result from those of its parts, by the same rule."""
    galleries = [found for part in parts if (found := read_gallery(part)) is not None]
    if not galleries:
        return
    candidates = {
        one.image_id: (one, gallery.folder / name_maps(number, _FOLDER))
        for gallery in galleries
        for number, one in enumerate(gallery.images)
    }
    limit = max(gallery.limit for gallery in galleries)
    numbers = _read_numbers(folder)
    kept = []
    for number, (digest, why) in enumerate(numbers.choose(candidates, limit)):
        one, source = candidates[digest]
        read_maps(source, one.maps)  # which refuses damaged ones
        file = keep_maps(folder, number, source, _FOLDER)
        kept.append(replace(one, file=file, why=why))
    num_candidates = sum(gallery.num_candidates for gallery in galleries)
    index = _Index(numbers.name, limit, num_candidates, len(numbers.values), tuple(kept))
    write_json(folder / _INDEX, asdict(index))


def choose_images(
    numbers: Mapping[str, float], everyone: Sequence[float] | np.ndarray, limit: int
) -> list[tuple[str, Why]]:
    """Choose images that show the spread of a number as well as typical cases.

    A quarter have the lowest values, a quarter the highest, a quarter are nearest to evenly spaced
    quantiles of all images, and the rest have the smallest digests, which is a random draw. The
    kinds alternate, so that any first n images are balanced too.
    """
    quarter = max(1, limit // 4)
    ranked = sorted((v, digest) for digest, v in numbers.items() if math.isfinite(v))
    queues: dict[Why, Iterator[str]] = {
        "lowest": (digest for _, digest in ranked[:quarter]),
        "highest": (digest for _, digest in ranked[::-1][:quarter]),
        "quantile": iter(_nearest_to_quantiles(ranked, everyone, quarter)),
        "random": iter(sorted(numbers)),
    }
    chosen: dict[str, Why] = {}
    wanted = min(limit, len(numbers))
    while len(chosen) < wanted:
        for why, queue in queues.items():
            found = next((digest for digest in queue if digest not in chosen), None)
            if found is not None and len(chosen) < wanted:
                chosen[found] = why
    return list(chosen.items())


def _nearest_to_quantiles(
    ranked: Sequence[tuple[float, str]], everyone: Sequence[float] | np.ndarray, count: int
) -> list[str]:
    values = np.asarray(everyone, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not ranked or not values.size:
        return []
    middles = np.quantile(values, (np.arange(count) + 0.5) / count)
    nearest = (min(ranked, key=lambda one: (abs(one[0] - m), one[1])) for m in middles)
    return [digest for _, digest in nearest]


@dataclass(frozen=True)
class _Numbers:
    name: str
    digests: pa.ChunkedArray
    values: np.ndarray

    def choose(self, candidates: Iterable[str], limit: int) -> list[tuple[str, Why]]:
        wanted = list(candidates)
        places = pc.index_in(pa.array(wanted, pa.string()), value_set=self.digests)
        numbers = self.values[places.to_numpy()].tolist()
        return choose_images(dict(zip(wanted, numbers, strict=True)), self.values, limit)


def _read_numbers(folder: Path) -> _Numbers:
    with open_table(folder / "images.parquet") as file:
        name = next(name for name in (*_NUMBERS, "") if name in file.schema_arrow.names or not name)
        columns = file.read(columns=["image_id", name])
    return _Numbers(name, columns["image_id"], columns[name].to_numpy().astype(np.float64))


def _read_image(
    address: ImageAddress, digest: str, preprocessing: Preprocessing
) -> np.ndarray | None:
    try:
        data = read_image(address)
        if image_id(data) != digest:
            return None
        image = decode_for_model(data, preprocessing)
    except ImageReadError:
        return None
    return np.asarray(prepare_image(image, preprocessing)[0])
