"""Resize and crop exactly as the library named by a model's preprocessing, bit for bit."""

from math import ceil, floor

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from vitscope.images.preprocessing import Pipeline, Preprocessing

PILLOW_PIPELINES: tuple[Pipeline, ...] = ("torchvision", "transformers-pil")
"""Pipelines that resize with Pillow; the others resize tensors."""

_FILTER_REACH_PX = 4
"""Filter support on either side, rounded up, in units of the pixels that one step covers."""

_MAX_RESIZED_PIXELS = 2**26
"""Largest image that is resized whole before cropping (256 MiB in Pillow)."""


def compute_target(preprocessing: Preprocessing) -> tuple[int, int]:
    """Size that the resized image must cover."""
    height, width = preprocessing.size
    fraction = preprocessing.crop_fraction
    return round(height / fraction), round(width / fraction)


def resample_with_pillow(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize with Pillow and crop."""
    columns, rows = _compute_resized_size(image.size, preprocessing)
    kept = _place_crop((columns, rows), preprocessing)
    resampling = Resampling[preprocessing.interpolation.upper()]
    if columns * rows <= _MAX_RESIZED_PIXELS:
        return image.resize((columns, rows), resampling).crop(kept)
    return _resample_part(image, (columns, rows), kept, resampling)


def resample_levels(
    image: Image.Image, preprocessing: Preprocessing
) -> Shaped[Tensor, "channel height width"]:
    """Resize as a tensor and crop."""
    # Imported here, because reading a saved result needs no torchvision.
    from torchvision.transforms.v2.functional import InterpolationMode, resize

    columns, rows = _compute_resized_size(image.size, preprocessing)
    whole = columns * rows <= _MAX_RESIZED_PIXELS
    source = image if whole else resample_with_pillow(image, preprocessing)
    levels = torch.from_numpy(np.array(source)).permute(2, 0, 1).contiguous()
    if preprocessing.pipeline == "transformers-float":
        levels = levels * (1 / 255)
    if not whole:
        return levels
    name = preprocessing.interpolation
    filtering = InterpolationMode("nearest-exact" if name == "nearest" else name)
    resized: Tensor = resize(levels, [rows, columns], filtering, antialias=True)
    left, top, right, bottom = _place_crop((columns, rows), preprocessing)
    return resized[:, top:bottom, left:right]


def show_levels(levels: Shaped[Tensor, "channel height width"]) -> Image.Image:
    """Show levels as an image."""
    if levels.is_floating_point():
        levels = (levels * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def _compute_resized_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    # As (width, height); the free side is rounded down, as in all these libraries.
    rows, columns = compute_target(preprocessing)
    width, height = size
    if preprocessing.resize == "stretch":
        return columns, rows
    if rows * width >= columns * height:  # At this height the image is wide enough.
        return rows * width // height, rows
    return columns, columns * height // width


def _place_crop(
    resized_size: tuple[int, int], preprocessing: Preprocessing
) -> tuple[int, int, int, int]:
    # As (left, top, right, bottom). torchvision rounds half a pixel to even, transformers rounds it
    # down.
    (columns, rows), (height, width) = resized_size, preprocessing.size
    settle = round if preprocessing.pipeline == "torchvision" else floor
    left, top = settle((columns - width) / 2), settle((rows - height) / 2)
    return left, top, left + width, top + height


def _resample_part(
    image: Image.Image,
    resized_size: tuple[int, int],
    kept: tuple[int, int, int, int],
    resampling: Resampling,
) -> Image.Image:
    """Compute only the crop `kept` of the image resized to `resized_size`."""
    step_x, step_y = image.width / resized_size[0], image.height / resized_size[1]
    box = (kept[0] * step_x, kept[1] * step_y, kept[2] * step_x, kept[3] * step_y)
    # Pillow stores a box in single precision: cut near it first, to keep its numbers small.
    reach_x, reach_y = _FILTER_REACH_PX * ceil(step_x), _FILTER_REACH_PX * ceil(step_y)
    left, top = max(0, floor(box[0]) - reach_x), max(0, floor(box[1]) - reach_y)
    right = min(image.width, ceil(box[2]) + reach_x)
    bottom = min(image.height, ceil(box[3]) + reach_y)
    part = image.crop((left, top, right, bottom))
    part_box = (
        box[0] - left,
        box[1] - top,
        min(box[2] - left, part.width),
        min(box[3] - top, part.height),
    )
    return part.resize((kept[2] - kept[0], kept[3] - kept[1]), resampling, box=part_box)
