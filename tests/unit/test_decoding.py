"""One image: every kind is read as a viewer shows it."""

import struct
from io import BytesIO

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from encoded import (
    BLACK,
    BLUE,
    GRADIENT,
    GREEN,
    NOISE,
    RED,
    SMOOTH,
    WHITE,
    decode,
    encode,
    exif,
    grey,
    palette_image,
    png,
    png_chunk,
    reason,
    tiff,
)

REFUSED_BEFORE_13 = pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 13, reason="Pillow before 13 cannot read such a TIFF"
)

# Ordinary images


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("BMP", {}),
        ("JPEG2000", {"irreversible": False}),
        ("PNG", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_keep_every_pixel(file_format, options):
    np.testing.assert_array_equal(decode(encode(NOISE, file_format, **options)), NOISE)


@pytest.mark.parametrize("file_format", ["AVIF", "JPEG", "MPO", "WEBP"])
def test_lossy_formats_keep_the_image(file_format):
    difference = decode(encode(SMOOTH, file_format, quality=95)).astype(int) - SMOOTH
    # At quality 95 a smooth image is off by a few levels; swapped channels are off by 50.
    assert np.abs(difference).mean() < 4


@pytest.mark.parametrize("file_format", ["BMP", "PNG", "TIFF", "PPM", "GIF"])
def test_greyscale_and_one_bit(file_format):
    np.testing.assert_array_equal(decode(encode(NOISE[..., 0], file_format)), grey(NOISE[..., 0]))
    bits = NOISE[..., 0] > 127
    expected = grey(bits * np.uint8(255))
    np.testing.assert_array_equal(decode(encode(Image.fromarray(bits), file_format)), expected)


@pytest.mark.parametrize("mode", ["LAB", pytest.param("YCbCr", marks=REFUSED_BEFORE_13)])
def test_other_colour_spaces_become_rgb(mode):
    colours = np.array([[[200, 100, 50], [50, 100, 200]]], dtype=np.uint8)
    stored = Image.fromarray(colours)
    if mode == "LAB":
        profiles = (ImageCms.createProfile(space) for space in ("sRGB", "LAB"))
        stored = ImageCms.profileToProfile(stored, *profiles, outputMode="LAB")
    read = decode(encode(stored.convert(mode), "TIFF")).astype(int)
    # Both spaces keep 8 bits a channel, a step of which is some levels of red, green or blue.
    assert np.abs(read - colours).max() <= 4


# Turned images

# Where EXIF says that the stored image's first row and first column belong.
UPRIGHT_FROM_STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT_FROM_STORED)
def test_exif_orientation_is_undone(orientation, file_format):
    lossless = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(NOISE, file_format, exif=exif(orientation), **lossless)
    np.testing.assert_array_equal(decode(data), UPRIGHT_FROM_STORED[orientation](NOISE))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "F"])
def test_a_turned_tiff_of_any_mode(mode):
    narrow = NOISE[..., 0]
    kinds = {"I;16": narrow.astype(np.uint16) * 257, "F": narrow.astype(np.float32) / 255}
    image = Image.fromarray(kinds[mode]) if mode in kinds else Image.fromarray(NOISE).convert(mode)
    stored = decode(encode(image, "TIFF"))
    turned = decode(encode(image, "TIFF", exif=exif(6)))
    np.testing.assert_array_equal(turned, UPRIGHT_FROM_STORED[6](stored))


def test_a_phone_held_upright():
    """Orientation 6: the sensor's left edge is the image's top."""
    stored = np.zeros((32, 64, 3), dtype=np.uint8)
    stored[:, :32] = RED
    read = decode(encode(stored, "JPEG", exif=exif(6), quality=95)).astype(int)
    assert read.shape == (64, 32, 3)
    # JPEG keeps flat red within a few levels.
    assert np.abs(read[:24] - RED).max() <= 4
    assert np.abs(read[-24:] - BLACK).max() <= 4


@pytest.mark.parametrize("broken", [b"", b"junk", b"II*\0\xff\xff\xff\xff", 0, 9, 65535])
def test_broken_exif_leaves_the_image_as_stored(broken):
    given = exif(broken) if isinstance(broken, int) else b"Exif\0\0" + broken
    np.testing.assert_array_equal(decode(encode(NOISE, "PNG", exif=given)), NOISE)


# Inks


