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


@dataclass(frozen=True)
class ImageSets:
    """The sets of images of a reproduction."""

    images: Path
    imagenet: Path | None  # the second set, if given
    files: tuple[Path, ...]
    digests: Mapping[str, str]  # of "images", "imagenet" and "masks", if given
    left_out: Mapping[str, str]  # stages that these do not allow, and why

    @classmethod
    def find(cls, images: Path, imagenet: Path | None, masks: str | Path | None) -> "ImageSets":
        """Find all images."""
        files = find_files(images)
        digests = {"images": _digest(images, files, "images")}
        left_out = {}
        if imagenet is None:
            why = "no second set of images was given (--imagenet)"
            left_out = {"imagenet": why, "one-shot": why}
        else:
            digests["imagenet"] = _digest(imagenet, find_files(imagenet), "images")
            if digests["images"] == digests["imagenet"]:
                left_out["imagenet"] = "the second set of images is the first over again"
            try:
                find_classes(imagenet)
            except UsageError as error:
                left_out["one-shot"] = str(error)
        if masks is not None:
            found = [mask for mask in find_masks(masks, files) if mask is not None]
            digests["masks"] = _digest(Path(masks), found, "masks")
        return cls(images, imagenet, files, digests, left_out)

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
        try:
            status = path.stat()
            told = f"{status.st_size} {status.st_mtime_ns}"
        except (OSError, ValueError):
            told = "not there"  # listed but missing; the audit counts it as failed
        digest.update(f"\0{told}\n".encode())
    return f"{len(files)} {kind}, {digest.hexdigest()}"
