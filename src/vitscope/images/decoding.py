"""Decode and preprocess one image, from a file's bytes to the pixels a model is given.

RGB images keep their values whatever their colour profile, as in the pipelines of training.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from io import BytesIO
from math import ceil, floor

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Resampling, Transpose
from torch import Tensor

from vitscope.errors import ImageReadError
from vitscope.images.colours import convert_to_rgb, name_unread_samples, widen_png_key
from vitscope.images.folders import FORMATS
from vitscope.images.pillow_switches import set_for_decoding
from vitscope.images.preprocessing import Pipeline, Preprocessing

Image.init()  # fills Image.OPEN with the formats that this Pillow was built with

_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""The transformation that undoes each EXIF orientation."""

_METADATA_ERRORS = (LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error)
"""Errors that Pillow's EXIF reader raises for malformed metadata."""

_PIXELS = "preprocessed pixels"
"""Key in an image's `info` for the preprocessed pixels it was made from."""

_PNG_DEPTH_BYTE = 24  # where every PNG file states its bits per sample

_DRAFT_MARGIN = 2
"""A draft stays at least this many times larger than the resized image, so that the filter still
averages several pixels."""

_PILLOW_PIPELINES: tuple[Pipeline, ...] = ("torchvision", "transformers-pil")
"""Pipelines that resize with Pillow; the others resize tensors."""

_FILTER_REACH_PX = 4
"""Filter support on either side, rounded up, in units of the pixels that one step covers."""

_MAX_RESIZED_PIXELS = 2**26
"""Largest image that is resized whole before cropping (256 MiB in Pillow)."""


def image_id(data: bytes) -> str:
    """Identity of an image: equal bytes are the same image, whatever their path."""
    return blake2b(data, digest_size=16).hexdigest()


def pack_pixels(pixels: Float[Tensor, "3 height width"]) -> bytes:
    """Pack preprocessed pixels into bytes, which are read like those of an image file."""
    height, width = pixels.shape[1:]
    return b"%d %d\n" % (height, width) + pixels.contiguous().numpy().tobytes()


def _unpack_pixels(data: bytes, preprocessing: Preprocessing) -> Image.Image:
    # An image to show, together with the pixels.
    size, _, numbers = data.partition(b"\n")
    height, width = map(int, size.split())
    if (height, width) != preprocessing.size:
        raise ImageReadError(
            f"its preprocessed pixels are {height} x {width}, those of the first image "
            f"{preprocessing.size[0]} x {preprocessing.size[1]}"
        )
    values = np.frombuffer(bytearray(numbers), np.float32).reshape(3, height, width)
    pixels = torch.from_numpy(values)
    shown = _show_levels(pixels * _column(preprocessing.std) + _column(preprocessing.mean))
    shown.info[_PIXELS] = pixels
    return shown


def decode_for_model(data: bytes, preprocessing: Preprocessing) -> Image.Image:
    """Decode an image for a model, with its background and at a size that suffices."""
    if preprocessing.pipeline == "given":
        return _unpack_pixels(data, preprocessing)
    least = None
    if preprocessing.draft:
        # The larger side for both, because the file may be rotated after decoding.
        side = _DRAFT_MARGIN * max(_compute_target(preprocessing))
        least = (side, side)
    return decode_image(data, background=preprocessing.background, least_size=least)


def decode_image(
    data: bytes, *, background: int, least_size: tuple[int, int] | None = None
) -> Image.Image:
    """Decode an image as a viewer would show it.

    Deep greyscale (16 bit, or whole numbers from 0 to 65535) is scaled to 8 bit; floating-point
    greyscale must lie in [0, 1]. CMYK is converted by its embedded colour profile if it is sound.
    """
    with open_image(data, least_size=least_size) as image:
        if image.format == "PNG":
            widen_png_key(image, depth=data[_PNG_DEPTH_BYTE])
        return turn_upright(convert_to_rgb(image, background), image)


