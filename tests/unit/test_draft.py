"""JPEG files decoded as drafts: smaller, never too small, and only where it was asked for."""

from dataclasses import asdict

import numpy as np
import pytest

from encoded import SMOOTH, encode, exif
from vitscope.errors import UsageError
from vitscope.images.decoding import decode_for_model, decode_image, prepare_image
from vitscope.images.image_set import ImageSet, iter_batches
from vitscope.images.preprocessing import Preprocessing

LARGE = np.kron(SMOOTH, np.ones((16, 16, 1), dtype=np.uint8))  # 768 x 1024
JPEG = encode(LARGE, "JPEG", quality=95)


def prepare(side: int, **options) -> Preprocessing:
    return Preprocessing(size=(side, side), mean=(0.5,) * 3, std=(0.5,) * 3, **options)


@pytest.mark.parametrize(
    ("side", "crop_fraction", "expected"),
    [
        (48, 1.0, (128, 96)),  # an eighth is exactly twice the target
        (49, 1.0, (256, 192)),
        (48, 0.5, (256, 192)),  # what is cropped is resized to twice the input first
        (192, 1.0, (512, 384)),
        (193, 1.0, (1024, 768)),
        (800, 1.0, (1024, 768)),
    ],
)
def test_a_draft_is_at_least_twice_what_it_is_resized_to(side, crop_fraction, expected):
    image = decode_for_model(JPEG, prepare(side, crop_fraction=crop_fraction, draft=True))
    assert image.size == expected


def test_a_draft_of_a_turned_file_is_large_enough_once_it_is_upright():
    turned = encode(LARGE, "JPEG", exif=exif(6))
    preprocessing = Preprocessing(size=(96, 48), mean=(0,) * 3, std=(1,) * 3, draft=True)
    assert decode_for_model(turned, preprocessing).size == (192, 256)


def test_without_asking_nothing_is_a_draft():
    image = decode_for_model(JPEG, prepare(48))
    assert np.array_equal(image, decode_image(JPEG, background=255))
    assert image.size == (1024, 768)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_only_jpeg_files_are_drafts(file_format):
    data = encode(LARGE, file_format)
    assert np.array_equal(
        decode_for_model(data, prepare(48, draft=True)), decode_for_model(data, prepare(48))
    )


def test_a_draft_shows_the_same_image():
    shown = [
        np.asarray(prepare_image(decode_for_model(JPEG, one), one)[0], dtype=int)
        for one in (prepare(48, draft=True), prepare(48))
    ]
    # An average over blocks instead of the filter's: a few levels on smooth colours, while a
    # image shifted by a pixel differs by tens.
    assert 0 < np.abs(shown[0] - shown[1]).max() < 16


def test_a_set_decodes_as_it_says_and_says_so(tmp_path):
    (tmp_path / "large.jpg").write_bytes(JPEG)
    draft, whole = (
        next(iter_batches(ImageSet.from_sources(tmp_path, one), batch_size=1))
        for one in (prepare(48, draft=True), prepare(48))
    )
    assert draft.ids == whole.ids
    assert not np.array_equal(draft.pixels, whole.pixels)
    assert asdict(prepare(48, draft=True)) != asdict(prepare(48))


def test_masks_and_drafts_are_refused_together(tmp_path):
    for folder, suffix in (("images", "jpg"), ("masks", "png")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"a.{suffix}").touch()
    with pytest.raises(UsageError, match="masks have the images' original sizes"):
        ImageSet.from_sources(
            tmp_path / "images", prepare(48, draft=True), masks=tmp_path / "masks"
        )