def cmyk_profile() -> bytes:
    """A press whose cyan ink shows as red and whose magenta and yellow as nothing."""
    # Lab in 8 bits; red is L = 53, a = 80, b = 67. Cyan changes slowest, black fastest.
    white, red, black = bytes([255, 128, 128]), bytes([136, 208, 195]), bytes([0, 128, 128])
    corners = (white + black) * 4 + (red + black) * 4
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity
    table += bytes(range(256)) * 4 + corners + bytes(range(256)) * 3
    offset = 128 + 4 + 12
    header = struct.pack(
        ">I4sI4s4s4s", offset + len(table), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab "
    )
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return header + struct.pack(">I4sII", 1, b"A2B0", offset, len(table)) + table


CYAN_INK = Image.new("CMYK", (16, 16), (255, 0, 0, 0))


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(file_format):
    inks = Image.new("CMYK", (16, 16), (255, 128, 0, 51))
    # Without a profile each ink darkens its colour: (255 - ink)(255 - black) / 255; JPEG at its
    # default quality is off by a few levels, inverted inks would be off by 50 at least.
    expected = [(255 - ink) * (255 - 51) / 255 for ink in (255, 128, 0)]
    assert np.abs(decode(encode(inks, file_format)) - expected).max() <= 4


def test_ycck_becomes_rgb():
    """Inks kept as luminance and chrominance, as Photoshop writes them."""
    # Stored as luminance and chrominance of the inverted inks, each inverted once more.
    inverted = Image.new("RGB", (16, 16), (55, 155, 205)).convert("YCbCr").getpixel((0, 0))
    stored = Image.new("CMYK", (16, 16), (*(255 - level for level in inverted), 0))
    data = bytearray(encode(stored, "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2  # The colour transform, where 2 is YCCK.
    with Image.open(BytesIO(data)) as image:
        assert image.info["adobe_transform"] == 2
    # Flat colours come through JPEG within a few levels.
    assert np.abs(decode(bytes(data)) - np.array([200.0, 100, 50])).max() <= 4


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_goes_through_its_profile(file_format):
    read = decode(encode(CYAN_INK, file_format, icc_profile=cmyk_profile()))
    # The profile's Lab is rounded to 8 bits, a step of which is some levels of red; without the
    # profile the colour is cyan, 255 levels away.
    assert np.abs(read - np.array(RED, dtype=float)).max() <= 12


@pytest.mark.parametrize(
    "profile",
    [
        b"junk",
        bytes(200),
        cmyk_profile()[:400],
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ],
    ids=["junk", "zeros", "cut-short", "not-of-inks"],
)
def test_cmyk_with_a_broken_profile_is_converted_plainly(profile):
    read = decode(encode(CYAN_INK, "TIFF", icc_profile=profile))
    np.testing.assert_array_equal(read, decode(encode(CYAN_INK, "TIFF")))


# Deep greyscale

# 65535 / 255 is 257: each of the 256 levels stands for 257 of the 65536.
GRADIENT_IN_8_BITS = np.rint(GRADIENT / 257).astype(np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(GRADIENT, "PNG"), id="png"),
        pytest.param(encode(GRADIENT, "TIFF"), id="tiff"),
        pytest.param(encode(GRADIENT, "TIFF", compression="tiff_lzw"), id="tiff-lzw"),
        pytest.param(
            encode(Image.frombytes("I;16B", (64, 64), GRADIENT.astype(">u2").tobytes()), "TIFF"),
            id="tiff-big-endian",
        ),
        pytest.param(encode(GRADIENT.astype(np.int32), "TIFF"), id="tiff-32-bit"),
        pytest.param(b"P5 64 64 65535\n" + GRADIENT.astype(">u2").tobytes(), id="pgm"),
        pytest.param(encode(GRADIENT, "JPEG2000"), id="jpeg2000"),
    ],
)
def test_a_16_bit_gradient_keeps_its_gradient(data):
    read = decode(data)
    np.testing.assert_array_equal(read, grey(GRADIENT_IN_8_BITS))
    assert len(np.unique(read)) == 256


def test_pgm_and_tiff_of_other_depths_reach_white():
    read = decode(b"P5 3 1 1023\n" + struct.pack(">3H", 0, 512, 1023))
    np.testing.assert_array_equal(read[0, :, 0], [0, 128, 255])
    read = decode(tiff((2, 1), (12,), 1, bytes([0xFF, 0xF8, 0x00])))
    np.testing.assert_array_equal(read[0, :, 0], [255, 128])