@contextmanager
def open_image(
    data: bytes,
    formats: Sequence[str] = FORMATS,
    *,
    least_size: tuple[int, int] | None = None,
) -> Iterator[Image.Image]:
    """Decode the stored pixels of a file; every failure is an `ImageReadError`."""
    if not data:
        raise ImageReadError("the file is empty")
    with (
        set_for_decoding(),
        _plain_decoding_errors(data, formats),
        Image.open(BytesIO(data), formats=[one for one in formats if one in Image.OPEN]) as image,
    ):
        if least_size is not None:
            image.draft(None, least_size)
        image.load()
        if image.info.get("default_image"):  # the default image is for viewers without animation
            image.seek(1)
            image.load()
        yield image


@contextmanager
def _plain_decoding_errors(data: bytes, formats: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except ImageReadError:
        raise
    except UnidentifiedImageError as error:
        if "TIFF" in formats and (samples := name_unread_samples(data)):
            raise ImageReadError(
                f"a TIFF of {samples} a pixel, which is not read: save it as 8-bit RGB, or as grey "
                "in 8 or 16 bits"
            ) from error
        raise ImageReadError(
            f"not an image, or damaged at its beginning: expected {', '.join(formats)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageReadError(f"too large: {_describe(error).split(',')[0]}") from error
    except MemoryError as error:
        raise ImageReadError("too large: not enough memory to decode it") from error
    except Exception as error:
        # Deliberately broad: ten decoders read untrusted bytes, and what they may raise is
        # undocumented and changes between versions.
        raise ImageReadError(f"damaged or cut short: {_describe(error)}") from error


def turn_upright(image: Image.Image, source: Image.Image) -> Image.Image:
    """Rotate an image according to the metadata of the file it came from."""
    try:
        orientation = source.getexif().get(ExifTags.Base.Orientation)
    except _METADATA_ERRORS:
        return image  # Viewers show an image with broken metadata as stored.
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def prepare_image(
    image: Image.Image, preprocessing: Preprocessing
) -> tuple[Image.Image, Float[Tensor, "channel height width"]]:
    """A model's input for an image, as an image and as a tensor.

    The tensor matches the library named by `preprocessing.pipeline` bit for bit, except for images
    so elongated that only the crop is resampled.
    """
    if preprocessing.pipeline == "given":
        return image, image.info[_PIXELS]
    if preprocessing.pipeline in _PILLOW_PIPELINES:
        shown = resample_with_pillow(image, preprocessing)
    else:
        levels = _resample_levels(image, preprocessing)
        shown = _show_levels(levels)
        if preprocessing.pipeline == "transformers-float":
            return shown, _normalize(levels, preprocessing)
    levels = torch.from_numpy(np.asarray(shown).transpose(2, 0, 1).astype(np.float32, order="C"))
    # Processors of transformers multiply mean and std by 255 instead of dividing the levels.
    if preprocessing.pipeline == "transformers":
        return shown, _normalize(levels, preprocessing, white=255)
    return shown, _normalize(levels.div_(255), preprocessing)


def _normalize(
    levels: Float[Tensor, "channel height width"], preprocessing: Preprocessing, white: int = 1
) -> Float[Tensor, "channel height width"]:
    mean, std = _column(preprocessing.mean) * white, _column(preprocessing.std) * white
    return levels.sub_(mean).div_(std)


def _column(channels: Sequence[float]) -> Float[Tensor, "channel 1 1"]:
    return torch.tensor(channels, dtype=torch.float32).reshape(3, 1, 1)


def _describe(error: Exception) -> str:
    # On one printable line, because a decoder's error may quote the file.
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def _compute_target(preprocessing: Preprocessing) -> tuple[int, int]:
    # Size that the resized image must cover.
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


def _resample_levels(
    image: Image.Image, preprocessing: Preprocessing
) -> Shaped[Tensor, "channel height width"]:
    # Resize as a tensor and crop.
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
    return resized[:, top:bottom, left:right].contiguous()  # a view would keep the rest in memory


def _show_levels(levels: Shaped[Tensor, "channel height width"]) -> Image.Image:
    if levels.is_floating_point():
        levels = (levels * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def _compute_resized_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    # As (width, height); the free side is rounded down, as in all these libraries.
    rows, columns = _compute_target(preprocessing)
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
