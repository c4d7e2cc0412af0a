"""Bytes that are no image, no longer one, or one too many: each is refused in one line."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from encoded import (
    GRADIENT,
    NOISE,
    SMOOTH,
    decode,
    encode,
    exif,
    palette_image,
    png,
    reason,
    tiff,
)
from vitscope.errors import ImageReadError
from vitscope.images.decoding import decode_image, image_id


def test_an_empty_file():
    assert reason(b"") == "the file is empty"


@pytest.mark.parametrize(
    "data",
    [
        b"<html>404</html>",
        b"\0",
        b"\xff\xd8\xff",
        encode(NOISE, "EPS"),
        png(8, 0, (0, 1), b"\0"),
        tiff((0, 1), (8,), 1, b"\0"),
    ],
    ids=["html", "null", "magic-only", "postscript", "png-no-pixels", "tiff-no-pixels"],
)
def test_what_is_not_a_image_says_what_would_be(data):
    assert reason(data).startswith("not an image")
    assert "JPEG" in reason(data)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_half_a_file_is_not_half_a_image(file_format):
    data = encode(np.tile(NOISE, (8, 8, 1)), file_format)
    assert reason(data[: len(data) // 2])


def test_a_bomb_is_refused_before_it_is_decoded():
    # There is nothing to decode: had it come to that, the reason would be another.
    assert "400000000 pixels" in reason(png(8, 2, (20000, 20000), b""))


def test_a_large_image_below_the_limit_is_read_without_a_warning(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", NOISE.shape[0] * NOISE.shape[1] - 1)
    np.testing.assert_array_equal(decode(encode(NOISE, "PNG")), NOISE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", NOISE.shape[0] * NOISE.shape[1] // 2 - 1)
    assert reason(encode(NOISE, "PNG")).startswith("too large")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (MemoryError(), "not enough memory"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (OSError("bad\n<b>\x1b[31m"), "damaged or cut short: bad <b>?[31m"),
    ],
)
def test_whatever_a_decoder_raises_becomes_one_line(monkeypatch, raised, expected):
    data = encode(NOISE, "PNG")

    def load(image):
        raise raised

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    assert expected in reason(data)


def read_or_refuse(data: bytes) -> None:
    try:
        image = decode_image(data, background=255)
    except ImageReadError:
        return
    assert image.mode == "RGB"


SAMPLES = [
    encode(SMOOTH, "JPEG", exif=exif(6)),
    encode(SMOOTH, "JPEG", progressive=True),
    encode(SMOOTH, "PNG", exif=exif(6)),
    encode(palette_image(), "PNG", transparency=1),
    encode(SMOOTH, "WEBP", exif=exif(6)),
    encode(SMOOTH, "GIF"),
    encode(SMOOTH, "BMP"),
    encode(GRADIENT, "TIFF"),
]
MAGIC = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"P6 ", b"RIFF"]


@given(st.sampled_from(MAGIC), st.binary(max_size=400))
def test_random_bytes_raise_nothing_else(magic, tail):
    read_or_refuse(magic + tail)


@given(st.sampled_from(SAMPLES), st.floats(0, 1))
def test_cut_anywhere_raises_nothing_else(data, kept):
    read_or_refuse(data[: int(kept * len(data))])


@given(st.sampled_from(SAMPLES), st.data())
def test_damaged_anywhere_raises_nothing_else(data, draw):
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        damaged[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    read_or_refuse(bytes(damaged))


# Identity


def test_identity_is_of_the_bytes_alone():
    data = encode(NOISE, "PNG")
    assert image_id(data) == image_id(bytes(bytearray(data)))
    assert image_id(data) != image_id(data + b"\0")
    assert image_id(b"") == "cae66941d9efbd404e4d88758ea67670"