def test_16_bit_tiff_in_which_zero_is_white():
    read = decode(tiff((3, 1), (16,), 0, struct.pack("<3H", 0, 257, 65535)))
    np.testing.assert_array_equal(read[0, :, 0], [255, 254, 0])


def test_16_bit_colour_is_narrowed():
    rows = b"\0" + struct.pack(">6H", 65535, 0, 0x8000, 0, 65535, 0x4000)
    np.testing.assert_array_equal(
        decode(png(16, 2, (2, 1), rows))[0], [[255, 0, 128], [0, 255, 64]]
    )


@pytest.mark.parametrize("values", [[-1, 10], [0, 65536], [0, 2**31 - 1]])
def test_whole_numbers_without_a_known_white_are_refused(values):
    data = encode(np.array([values], dtype=np.int32), "TIFF")
    assert f"whole numbers from {values[0]} to {values[1]}" in reason(data)


def test_floating_point_from_0_to_1():
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    np.testing.assert_array_equal(
        decode(encode(values, "TIFF")), grey(np.arange(256, dtype=np.uint8).reshape(16, 16))
    )


@pytest.mark.parametrize("values", [[-0.1, 1.0], [0.0, 255.0], [0.0, np.nan], [0.0, np.inf]])
def test_floating_point_without_a_known_white_is_refused(values):
    told = f"floating-point values from {np.min(values)} to {np.max(values)}: only"
    assert told in reason(encode(np.array([values], dtype=np.float32), "TIFF"))


@pytest.mark.parametrize(
    ("bits", "sample_format", "photometric", "told"),
    [
        ((64,), 3, 1, "1 x 64-bit floating-point numbers"),
        ((16,), 3, 1, "1 x 16-bit floating-point numbers"),
        ((32, 32, 32), 3, 2, "3 x 32-bit floating-point numbers"),
        ((16, 16, 16), 2, 2, "3 x 16-bit signed whole numbers"),
        ((64,), 1, 1, "1 x 64-bit whole numbers"),
        ((32,), 5, 1, "1 x 32-bit numbers of another kind"),
    ],
)
def test_samples_that_are_not_read_are_named(bits, sample_format, photometric, told):
    advice = "save it as 8-bit RGB, or as grey in 8 or 16 bits"
    message = f"a TIFF of {told} a pixel, which is not read: {advice}"
    assert reason(make_tiff(bits, sample_format, photometric)) == message


@pytest.mark.parametrize(
    ("bits", "kind"), [((8, 8, 8), 3), ((0,), 3), (b"\x10" * 200_000, 7), ("16" * 100_000, 2)]
)
def test_a_tiff_is_not_named_by_samples_that_say_nothing(bits, kind):
    """8 bits in other colours, and tags of other types, which may be of any length."""
    expected = "not an image, or damaged at its beginning"
    assert reason(make_tiff(bits, 1, 9, kind=kind)).startswith(expected)


def make_tiff(bits, sample_format, photometric, *, kind=3):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    count = min(len(bits), 3)
    for tag, value in {256: 2, 257: 2, 259: 1, 262: photometric, 277: count, 278: 2}.items():
        tags[tag] = value
    tags.tagtype[258] = kind
    tags[258], tags[339], tags[273], tags[279] = bits, (sample_format,) * count, 8, 96
    file = BytesIO(b"II*\0" + struct.pack("<I", 8 + 96) + bytes(96))
    file.seek(8 + 96)
    tags.save(file)
    return file.getvalue()


# Transparent images

ALPHA = np.array([[0, 128, 255]], dtype=np.uint8)


@pytest.mark.parametrize("background", [0, 127, 255])
@pytest.mark.parametrize(
    ("mode", "file_format", "options"),
    [
        ("LA", "PNG", {}),
        ("LA", "TIFF", {}),
        ("RGBA", "PNG", {}),
        ("RGBA", "TIFF", {}),
        ("RGBA", "WEBP", {"lossless": True, "exact": True}),
    ],
)
def test_alpha_is_laid_on_the_background(mode, file_format, options, background):
    layer = np.full((1, 3, 3), 200, dtype=np.uint8)
    image = Image.merge("RGBA", (*Image.fromarray(layer).split(), Image.fromarray(ALPHA)))
    share = ALPHA[0] / 255
    expected = grey(np.rint(share * 200 + (1 - share) * background))
    read = decode(encode(image.convert(mode), file_format, **options), background)
    # Pillow blends in whole numbers.
    assert np.abs(read[0] - expected).max() <= 1


