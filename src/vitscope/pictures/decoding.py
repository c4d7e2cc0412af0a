"""One picture: from the bytes of a file to the pixels a model is given.

Requirements met here:

- A picture is read as a viewer would show it: turned as its EXIF says, transparency laid on a
  background, inks turned into colours, deep greyscale scaled and not clipped, an animation's first
  frame.
- With one exception: RGB pictures keep their numbers whatever colour profile they carry. Viewers
  would translate a wide-gamut picture, but the pipelines that models are trained with do not.
- Whatever the bytes are, the answer is a picture or an `ImageReadError`, so that a run does not
  die of one picture; and only ordinary picture formats are tried, never one that runs a program.
- Resizing and cropping agree with torchvision's transforms on PIL images bit for bit.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from io import BytesIO
from math import ceil, floor

import numpy as np
import torch
from jaxtyping import Float
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Resampling, Transpose
from torch import Tensor

from vitscope.errors import ImageReadError
from vitscope.pictures.colours import convert_to_rgb, describe_unread_tiff, widen_png_key
from vitscope.pictures.pillow_switches import set_for_decoding
from vitscope.pictures.preprocessing import Interpolation, Preprocessing

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Names, as Pillow has them, of the formats that are read."""

_FILTERS: dict[Interpolation, Resampling] = {
    "nearest": Resampling.NEAREST,
    "bilinear": Resampling.BILINEAR,
    "bicubic": Resampling.BICUBIC,
    "lanczos": Resampling.LANCZOS,
}

_FILTER_REACH_PX = 4
"""More pixels than a filter reads on either side, times the pixels that one step covers."""

_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""

_METADATA_ERRORS = (
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)
"""What Pillow's EXIF reader raises on metadata that is not what it says it is."""

_PNG_DEPTH_BYTE = 24
"""Where every PNG file states its bits per sample."""

_DRAFT_MARGIN = 2
"""How many times larger than it is resized to a picture that is decoded as a draft stays, so that
the filter still has several pixels for each of its own."""

_MAX_RESIZED_PIXELS = 2**26
"""Largest picture that is resized whole before it is cropped (256 MiB as Pillow keeps it)."""


@cache
def picture_extensions() -> frozenset[str]:
    """File name extensions of the formats that are read.

    Returns:
        Lower-case extensions with their dot.
    """
    known = Image.registered_extensions()
    return frozenset(extension for extension, name in known.items() if name in FORMATS)


def image_id(data: bytes) -> str:
    """A picture's identity: the same bytes under another path are the same picture.

    Args:
        data: The bytes of its file.

    Returns:
        128 bits of BLAKE2b in hexadecimal.
    """
    return blake2b(data, digest_size=16).hexdigest()


def decode_picture(data: bytes, preprocessing: Preprocessing) -> Image.Image:
    """Read a picture as `decode_image` does, at the size and on the background that a model wants.

    Args:
        data: The bytes of its file.
        preprocessing: What the model asks for; with `draft` a large JPEG file comes smaller than it
            is stored, and still at least twice as large as it is resized to.

    Returns:
        The picture in mode RGB.

    Raises:
        ImageReadError: As of `decode_image`.
    """
    least = None
    if preprocessing.draft:
        # The larger side for both: the file may be turned once it is decoded.
        side = _DRAFT_MARGIN * max(_compute_target(preprocessing))
        least = (side, side)
    return decode_image(data, background=preprocessing.background, least_size=least)


def decode_image(
    data: bytes, *, background: int, least_size: tuple[int, int] | None = None
) -> Image.Image:
    """Read a picture as a viewer would show it.

    Deep greyscale (16 bit, or whole numbers from 0 to 65535) is scaled to 8 bit; floating-point
    greyscale is taken where it lies in [0, 1], and refused elsewhere, because then nothing says
    which values are black and white. CMYK goes through its embedded colour profile, or Pillow's
    plain conversion where there is none or it is broken.

    Args:
        data: The bytes of its file.
        background: Colour, 0 to 255, that a transparent picture is laid on.
        least_size: (width, height) that is enough of a JPEG file: where it is stored larger, it is
            decoded at the smallest of a half, a quarter and an eighth that is not below; whole if
            None.

    Returns:
        The picture in mode RGB.

    Raises:
        ImageReadError: If the bytes are no picture, are damaged or cut short, or if there are more
            pixels than Pillow's limit against decompression bombs (2 x `Image.MAX_IMAGE_PIXELS`,
            unless changed 179 megapixels), which is told before anything is decoded.
    """
    with open_picture(data, least_size=least_size) as image:
        if image.format == "PNG":
            widen_png_key(image, depth=data[_PNG_DEPTH_BYTE])
        return turn_upright(convert_to_rgb(image, background), image)


