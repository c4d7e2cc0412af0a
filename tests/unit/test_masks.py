"""Masks: which is whose, how they are read, and that they are cropped as the images are."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from encoded import encode, exif, palette_image
from images import IMAGE_COVARIATES
from vitscope.errors import ImageReadError, UsageError
from vitscope.images.covariates import (
    SEGMENT_COVARIATES,
    compute_covariates,
    compute_segment_covariates,
)
from vitscope.images.decoding import decode_image, prepare_image
from vitscope.images.image_set import ImageSet, iter_batches
from vitscope.images.masks import crop_mask, decode_mask, find_masks
from vitscope.images.preprocessing import Preprocessing
from vitscope.images.search import find_images

PREPROCESSING = Preprocessing(size=(8, 12), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
COCO = Path(__file__).parents[3] / "shared" / "data" / "coco-scenes"


def numbers_of(image) -> np.ndarray:
    """R + 256 G + 65536 B."""
    red, green, blue = np.asarray(image).astype(int).transpose(2, 0, 1)
    return red + 256 * green + 65536 * blue


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    return images, masks


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def test_masks_among_the_images_are_noted(folders):
    images, _ = folders
    root = images.parent
    touch(root, "images/1.jpg", "images/2.jpg", "images/3.png", "masks/1.png", "masks/2.png")
    (note,) = find_images(root).notes
    assert note.startswith("2 of 5 images are PNG files named like other images")
    assert "(masks/1.png beside images/1.jpg)" in note
    assert find_images(images).notes == ()


def test_classes_that_number_their_images_alike_are_no_masks(tmp_path):
    touch(tmp_path, "cats/1.jpg", "dogs/1.jpg", "cats/2.png", "dogs/2.png")
    assert find_images(tmp_path).notes == ()


# Which is whose


def test_masks_are_matched_by_name(folders):
    images, masks = folders
    odd = os.fsdecode(b"not-utf-8-\xff")
    names = ["a.jpg", "sub/b.tar.png", "none.jpg", f"{odd}.jpg", "-rf.jpg"]
    touch(masks, "a.png", "b.tar.PNG", f"{odd}.png", "-rf.png", "none.jpg", ".none.png", "x.png")
    found = find_masks(masks, touch(images, *names))
    assert [mask and mask.name for mask in found] == [
        "a.png",
        "b.tar.PNG",
        None,
        f"{odd}.png",
        "-rf.png",
    ]
    assert find_masks(str(masks), [images / "a.jpg"]) == (masks / "a.png",)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("missing", "'missing' cannot be searched for masks: No such file or directory"),
        ("a.jpg", "cannot be searched for masks: Not a directory"),
        ("null\0byte", "cannot be searched for masks: embedded null byte"),
        ("x\n\udcff", r"'x\n\udcff' cannot be searched"),
        ("empty", "'empty' has no mask for any of the 3 images: expected PNG files"),
        ("twice", "could be of 2 images of that name"),
    ],
)
def test_folders_that_do_not_fit_are_refused_in_one_line(tmp_path, monkeypatch, folder, expected):
    monkeypatch.chdir(tmp_path)
    images = touch(tmp_path, "a.jpg", "sub/a.jpg", "b.jpg")
    touch(tmp_path, "empty/c.png", "twice/a.png")
    with pytest.raises(UsageError) as caught:
        find_masks(folder, images)
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


# Reading


def test_a_colour_mask_is_a_number_of_three_bytes():
    mask = decode_mask(encode(IMAGE, "PNG"))
    assert mask.mode == "I"
    np.testing.assert_array_equal(np.asarray(mask), numbers_of(IMAGE))


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.uint8([[0, 7], [255, 7]]), [[0, 7], [255, 7]]),
        (np.uint16([[0, 7], [26_001, 65_535]]), [[0, 7], [26_001, 65_535]]),
        (np.array([[False, True]]), [[0, 1]]),
        (palette_image(), [[0, 1, 2, 3]]),
    ],
    ids=["8-bit", "16-bit", "1-bit", "palette"],
)
def test_other_masks_keep_their_stored_numbers(stored, expected):
    np.testing.assert_array_equal(np.asarray(decode_mask(encode(stored, "PNG"))), expected)


def test_a_mask_is_turned_as_its_own_exif_says():
    turned = np.asarray(decode_mask(encode(IMAGE, "PNG", exif=exif(6))))
    np.testing.assert_array_equal(turned, np.rot90(numbers_of(IMAGE), -1))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "the file is empty"),
        (b"no image", "damaged at its beginning: expected PNG"),
        (encode(IMAGE, "BMP"), "expected PNG"),
        (encode(IMAGE, "PNG")[:600], "damaged or cut short"),
        (encode(np.zeros((2, 2, 4), dtype=np.uint8), "PNG"), "mode RGBA: expected RGB"),
    ],
)
def test_what_is_no_mask_is_refused_in_one_line(data, expected):
    with pytest.raises(ImageReadError) as caught:
        decode_mask(data)
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    data = encode(IMAGE, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageReadError, match="too large"):
        decode_mask(data)


# Cropping


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from(["cover", "stretch"]),
    st.sampled_from([1.0, 0.875, 0.5]),
)
@settings(deadline=None)
def test_a_mask_is_cropped_as_its_image_and_no_number_changes(width, height, resize, fraction):
    image = Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
    preprocessing = Preprocessing(
        size=(8, 12), resize=resize, crop_fraction=fraction, mean=(0,) * 3, std=(1,) * 3
    )
    # The image is its own mask: sampled at the nearest pixel, each must show the other's numbers.
    mask = decode_mask(encode(image, "PNG"))
    nearest = Preprocessing(**{**vars(preprocessing), "interpolation": "nearest"})
    expected = numbers_of(prepare_image(image, nearest)[0])
    np.testing.assert_array_equal(crop_mask(mask, image, preprocessing), expected)


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic", "lanczos"])
def test_a_mask_lies_on_what_a_filter_makes_of_the_image(filter_):
    """Along an edge the filtered image is in between; elsewhere the two agree."""
    black = np.zeros((97, 203), dtype=np.uint8)
    black[30:70, 50:130] = 255
    preprocessing = Preprocessing(
        size=(28, 42), interpolation=filter_, crop_fraction=0.875, mean=(0,) * 3, std=(1,) * 3
    )
    image = Image.fromarray(black).convert("RGB")
    segments = crop_mask(decode_mask(encode(black, "PNG")), image, preprocessing)
    levels = np.asarray(prepare_image(image, preprocessing)[0])[..., 0].astype(int)
    # Of less than half a level or more than half: the pixel's middle lies on that side.
    np.testing.assert_array_equal(segments > 127, levels > 127)


def test_a_mask_of_another_size_is_refused():
    mask = decode_mask(encode(IMAGE, "PNG"))
    with pytest.raises(ImageReadError, match=r"30 x 20 pixels, the image, as it is shown, has 20"):
        crop_mask(mask, Image.new("RGB", (20, 30)), PREPROCESSING)


# In a set


def write_set(folders: tuple[Path, Path], count: int, masked) -> None:
    images, masks = folders
    for i in range(count):
        image = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        (images / f"{i:02}.png").write_bytes(encode(image, "PNG"))
        if i in masked:
            mask = RNG.integers(0, 4, (20, 30), dtype=np.uint8)
            (masks / f"{i:02}.png").write_bytes(encode(mask, "PNG"))


def read_all(image_set: ImageSet, num_workers: int = 0) -> dict[str, list[float]]:
    batches = list(iter_batches(image_set, batch_size=3, num_workers=num_workers))
    assert not any(batch.failures for batch in batches)
    assert all(v.dtype == torch.float64 for batch in batches for v in batch.covariates.values())
    names = batches[0].covariates
    return {name: torch.cat([b.covariates[name] for b in batches]).tolist() for name in names}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_covariates_come_with_their_images(folders, num_workers):
    write_set(folders, 7, masked={0, 2, 3, 6})
    image_set = ImageSet.from_sources([folders[0]], PREPROCESSING, masks=folders[1])
    found = read_all(image_set, num_workers)
    assert tuple(found) == IMAGE_COVARIATES + SEGMENT_COVARIATES
    for row, path in enumerate(image_set.addresses):
        image = decode_image(path.read_bytes(), background=255)
        expected = compute_covariates(prepare_image(image, PREPROCESSING)[0])
        expected |= dict.fromkeys(SEGMENT_COVARIATES, np.nan)
        if image_set.masks[row] is not None:
            mask = decode_mask(image_set.masks[row].read_bytes())
            expected |= compute_segment_covariates(crop_mask(mask, image, PREPROCESSING))
        row_found = {name: values[row] for name, values in found.items()}
        assert row_found == pytest.approx(expected, nan_ok=True)


def test_without_masks_there_are_no_segments(folders):
    write_set(folders, 2, masked={0})
    image_set = ImageSet.from_sources([folders[0]], PREPROCESSING)
    assert image_set.masks == ()
    assert tuple(read_all(image_set)) == IMAGE_COVARIATES


def test_a_draw_keeps_images_and_masks_together(folders):
    write_set(folders, 20, masked=set(range(0, 20, 2)))
    image_set = ImageSet.from_sources(
        [folders[0]], PREPROCESSING, limit=9, seed=3, masks=folders[1]
    )
    assert len(image_set.masks) == len(image_set.addresses) == 9
    assert any(image_set.masks)
    assert not all(image_set.masks)
    for path, mask in zip(image_set.addresses, image_set.masks, strict=True):
        assert (mask is not None) == (int(path.stem) % 2 == 0)
        assert mask is None or mask.stem == path.stem


def test_a_draw_without_masks_from_a_set_with_masks_is_no_mistake(folders):
    write_set(folders, 20, masked={19})
    image_set = ImageSet.from_sources([folders[0]], PREPROCESSING, limit=1, masks=folders[1])
    assert image_set.masks == (None,)
    assert np.isnan(read_all(image_set)["num_segments"]).all()


def test_a_image_whose_mask_is_bad_is_a_failure_that_says_so(folders):
    write_set(folders, 4, masked={0, 1, 2})
    images, masks = folders
    (masks / "00.png").write_bytes((masks / "00.png").read_bytes()[:60])
    (masks / "01.png").write_bytes(encode(IMAGE[:10], "PNG"))
    (masks / "02.png").unlink()
    (masks / "02.png").mkdir()
    image_set = ImageSet.from_sources([images], PREPROCESSING, masks=masks)
    (batch,) = iter_batches(image_set, batch_size=9)
    assert batch.indices == [3]
    reasons = [failure.reason for failure in batch.failures]
    assert reasons[0].startswith("its mask: damaged or cut short")
    assert reasons[1].startswith("its mask: 30 x 10 pixels, the image")
    assert reasons[2] == "its mask: not a regular file"


def test_a_mask_of_the_image_as_it_is_shown(folders):
    images, masks = folders
    (images / "a.jpg").write_bytes(encode(IMAGE, "JPEG", exif=exif(6)))
    (masks / "a.png").write_bytes(encode(np.full((30, 20), 5, dtype=np.uint8), "PNG"))
    image_set = ImageSet.from_sources([images], PREPROCESSING, masks=masks)
    assert read_all(image_set)["largest_segment"] == [1]


@pytest.mark.skipif(not COCO.is_dir(), reason="needs ../shared/data/coco-scenes")
def test_panoptic_masks_of_coco():
    preprocessing = Preprocessing(size=(224, 224), mean=(0,) * 3, std=(1,) * 3)
    image_set = ImageSet.from_sources(
        [COCO / "images"], preprocessing, limit=6, masks=COCO / "panoptic"
    )
    found = read_all(image_set)
    assert all(2 <= number <= 60 for number in found["num_segments"])
    assert all(0.05 < area <= 1 for area in found["largest_segment"])
    assert all(6 < entropy < 8 for entropy in found["entropy"])