@REFUSED_BEFORE_13
def test_premultiplied_grey_is_laid_on_the_background():
    read = decode(tiff((2, 1), (8, 8), 1, bytes([64, 128, 255, 255]), extra=1))
    # Half of a grey that is already dimmed, and half of white; in whole numbers.
    assert np.abs(read[0, :, 0] - np.array([64.0 + 127, 255])).max() <= 1


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette(file_format):
    read = decode(encode(palette_image(), file_format))
    np.testing.assert_array_equal(read[0], [RED, GREEN, BLUE, BLACK])


@pytest.mark.parametrize(("background", "shown"), [(255, WHITE), (0, BLACK)])
@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_palette_with_one_transparent_entry(file_format, background, shown):
    read = decode(encode(palette_image(), file_format, transparency=1), background)
    np.testing.assert_array_equal(read[0], [RED, shown, BLUE, BLACK])


def test_palette_with_graded_transparency():
    read = decode(encode(palette_image(), "PNG", transparency=bytes([255, 0, 128, 255])))
    # Half-transparent blue on white, in whole numbers.
    assert np.abs(read[0] - np.array([RED, WHITE, [127.0, 127, 255], BLACK])).max() <= 1


def test_palette_with_an_alpha_channel():
    image = palette_image().convert("PA")
    image.putalpha(Image.frombytes("L", (4, 1), bytes([255, 0, 255, 255])))
    assert image.mode == "PA"
    np.testing.assert_array_equal(decode(encode(image, "TIFF"))[0], [RED, WHITE, BLUE, BLACK])


@pytest.mark.parametrize(
    ("depth", "rows", "key", "expected"),
    [
        (1, b"\0\x40", 0, [255, 255]),
        (2, b"\0\x60", 1, [255, 170]),
        (4, b"\0\x5a", 5, [255, 170]),
        (8, b"\0\x55\xaa", 0x55, [255, 170]),
        (16, b"\0\x12\x34\x12\x35", 0x1234, [255, 18]),
    ],
)
def test_transparent_grey_of_any_depth(depth, rows, key, expected):
    data = png(depth, 0, (2, 1), rows, png_chunk(b"tRNS", struct.pack(">H", key)))
    np.testing.assert_array_equal(decode(data)[0, :, 0], expected)


@pytest.mark.parametrize(("depth", "sample"), [(8, ">B"), (16, ">H")])
def test_transparent_colour_of_any_depth(depth, sample):
    levels = [0x12, 0x34, 0x56] if depth == 8 else [0x1200, 0x3400, 0x5600]
    others = levels[::-1]
    rows = b"\0" + b"".join(struct.pack(sample, level) for level in levels + others)
    data = png(depth, 2, (2, 1), rows, png_chunk(b"tRNS", struct.pack(">3H", *levels)))
    np.testing.assert_array_equal(decode(data)[0], [WHITE, [0x56, 0x34, 0x12]])


# Moving images and colour profiles


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several(file_format):
    frames = [Image.new("RGB", (8, 8), tuple(colour)) for colour in (RED, GREEN, BLUE)]
    lossless = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **lossless)
    with Image.open(BytesIO(data)) as image:
        assert image.n_frames == 3
    np.testing.assert_array_equal(decode(data), np.broadcast_to(np.uint8(RED), (8, 8, 3)))


@pytest.mark.parametrize("default", [False, True])
def test_the_first_frame_of_an_animation_is_not_what_is_shown_without_it(default):
    frames = [Image.new("RGB", (8, 8), tuple(colour)) for colour in (RED, GREEN, BLUE)]
    data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default)
    np.testing.assert_array_equal(decode(data)[0, 0], GREEN if default else RED)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_rgb_keeps_its_numbers_whatever_its_profile(file_format):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"____").replace(b"gXYZ", b"rXYZ").replace(b"____", b"gXYZ")
    image = Image.fromarray(NOISE)
    managed = ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(BytesIO(swapped)), ImageCms.createProfile("sRGB")
    )
    assert np.abs(np.asarray(managed).astype(int) - NOISE).max() > 50
    np.testing.assert_array_equal(decode(encode(image, file_format, icc_profile=swapped)), NOISE)