@contextmanager
def open_picture(
    data: bytes,
    formats: Sequence[str] = FORMATS,
    *,
    least_size: tuple[int, int] | None = None,
) -> Iterator[Image.Image]:
    """Decode a file's pixels as they are stored, with one kind of error for whatever is wrong.

    Args:
        data: The bytes of the file.
        formats: Names, as Pillow has them, of the formats that it may be in.
        least_size: As of `decode_image`.

    Yields:
        The picture in the mode and the orientation of the file.

    Raises:
        ImageReadError: As of `decode_image`; also if what the caller does with the picture raises.
    """
    if not data:
        raise ImageReadError("the file is empty")
    with (
        set_for_decoding(),
        _plain_decoding_errors(data, formats),
        Image.open(BytesIO(data), formats=_openable_formats(tuple(formats))) as image,
    ):
        if least_size is not None:
            image.draft(None, least_size)
        image.load()
        if image.info.get("default_image"):  # shown where animations are not
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
        if "TIFF" in formats and (samples := describe_unread_tiff(data)):
            raise ImageReadError(
                f"a TIFF of {samples}, which is not read: save it as 8-bit RGB, or "
                "as grey in 8 or 16 bits"
            ) from error
        raise ImageReadError(
            f"not a picture, or damaged at its beginning: expected {', '.join(formats)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageReadError(f"too large: {_describe(error).split(',')[0]}") from error
    except MemoryError as error:
        raise ImageReadError("too large: not enough memory to decode it") from error
    except Exception as error:
        # As broad as can be: ten decoders, each with habits of its own, fed bytes from anywhere;
        # what they may raise is documented nowhere and changes between versions.
        raise ImageReadError(f"damaged or cut short: {_describe(error)}") from error


def turn_upright(image: Image.Image, source: Image.Image) -> Image.Image:
    """Turn a picture as the metadata of the file that it came from ask.

    Args:
        image: The picture as it is stored, in any mode.
        source: What `open_picture` made of the file.

    Returns:
        The picture as a viewer shows it.
    """
    turn = _TURNS.get(_read_orientation(source))
    return image if turn is None else image.transpose(turn)


def preprocess_image(
    image: Image.Image, preprocessing: Preprocessing
) -> Float[Tensor, "channel height width"]:
    """Resize, centre crop, scale to [0, 1] and normalise.

    The numbers are those of torchvision's Resize, CenterCrop, ToTensor and Normalize on a PIL
    image, bit for bit. A picture so long and thin that it would have more than 67 megapixels when
    resized whole is resampled only where the crop keeps it, which may round differently.

    Args:
        image: The picture, in mode RGB.
        preprocessing: What the model asks for.

    Returns:
        Normalised pixels in float32.
    """
    return normalize_pixels(resize_and_crop(image, preprocessing), preprocessing)


def resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The part of a picture that a model is given, at the size at which it is given it.

    Args:
        image: The picture, in a mode that Pillow resamples.
        preprocessing: What the model asks for.

    Returns:
        A picture of the size (height, width) of `preprocessing`.
    """
    height, width = preprocessing.size
    columns, rows = _compute_resized_size(image.size, preprocessing)
    # Rounded as torchvision does: half a pixel goes to the even side.
    left, top = round((columns - width) / 2), round((rows - height) / 2)
    resampling = _FILTERS[preprocessing.interpolation]
    if columns * rows <= _MAX_RESIZED_PIXELS:
        resized = image.resize((columns, rows), resampling)
        return resized.crop((left, top, left + width, top + height))
    return _resample_part(
        image, (columns, rows), (left, top, left + width, top + height), resampling
    )


def normalize_pixels(
    cropped: Image.Image, preprocessing: Preprocessing
) -> Float[Tensor, "channel height width"]:
    """Scale a picture's levels to [0, 1] and normalise them.

    Args:
        cropped: The picture, in mode RGB, as `resize_and_crop` leaves it.
        preprocessing: What the model asks for.

    Returns:
        Normalised pixels in float32.
    """
    mean = np.array(preprocessing.mean, dtype=np.float32).reshape(3, 1, 1)
    std = np.array(preprocessing.std, dtype=np.float32).reshape(3, 1, 1)
    levels = np.asarray(cropped).transpose(2, 0, 1)
    pixels = np.divide(levels, np.float32(255), dtype=np.float32, order="C")
    pixels -= mean
    pixels /= std
    return torch.from_numpy(pixels)


@cache
def _openable_formats(formats: tuple[str, ...]) -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in formats if name in Image.OPEN)


def _describe(error: Exception) -> str:
    # In one printable line, for the text of a decoder's error may quote the file.
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def _read_orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _METADATA_ERRORS:
        return 1  # A viewer shows a picture whose metadata are broken, and shows it as stored.
    return orientation if isinstance(orientation, int) else 1


def _resample_part(
    image: Image.Image,
    resized_size: tuple[int, int],
    kept: tuple[int, int, int, int],
    resampling: Resampling,
) -> Image.Image:
    """What cropping to `kept` would leave of the picture resized to `resized_size`.

    Args:
        image: The picture.
        resized_size: (width, height) that it is thought resized to.
        kept: (left, top, right, bottom) of the crop in the resized picture.
        resampling: Filter.

    Returns:
        The crop.
    """
    step_x, step_y = image.width / resized_size[0], image.height / resized_size[1]
    box = (kept[0] * step_x, kept[1] * step_y, kept[2] * step_x, kept[3] * step_y)
    # Pillow keeps a box in single precision: cut near it first, so that its numbers are small.
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


def _compute_resized_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    # As (width, height); the side that is not asked for rounds down, as torchvision's does.
    rows, columns = _compute_target(preprocessing)
    width, height = size
    if preprocessing.resize == "stretch":
        return columns, rows
    if rows * width >= columns * height:  # At this height the picture is wide enough.
        return rows * width // height, rows
    return columns, columns * height // width


def _compute_target(preprocessing: Preprocessing) -> tuple[int, int]:
    # As (rows, columns): what the resized picture covers.
    height, width = preprocessing.size
    fraction = preprocessing.crop_fraction
    return round(height / fraction), round(width / fraction)
