"""Sets of pictures: finding them, drawing from them, reading them in batches.

Requirements met here:

- The order of a set, and so everything computed from it, does not depend on the file system.
- File names are bytes from anywhere: they are never decoded strictly, split or printed raw.
- A picture that cannot be read is counted and named in its batch; the others go on.
- Memory does not grow with the number of pictures, and batches come in the set's order however
  many processes read them.
"""

import os
import signal
import stat
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitscope.errors import ImageReadError, UsageError, VitscopeError
from vitscope.pictures.covariates import (
    PICTURE_COVARIATES,
    SEGMENT_COVARIATES,
    compute_covariates,
    compute_segment_covariates,
)
from vitscope.pictures.decoding import (
    decode_image,
    image_id,
    normalize_pixels,
    picture_extensions,
    resize_and_crop,
)
from vitscope.pictures.masks import crop_mask, decode_mask, find_masks
from vitscope.pictures.preprocessing import Preprocessing

MAX_FILE_BYTES = 2**31
"""Largest file that is read: more than the largest picture that is decoded takes uncompressed."""


@dataclass(frozen=True)
class ImageSet:
    """Pictures on disk and how a model wants them.

    Attributes:
        paths: The picture files; an index into them names a picture in a run.
        preprocessing: What is done to each after decoding.
        masks: For each picture the file of its mask (see `vitscope.pictures.masks`), None where it
            has none; empty where no masks were given.
        described: Whether pictures come with covariates.
    """

    paths: tuple[Path, ...]
    preprocessing: Preprocessing
    masks: tuple[Path | None, ...] = ()
    described: bool = True

    @classmethod
    def from_sources(
        cls,
        sources: Sequence[str | Path],
        preprocessing: Preprocessing,
        *,
        limit: int | None = None,
        seed: int = 0,
        masks: str | Path | None = None,
    ) -> "ImageSet":
        """Find pictures and, if asked, draw some of them at random.

        Args:
            sources: Folders, picture files, or text files of paths; see `find_images`.
            preprocessing: What is done to each picture.
            limit: How many to draw; all of them where there are no more. They are drawn rather
                than taken from the front, because the front of a sorted folder is one class.
            seed: Seed of the draw.
            masks: Folder of PNG masks that are called as the pictures are; a picture without one
                has no segment covariates.

        Returns:
            The set, in the order in which the pictures were found.

        Raises:
            UsageError: If a source is missing or holds no picture, the limit or the seed is out of
                range, or the masks are not those of the pictures.
        """
        if limit is not None and limit < 1:
            raise UsageError(f"a limit of {limit} pictures: expected at least 1")
        if seed < 0:
            raise UsageError(f"seed {seed}: expected 0 or more")
        paths = find_images(sources)
        matched = () if masks is None else find_masks(masks, paths)
        if limit is not None and limit < len(paths):
            drawn = sorted(np.random.default_rng(seed).choice(len(paths), limit, replace=False))
            paths = tuple(paths[i] for i in drawn)
            matched = tuple(matched[i] for i in drawn) if matched else ()
        return cls(paths=paths, preprocessing=preprocessing, masks=matched)

    def __len__(self) -> int:
        """Count the pictures.

        Returns:
            Their number.
        """
        return len(self.paths)


