"""Sets of images: sampling them, and reading them in batches, in order and in bounded memory."""

import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, default_collate

from vitscope.errors import ImageReadError, UsageError, VitscopeError
from vitscope.images.addresses import (
    ImageAddress,
    Images,
    find_copies,
    name_set,
    printable_address,
    read_image,
)
from vitscope.images.covariates import (
    SEGMENT_COVARIATES,
    compute_covariates,
    compute_segment_covariates,
    measure_range,
)
from vitscope.images.decoding import decode_for_model, image_id, prepare_image
from vitscope.images.in_memory import settle_given
from vitscope.images.masks import crop_mask, decode_mask, find_masks
from vitscope.images.preprocessing import Preprocessing
from vitscope.images.search import find_images
from vitscope.images.stores import read_file


@dataclass(frozen=True, repr=False)
class ImageSet:
    """Images by address, with a model's preprocessing.

    Attributes:
        addresses: Address of each image; a run refers to images by their index here.
        preprocessing: What is done to each image after decoding.
        masks: For each image the file of its mask (see `vitscope.images.masks`), or None if it has
            none; empty if no masks were given.
        described: Whether covariates are computed.
        copies: For each image, the number of other images with the same bytes that were left out;
            empty if none were.
        notes: Remarks for readers of the numbers about how the images were found.
        name: Name of the folder that has all images of which these are; empty if there is none.
    """

    addresses: tuple[ImageAddress, ...]
    preprocessing: Preprocessing
    masks: tuple[Path | None, ...] = ()
    described: bool = True
    copies: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        if self.masks and self.preprocessing.draft:
            raise UsageError(
                "masks have the images' original sizes, which draft decoding changes: leave one "
                "of the two out"
            )

    @classmethod
    def from_sources(
        cls,
        sources: Images,
        preprocessing: Preprocessing,
        *,
        preprocessed: bool = False,
        limit: int | None = None,
        seed: int = 0,
        masks: str | Path | None = None,
    ) -> "ImageSet":
        """Find images and optionally sample them at random.

        Args:
            sources: Folders, files, URLs, PIL images, arrays, tensors, datasets, or several of
                these (docs/data.md).
            preprocessing: What is done to each image; for preprocessed images, how they look.
            preprocessed: Whether the sources hold tensors that are already preprocessed.
            limit: Number of images to draw, if there are more. They are drawn at random rather than
                taken from the front, because the front of a sorted folder is a single class.
            seed: Seed of the draw.
            masks: Folder of PNG masks named like the images; an image without one has no segment
                covariates.

        Returns:
            The set, in the order in which the images were found.

        Raises:
            UsageError: If a source is missing or holds no image, preprocessed pixels were never
                normalised, the limit or the seed is out of range, or the masks do not match the
                images.
        """
        if limit is not None and limit < 1:
            raise UsageError(f"a limit of {limit} images: expected at least 1")
        if seed < 0:
            raise UsageError(f"seed {seed}: expected 0 or more")
        addresses = find_images(sources, preprocessed=preprocessed)
        if preprocessed:
            preprocessing = settle_given(addresses, preprocessing)
        matched = () if masks is None else find_masks(masks, addresses)
        name = name_set(addresses)
        everything = cls(addresses, preprocessing, matched, notes=addresses.notes, name=name)
        return everything.limited(limit, seed)

    def limited(self, limit: int | None, seed: int) -> "ImageSet":
        """Draw some of the images at random.

        Args:
            limit: Number of images to draw, if there are more; all of them if None.
            seed: Seed of the draw.

        Returns:
            A set of these images only, in their order.
        """
        if limit is None or limit >= len(self):
            return self
        drawn = np.random.default_rng(seed).choice(len(self), limit, replace=False)
        return self.select(sorted(drawn.tolist()))

    def select(self, indices: Iterable[int]) -> "ImageSet":
        """Select some of the images, with their masks.

        Args:
            indices: Indices into this set, in the desired order.

        Returns:
            A set of these images only, indexed from 0.
        """
        chosen = list(indices)
        return replace(
            self,
            addresses=tuple(self.addresses[index] for index in chosen),
            masks=tuple(self.masks[index] for index in chosen) if self.masks else (),
            copies=tuple(self.copies[index] for index in chosen) if self.copies else (),
        )

    @property
    def num_repeated(self) -> int:
        """Number of images left out as copies of others."""
        return sum(self.copies)

    def without_copies(self) -> "ImageSet":
        """Leave out images with the same bytes as an earlier one, where that is cheap to detect.

        Returns:
            A set of distinct images; those in tables and stores are compared while they are read.
        """
        counts = list(self.copies or [0] * len(self))
        left_out: set[int] = set()
        for first, *others in find_copies(self.addresses):
            # Files that are no images are not merged: the run names each of them.
            if self._is_image(first):
                counts[first] += len(others) + sum(counts[place] for place in others)
                left_out.update(others)
        if not left_out:
            return self
        kept = [place for place in range(len(self)) if place not in left_out]
        return replace(self, copies=tuple(counts)).select(kept)

    def _is_image(self, index: int) -> bool:
        try:
            decode_for_model(read_image(self.addresses[index]), self.preprocessing)
        except (ImageReadError, MemoryError):
            return False
        return True

    def __len__(self) -> int:
        return len(self.addresses)

    def __repr__(self) -> str:
        height, width = self.preprocessing.size
        return f"ImageSet({len(self)} images, {height} x {width} px)"

    def name_image(self, index: int) -> str:
        """Name of an image in tables and messages.

        Args:
            index: Index of the image.

        Returns:
            Its address, printable.
        """
        return printable_address(self.addresses[index])


