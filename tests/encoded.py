"""Image files for the tests: written with Pillow, or byte by byte where Pillow cannot."""

import pickle
import struct
import zlib
from io import BytesIO
from tempfile import NamedTemporaryFile

import numpy as np
import pytest
from PIL import Image

from vitscope.errors import ImageReadError
from vitscope.images.decoding import decode_image
from vitscope.images.in_memory import HeldImage, hold_images
from vitscope.images.pillow_switches import set_for_decoding

RED, GREEN, BLUE = [255, 0, 0], [0, 255, 0], [0, 0, 255]
WHITE, BLACK = [255, 255, 255], [0, 0, 0]
ORIENTATION = 274

_RNG = np.random.default_rng(0)
NOISE = _RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
SMOOTH = np.asarray(
    Image.fromarray(_RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((64, 48))
)
GRADIENT = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)


def encode(image, file_format, **options) -> bytes:
    stored = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = BytesIO()
    stored.save(buffer, file_format, **options)
    return buffer.getvalue()


def decode(data: bytes, background: int = 255) -> np.ndarray:
    """Decode a file, and check that Pillow's opened image gives the same pixels."""
    image = decode_image(data, background=background)
    assert image.mode == "RGB"
    # Pillow warns about some of these files; it reads named files differently.
    with set_for_decoding(), NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with Image.open(file.name) as opened, Image.open(file.name) as other:
            found = [HeldImage((other,), 0, "", preprocessed=False, from_dataset=True).read()]
            for _ in range(2):  # loading changes what Pillow knows of it
                (held,) = hold_images(opened, "image", preprocessed=False)
                found += [held.read(), pickle.loads(pickle.dumps(held)).read()]
    for read in found:
        np.testing.assert_array_equal(decode_image(read, background=background), image)
    return np.asarray(image)


def reason(data: bytes) -> str:
    """The one-line reason for refusing a file."""
    with pytest.raises(ImageReadError) as caught:
        decode_image(data, background=255)
    assert str(caught.value).isprintable()
    return str(caught.value)


def grey(values) -> np.ndarray:
    return np.repeat(np.asarray(values)[..., None], 3, axis=-1)


def exif(orientation) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def palette_image() -> Image.Image:
    """A palette image: red, green, blue, black."""
    image = Image.frombytes("P", (4, 1), bytes([0, 1, 2, 3]))
    image.putpalette([*RED, *GREEN, *BLUE, *BLACK])
    return image


def png(depth: int, colour: int, size: tuple[int, int], rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG file of a bit depth that Pillow cannot write; each row begins with a zero byte."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def tiff(size: tuple[int, int], bits: tuple[int, ...], photometric: int, data: bytes, extra=None):
    """An uncompressed little-endian TIFF file with one or two samples per pixel."""
    tags = {256: size[0], 257: size[1], 259: 1, 262: photometric, 277: len(bits), 278: size[1]}
    tags |= {258: bits[0] if len(bits) == 1 else bits[0] | bits[1] << 16, 279: len(data)}
    tags |= {} if extra is None else {338: extra}
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4
    counts = {258: len(bits)}
    entries = [struct.pack("<HHII", tag, 3, counts.get(tag, 1), tags[tag]) for tag in sorted(tags)]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + data