@dataclass(frozen=True)
class ImageFailure:
    """A picture that could not be read.

    Attributes:
        index: Its place in the set.
        reason: Why, in one line.
    """

    index: int
    reason: str


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Consecutive pictures of a set, those that could be read apart from those that could not.

    Attributes:
        indices: Places in the set of the pictures that were read.
        ids: Their identities, which depend on their bytes alone.
        pixels: Their preprocessed pixels; none at all where none could be read.
        failures: The others.
        covariates: What describes the pictures without a label, by name: `PICTURE_COVARIATES`, and
            `SEGMENT_COVARIATES` where the set has masks; NaN where one is undefined.
    """

    indices: list[int]
    ids: list[str]
    pixels: Float[Tensor, "batch channel height width"]
    failures: list[ImageFailure]
    covariates: dict[str, Float64[Tensor, " batch"]] = field(default_factory=dict)

    def pin_memory(self) -> "ImageBatch":
        """The same batch in page-locked memory; the loader calls it where pinning is asked for.

        Returns:
            A copy with its pixels pinned.
        """
        return replace(self, pixels=self.pixels.pin_memory())


def find_images(sources: Sequence[str | Path]) -> tuple[Path, ...]:
    """List the pictures that sources name.

    Args:
        sources: Any of these. A folder: searched with everything below it for files with the
            extension of a picture, sorted by relative path; hidden files and folders are skipped,
            links to folders are followed, each folder once. A text file (`.txt`): a path a line,
            relative to the text file's folder; empty lines and lines that begin with # are
            skipped. Any other file: taken as a picture whatever it is called.

    Returns:
        Paths in the order of the sources, each once. Those that a text file lists are not looked
        up: one that is missing is one picture that cannot be read.

    Raises:
        UsageError: If a source does not exist, cannot be searched or names no picture.
    """
    found: dict[Path, Path] = {}
    for source in sources:
        for path in _expand(source):
            found.setdefault(path.absolute(), path)
    if not found:
        raise UsageError("no pictures were named: give folders, picture files or a text file")
    return tuple(found.values())


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


def iter_batches(
    images: ImageSet, *, batch_size: int, num_workers: int = 0, pin_memory: bool = False
) -> Iterator[ImageBatch]:
    """Read a set batch by batch, in its order.

    Args:
        images: The set.
        batch_size: Pictures per batch, counting those that turn out unreadable.
        num_workers: Processes that read ahead; 0 reads in this one.
        pin_memory: Whether to put pixels in page-locked memory, from which a CUDA device copies
            them while it computes; without such a device nothing is pinned.

    Yields:
        Batches that between them name every picture once, as read or as failed.

    Raises:
        VitscopeError: If there is not enough memory for a batch, or a process that reads ahead
            dies.
    """
    loader = DataLoader(
        _Pictures(images),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_Collate(images.preprocessing.size, _name_covariates(images)),
        pin_memory=pin_memory and torch.cuda.is_available(),
        worker_init_fn=_leave_interrupts_to_the_run,
        # Of its own, so that reading pictures does not advance the caller's random numbers.
        generator=torch.Generator(),
    )
    try:
        yield from loader
    except RuntimeError as error:  # What torch raises for both; one picture's errors end before.
        raise VitscopeError(
            f"reading pictures stopped ({str(error).splitlines()[-1]}): free memory, the shared "
            "memory of a container (/dev/shm) included, or use smaller batches or fewer workers"
        ) from error


def _leave_interrupts_to_the_run(_: int) -> None:
    # Ctrl-C reaches every process of a terminal; the run hears it and ends those that read.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One that is stopped while it hands a batch over would complain of its broken pipe. Nothing
    # else is lost: what goes wrong with a picture or a batch is raised in the run.
    sys.excepthook = lambda *_: None


@dataclass(frozen=True, eq=False)
class _Picture:
    index: int
    id: str
    pixels: Float[Tensor, "channel height width"]
    covariates: dict[str, float]


class _Pictures(Dataset[_Picture | ImageFailure]):
    def __init__(self, images: ImageSet) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> _Picture | ImageFailure:
        try:
            return self._read(index)
        except ImageReadError as error:
            return ImageFailure(index, str(error))
        except MemoryError:
            return ImageFailure(index, "too large: not enough memory to read it")

    def _read(self, index: int) -> _Picture:
        preprocessing = self._images.preprocessing
        data = read_file(self._images.paths[index])
        image = decode_image(data, background=preprocessing.background)
        cropped = resize_and_crop(image, preprocessing)
        return _Picture(
            index=index,
            id=image_id(data),
            pixels=normalize_pixels(cropped, preprocessing),
            covariates=self._describe(index, image, cropped),
        )

    def _describe(self, index: int, image: Image.Image, cropped: Image.Image) -> dict[str, float]:
        if not self._images.described:
            return {}
        return compute_covariates(cropped) | self._describe_segments(index, image)

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


def _name_covariates(images: ImageSet) -> tuple[str, ...]:
    if not images.described:
        return ()
    return PICTURE_COVARIATES + SEGMENT_COVARIATES if images.masks else PICTURE_COVARIATES


@dataclass(frozen=True)
class _Collate:
    size: tuple[int, int]
    covariates: tuple[str, ...]

    def __call__(self, outcomes: list[_Picture | ImageFailure]) -> ImageBatch:
        pictures = [outcome for outcome in outcomes if isinstance(outcome, _Picture)]
        pixels = [picture.pixels for picture in pictures]
        return ImageBatch(
            indices=[picture.index for picture in pictures],
            ids=[picture.id for picture in pictures],
            pixels=torch.stack(pixels) if pixels else torch.empty(0, 3, *self.size),
            failures=[outcome for outcome in outcomes if isinstance(outcome, ImageFailure)],
            covariates={
                name: torch.tensor([p.covariates[name] for p in pictures], dtype=torch.float64)
                for name in self.covariates
            },
        )


def _expand(source: str | Path) -> list[Path]:
    path = Path(source)
    name = repr(os.fspath(source))
    try:
        # An empty name is what an unset shell variable leaves; Path takes it for this folder.
        if not os.fspath(source) or not path.exists():
            raise UsageError(
                f"{name} does not exist: give a folder, a picture, or a .txt file with one path "
                "a line"
            )
        if path.is_dir():
            paths, expected = _search(path), f"files ending in {_list_extensions()}"
        elif path.suffix.lower() == ".txt":
            paths, expected = _read_list(path), "one path a line"
        else:
            paths, expected = [path], ""
    except OSError as error:
        raise UsageError(f"{name} cannot be searched for pictures: {error.strerror}") from error
    if not paths:
        raise UsageError(f"{name} names no picture: expected {expected}")
    return paths


def _list_extensions() -> str:
    return " ".join(sorted(picture_extensions()))


def _search(folder: Path) -> list[Path]:
    extensions = picture_extensions()
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        status = current.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(current) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        # Backwards, for the last folder put on the pile is the first to be searched.
        for entry in sorted(visible, key=lambda entry: entry.name, reverse=True):
            path = current / entry.name
            if _is_folder(entry):
                pending.append(path)
            elif path.suffix.lower() in extensions:
                found.append(path)
    return sorted(found, key=Path.as_posix)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link that leads to itself, or to where nobody may look.
        return False


def _read_list(source: Path) -> list[Path]:
    lines = source.read_bytes().removeprefix(BOM_UTF8).split(b"\n")
    names = (os.fsdecode(line.removesuffix(b"\r")) for line in lines)
    return [
        source.parent / name for name in names if name.strip() and not name.lstrip().startswith("#")
    ]
