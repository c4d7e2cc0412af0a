"""Masks that tell which segment each pixel of a picture belongs to.

A mask is a PNG file of its picture's size whose pixels are numbers of segments, 0 for none. In a
colour file the number is R + 256 G + 65536 B, as in COCO's panoptic annotations; in a grey or
palette file it is the stored value. Mask files are bytes from anywhere, as pictures are.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from PIL import Image

from vitscope.errors import ImageReadError, UsageError
from vitscope.pictures.addresses import PictureAddress, picture_stem
from vitscope.pictures.decoding import open_picture, turn_upright
from vitscope.pictures.names import is_hidden
from vitscope.pictures.preprocessing import Preprocessing
from vitscope.pictures.resampling import resample_with_pillow
from vitscope.pictures.urls import show_name

_STORED_VALUES = ("1", "L", "P", "I", "I;16")
"""Pillow's modes of PNG files whose values are the numbers themselves."""


def find_masks(folder: str | Path, pictures: Sequence[PictureAddress]) -> tuple[Path | None, ...]:
    """Match masks to pictures: `beach.png` is the mask of `beach.jpg`.

    Args:
        folder: Folder that holds the masks, not searched below its first level.
        pictures: Where the pictures lie.

    Returns:
        Each picture's mask, None where it has none.

    Raises:
        UsageError: If the folder cannot be searched, holds no mask of any picture, or holds one
            that could be of two, or a picture has no name.
    """
    folder = Path(folder)
    try:
        masks = {path.stem: path for path in sorted(folder.iterdir()) if _is_mask(path)}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{show_name(str(folder))} cannot be searched for masks: {reason}; give a folder of "
            "PNG files"
        ) from error
    matched = tuple(masks.get(picture_stem(picture)) for picture in pictures)
    uses = Counter(mask for mask in matched if mask is not None)
    if not uses:
        raise UsageError(
            f"{str(folder)!r} holds no mask of any of the {len(pictures)} pictures: expected PNG "
            "files that are called as the pictures are"
        )
    mask, pictures_of_it = uses.most_common(1)[0]
    if pictures_of_it > 1:
        raise UsageError(
            f"mask {str(mask)!r} could be of {pictures_of_it} pictures of that name: give pictures "
            "of different names"
        )
    return matched


def decode_mask(data: bytes) -> Image.Image:
    """Read a mask.

    Args:
        data: The bytes of its file.

    Returns:
        The numbers of the segments, in Pillow's mode I (32-bit whole numbers), turned as the
        file's own EXIF says.

    Raises:
        ImageReadError: If the bytes are no PNG file, are damaged, too large, or have transparency,
            which is no number.
    """
    with open_picture(data, formats=("PNG",)) as image:
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
    mask: Image.Image, picture: Image.Image, preprocessing: Preprocessing
) -> Int32[np.ndarray, "height width"]:
    """Bring a mask to the crop that a model is given of its picture; no number is changed.

    Args:
        mask: What `decode_mask` read.
        picture: The picture as it was decoded.
        preprocessing: What the model asks for; the mask is sampled at the nearest pixel.

    Returns:
        The segment that each pixel of the crop belongs to.

    Raises:
        ImageReadError: If the mask is not of the picture's size.
    """
    if mask.size != picture.size:
        raise ImageReadError(
            f"{mask.width} x {mask.height} pixels, the picture, as it is shown, has "
            f"{picture.width} x {picture.height}: expected the same"
        )
    cropped = resample_with_pillow(mask, replace(preprocessing, interpolation="nearest"))
    segments: Int32[np.ndarray, "height width"] = np.asarray(cropped)
    return segments


def _is_mask(path: Path) -> bool:
    return path.suffix.lower() == ".png" and not is_hidden(path.name)
