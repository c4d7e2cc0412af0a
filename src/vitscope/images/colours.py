"""Conversion of stored samples to 8-bit RGB."""

from contextlib import suppress
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

from vitscope.errors import ImageReadError

_WHITE_IS_ZERO = 0
"""A photometric interpretation of TIFF that Pillow respects at 8 bits but ignores above."""

_SAMPLE_FORMAT = 339  # a tag of TIFF
_UNREAD_BITS = range(9, 65)
_SAMPLE_FORMATS = {1: "whole numbers", 2: "signed whole numbers", 3: "floating-point numbers"}


def widen_png_key(image: Image.Image, depth: int) -> None:
    """Scale a PNG's transparent colour to 8 bits as its pixels, which Pillow omits to do."""
    key = image.info.get("transparency")
    if image.mode == "L" and depth < 8 and isinstance(key, int):
        image.info["transparency"] = key * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16 and isinstance(key, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in key)


def convert_to_rgb(image: Image.Image, background: int) -> Image.Image:
    """Convert an image to 8-bit RGB, as described in `decode_image`."""
    image = narrow_grey(image)
    if image.has_transparency_data:
        return _lay_on(background, image)
    if image.mode == "CMYK":
        return _ink_to_rgb(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def narrow_grey(image: Image.Image) -> Image.Image:
    """Convert greyscale of more than 8 bits to 8, as in `decode_image`; others are unchanged."""
    deep = image.mode in ("I", "F") or image.mode.startswith("I;")
    return _to_8_bit(image) if deep else image


def name_unread_samples(data: bytes) -> str:
    """The samples of a TIFF that Pillow cannot read; empty if they are not what is wrong."""
    try:
        TiffImagePlugin.TiffImageFile(BytesIO(data))
    except SyntaxError as error:  # whatever the problem
        if str(error) != "unknown pixel mode":
            return ""
    else:
        return ""
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])
    file = BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    bits, told = (tags.get(tag, (1,)) for tag in (ExifTags.Base.BitsPerSample, _SAMPLE_FORMAT))
    # Tags of another type are text or bytes; what is read in other colours is not named by bits.
    if not isinstance(bits, tuple) or not all(bit in _UNREAD_BITS for bit in bits):
        return ""
    kind = _SAMPLE_FORMATS.get(next(iter(told), 0), "numbers of another kind")
    return f"{len(bits)} x {next(iter(bits), 0)}-bit {kind}"


def _lay_on(background: int, image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, (background,) * 3)
    if image.mode == "La":  # Premultiplied grey, which Pillow converts only to LA.
        image = image.convert("LA")
    layer = image.convert("RGBA")
    canvas.paste(layer, mask=layer)
    return canvas


def _ink_to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        with suppress(ImageCms.PyCMSError, OSError):  # broken or not for CMYK
            translated = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(BytesIO(profile)),
                ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
                outputMode="RGB",
            )
            if translated is not None:
                return translated
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    kind, white = "floating-point values", 1
    if image.mode != "F":
        # A TIFF may use fewer bits than it stores; all other formats read here use 16.
        bits = min(16, tags.get(ExifTags.Base.BitsPerSample, (16,))[0])
        kind, white = "whole numbers", 2**bits - 1
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # Written so that NaN is refused too.
        raise ImageReadError(
            f"{kind} from {low!s} to {high!s}: only 0 (black) to {white} (white) is read"
        )
    if image.mode == "F":
        grey = np.rint(values * 255).astype(np.uint8)
    else:
        grey = np.rint(np.arange(white + 1) * (255 / white)).astype(np.uint8)[values]
    if tags.get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO:
        grey = 255 - grey
    scaled = Image.fromarray(grey)
    key = image.info.get("transparency")
    if isinstance(key, int):
        scaled.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return scaled