def load_pixels(
    image: Images, preprocessing: Preprocessing
) -> Float[Tensor, "channel height width"]:
    """Load and preprocess a single image."""
    found = find_images(image)
    if len(found) != 1:
        raise UsageError(f"{len(found)} images were given: expected one")
    return prepare_image(decode_for_model(read_image(found[0]), preprocessing), preprocessing)[1]


@dataclass(frozen=True)
class ImageFailure:
    """An image that could not be read."""

    index: int
    reason: str


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Consecutive images of a set: those that were read, and those that failed."""

    indices: list[int]  # indices in the set of the images that were read
    ids: list[str]  # identities, which depend on the bytes alone
    pixels: Float[Tensor, "batch channel height width"]
    failures: list[ImageFailure] = field(default_factory=list)
    covariates: dict[str, Float64[Tensor, " batch"]] = field(default_factory=dict)
    level_ranges: list[float] = field(default_factory=list)

    def pin_memory(self) -> "ImageBatch":
        """Copy the batch to page-locked memory; called by the DataLoader for pinning."""
        return replace(self, pixels=self.pixels.pin_memory())

    def select(self, rows: slice | Sequence[int]) -> "ImageBatch":
        """Select some of the images; a slice does not copy the pixels."""
        places = range(len(self.ids))[rows] if isinstance(rows, slice) else rows
        return ImageBatch(
            indices=[self.indices[place] for place in places],
            ids=[self.ids[place] for place in places],
            pixels=self.pixels[rows],
            covariates={name: values[rows] for name, values in self.covariates.items()},
            level_ranges=[self.level_ranges[place] for place in places],
        )


PREFETCHED = 2
"""Number of batches that each reading process prefetches."""

_SHARED = Path("/dev/shm")  # noqa: S108 - where torch puts shared tensors
_PAGES = 2**16  # bytes for the small tensors of a batch, each of which takes a page


def iter_batches(
    images: ImageSet, *, batch_size: int, num_workers: int = 0, pin_memory: bool = False
) -> Iterator[ImageBatch]:
    """Read a set batch by batch, in order."""
    height, width = images.preprocessing.size
    batch_bytes = 3 * height * width * torch.float32.itemsize * min(batch_size, len(images))
    loader = DataLoader(
        _Batches(images),
        batch_size=None,
        sampler=BatchSampler(range(len(images)), batch_size, drop_last=False),
        num_workers=num_workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        worker_init_fn=partial(
            _start_worker, by_pipe=not fits_shared_memory(num_workers, batch_bytes)
        ),
        prefetch_factor=PREFETCHED if num_workers else None,
        # A separate generator, so that reading does not advance the caller's random state.
        generator=torch.Generator(),
    )
    try:
        yield from loader
    except RuntimeError as error:  # torch's own; errors of single images never get here
        raise VitscopeError(
            f"reading images stopped ({str(error).splitlines()[-1]}): free memory, the shared "
            "memory of a container (/dev/shm) included, or use smaller batches or fewer workers"
        ) from error


def fits_shared_memory(num_workers: int, batch_bytes: int) -> bool:
    """Whether the prefetched batches fit into shared memory; otherwise they come by pipe."""
    if not _SHARED.is_dir():
        return True
    # One more is in progress, and one may be on its way to a device.
    at_once = num_workers * PREFETCHED + 2
    return shutil.disk_usage(_SHARED).free >= at_once * (batch_bytes + _PAGES)


def _start_worker(_: int, *, by_pipe: bool) -> None:
    # Ctrl-C reaches all processes of a terminal; the run handles it and ends the reading ones.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A process stopped during a transfer would report a broken pipe. Nothing else is lost: errors
    # of images and batches are raised in the run.
    sys.excepthook = lambda *_: None
    # By default Python prints the error, drops the batch and continues.
    Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]
    if by_pipe:
        ForkingPickler.register(Tensor, lambda tensor: (torch.from_numpy, (tensor.numpy(),)))


def _end(error: BaseException, _: object) -> None:
    if not isinstance(error, ConnectionError):  # the receiver is gone
        os._exit(1)


class _Image(NamedTuple):
    id: str
    pixels: Float[Tensor, "channel height width"]
    covariates: dict[str, float]
    level_range: float


class _Batches(Dataset[ImageBatch]):
    """Batches of a set, each by the indices of its images."""

    def __init__(self, images: ImageSet) -> None:
        self._images = images

    def __getitem__(self, indices: list[int]) -> ImageBatch:
        read: dict[int, _Image] = {}
        failures: list[ImageFailure] = []
        for index in indices:
            try:
                read[index] = self._read(index)
            except ImageReadError as error:
                failures.append(ImageFailure(index, str(error)))
            except MemoryError:
                failures.append(ImageFailure(index, "too large: not enough memory to read it"))
        if not read:
            none = torch.empty(0, 3, *self._images.preprocessing.size)
            return ImageBatch([], [], none, failures)
        images = [*read.values()]
        return ImageBatch(
            indices=[*read],
            ids=[image.id for image in images],
            pixels=torch.stack([image.pixels for image in images]),
            failures=failures,
            covariates=default_collate([image.covariates for image in images]),
            level_ranges=[image.level_range for image in images],
        )

    def _read(self, index: int) -> _Image:
        preprocessing = self._images.preprocessing
        data = read_image(self._images.addresses[index])
        image = decode_for_model(data, preprocessing)
        cropped, pixels = prepare_image(image, preprocessing)
        covariates: dict[str, float] = {}
        if self._images.described:
            covariates = compute_covariates(cropped) | self._describe_segments(index, image)
        return _Image(image_id(data), pixels, covariates, measure_range(cropped))

    def _describe_segments(self, index: int, image: Image.Image) -> dict[str, float]:
        if not self._images.masks:
            return {}
        path = self._images.masks[index]
        if path is None:
            return dict.fromkeys(SEGMENT_COVARIATES, np.nan)
        try:
            mask = decode_mask(read_file(path))
            segments = crop_mask(mask, image, self._images.preprocessing)
        except ImageReadError as error:
            raise ImageReadError(f"its mask: {error}") from error
        return compute_segment_covariates(segments)
