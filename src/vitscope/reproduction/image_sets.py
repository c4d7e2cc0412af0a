"""The images of a reproduction, with digests that identify them."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitscope.errors import UsageError
from vitscope.images.labels import find_classes
from vitscope.images.masks import find_masks
from vitscope.images.search import find_files

_NO_SECOND = "no second set of images was given (--imagenet)"


@dataclass(frozen=True)
class ImageSets:
    """The sets of images of a reproduction."""

    images: Path
    imagenet: Path | None  # the second set, if given
    files: tuple[Path, ...]
    digests: Mapping[str, str]  # of "images", "imagenet" and "masks", if given
    unlabelled: str  # why one-shot classification cannot run; empty if it can

    @classmethod
    def find(cls, images: Path, imagenet: Path | None, masks: str | Path | None) -> "ImageSets":
        """Find all images."""
        files = find_files(images)
        digests = {"images": _digest(images, files, "images")}
        unlabelled = _NO_SECOND if imagenet is None else ""
        if imagenet is not None:
            digests["imagenet"] = _digest(imagenet, find_files(imagenet), "images")
            try:
                find_classes(imagenet)
            except UsageError as error:
                unlabelled = str(error)
        if masks is not None:
            found = [mask for mask in find_masks(masks, files) if mask is not None]
            digests["masks"] = _digest(Path(masks), found, "masks")
        return cls(images, imagenet, files, digests, unlabelled)

    @property
    def no_second(self) -> str:
        """Why there is no audit of a second set; empty if there is one."""
        if self.imagenet is None:
            return _NO_SECOND
        if self.digests["images"] == self.digests["imagenet"]:
            return "the second set of images is the first over again"
        return ""

    def draw_examples(self, count: int, seed: int) -> list[Path]:
        """Draw images of the main set, the same for every model."""
        drawn = np.random.default_rng(seed).choice(
            len(self.files), min(count, len(self.files)), replace=False
        )
        return [self.files[i] for i in sorted(drawn)]


def _digest(root: Path, files: Sequence[Path], kind: str) -> str:
    # Of relative names, sizes and times: a set may be moved, and no image is read.
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        digest.update(os.fsencode(os.path.relpath(path.absolute(), root.absolute())))
        digest.update(f"\0{_describe_file(path)}\n".encode())
    return f"{len(files)} {kind}, {digest.hexdigest()}"


def _describe_file(path: Path) -> str:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return "not there"  # listed but missing; the audit counts it as failed
    return f"{status.st_size} {status.st_mtime_ns}"
