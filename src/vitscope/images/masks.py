"""Masks: PNG files with a segment number for each pixel of an image, 0 for none.

In colour R + 256 G + 65536 B, as in COCO's panoptic annotations; in grey or a palette as stored.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from PIL import Image

from vitscope.errors import ImageReadError, UsageError
from vitscope.files.printable import printable_path
from vitscope.images.addresses import ImageAddress, image_stem
from vitscope.images.decoding import open_image, resample_with_pillow, turn_upright
from vitscope.images.folders import is_hidden
from vitscope.images.preprocessing import Preprocessing
from vitscope.images.urls import show_name

_STORED_VALUES = ("1", "L", "P", "I", "I;16")
"""Pillow modes of PNG files whose stored values are the segment numbers."""


def find_masks(folder: str | Path, images: Sequence[ImageAddress]) -> tuple[Path | None, ...]:
    """Match masks to images: `beach.png` is the mask of `beach.jpg`."""
    folder = Path(folder)
    try:
        files = sorted(path for path in folder.iterdir() if not is_hidden(path.name))
        masks = {path.stem: path for path in files if path.suffix.lower() == ".png"}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{show_name(str(folder))} cannot be searched for masks: {reason}; give a folder of "
            "PNG files"
        ) from error
    matched = tuple(masks.get(image_stem(image)) for image in images)
    uses = Counter(mask for mask in matched if mask is not None)
    if not uses:
        raise UsageError(
            f"{str(folder)!r} has no mask for any of the {len(images)} images: expected PNG "
            "files named like the images"
        )
    mask, images_of_it = uses.most_common(1)[0]
    if images_of_it > 1:
        raise UsageError(
            f"mask {str(mask)!r} could be of {images_of_it} images of that name: give images "
            "of different names"
        )
    return matched


def note_masks(images: Sequence[ImageAddress]) -> list[str]:
    """Make a note about PNG files that are named like other images, as their masks are."""
    files = [image for image in images if isinstance(image, Path)]
    others = {file.stem: file for file in files if file.suffix.lower() != ".png"}
    alike = [file for file in files if file.suffix.lower() == ".png" and file.stem in others]
    if not alike:
        return []
    mask, image = (
        printable_path(Path(file.parent.name, file.name))
        for file in (alike[0], others[alike[0].stem])
    )
    return [
        f"{len(alike)} of {len(images)} images are PNG files named like other images, as masks "
        f"are ({mask} beside {image}): if they are masks, leave them out"
    ]


def decode_mask(data: bytes) -> Image.Image:
    """Decode a mask file."""
    with open_image(data, formats=("PNG",)) as image:
        if image.mode == "RGB":
            levels = np.asarray(image).astype(np.int32)
            numbers = levels[..., 0] + 256 * levels[..., 1] + 65536 * levels[..., 2]
        elif image.mode in _STORED_VALUES:
            numbers = np.asarray(image).astype(np.int32)
        else:
            raise ImageReadError(
                f"mode {image.mode}: expected RGB with R + 256 G + 65536 B, grey, or a palette"
            )
        return turn_upright(Image.fromarray(numbers), image)


def crop_mask(
    mask: Image.Image, image: Image.Image, preprocessing: Preprocessing
) -> Int32[np.ndarray, "height width"]:
    """Resize and crop a mask as its image; numbers are never interpolated."""
    if mask.size != image.size:
        raise ImageReadError(
            f"{mask.width} x {mask.height} pixels, the image, as it is shown, has "
            f"{image.width} x {image.height}: expected the same"
        )
    cropped = resample_with_pillow(mask, replace(preprocessing, interpolation="nearest"))
    return np.asarray(cropped)
