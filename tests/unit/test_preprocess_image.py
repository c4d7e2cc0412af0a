"""Resizing, cropping and normalising agree with torchvision bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from images import preprocess_image
from vitscope.images import decoding
from vitscope.images.preprocessing import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RNG = np.random.default_rng(0)
# As (width, height): ordinary, odd, square, tiny, exactly the crop's, long and thin.
SIZES = [(640, 427), (427, 640), (97, 101), (33, 33), (5, 3), (1, 1), (28, 28), (32, 32), (3, 500)]
FILTERS = {
    "nearest": transforms.InterpolationMode.NEAREST,
    "bilinear": transforms.InterpolationMode.BILINEAR,
    "bicubic": transforms.InterpolationMode.BICUBIC,
    "lanczos": transforms.InterpolationMode.LANCZOS,
}


def make_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_gradient(width: int, height: int) -> Image.Image:
    values = np.add.outer(np.linspace(0, 255, height), np.linspace(0, 255, width)) / 2
    return Image.fromarray(np.repeat(values[..., None], 3, axis=-1).astype(np.uint8))


def make_preprocessing(**changes) -> Preprocessing:
    return Preprocessing(**{"size": (28, 28), "mean": MEAN, "std": STD, **changes})


def torchvision_pixels(image, preprocessing: Preprocessing, resize) -> torch.Tensor:
    pipeline = transforms.Compose(
        [
            transforms.Resize(resize, interpolation=FILTERS[preprocessing.interpolation]),
            transforms.CenterCrop(preprocessing.size),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    return pipeline(image)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("crop_fraction", "resize"), [(1.0, 28), (0.875, 32), (28 / 33, 33), (0.94, 30)]
)
@pytest.mark.parametrize("size", SIZES)
def test_cover_is_torchvisions_shorter_side(size, crop_fraction, resize, interpolation):
    preprocessing = make_preprocessing(crop_fraction=crop_fraction, interpolation=interpolation)
    image = make_image(*size)
    pixels = preprocess_image(image, preprocessing)
    assert torch.equal(pixels, torchvision_pixels(image, preprocessing, resize))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.integers(0, 9))
@settings(deadline=None)
def test_cover_is_torchvisions_for_any_shape(width, height, side, border):
    preprocessing = make_preprocessing(size=(side, side), crop_fraction=side / (side + border))
    image = make_gradient(width, height)
    expected = torchvision_pixels(image, preprocessing, side + border)
    assert torch.equal(preprocess_image(image, preprocessing), expected)


def test_the_sizes_of_the_models_at_hand():
    """224 of 256 (DINOv2 in transformers) and 518 of 518 (timm)."""
    for side, resize in ((224, 256), (518, 518)):
        preprocessing = make_preprocessing(size=(side, side), crop_fraction=side / resize)
        image = make_image(500, 375)
        expected = torchvision_pixels(image, preprocessing, resize)
        assert torch.equal(preprocess_image(image, preprocessing), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("target", "crop_fraction", "resize"),
    [((28, 28), 1.0, (28, 28)), ((28, 42), 1.0, (28, 42)), ((28, 42), 0.875, (32, 48))],
)
def test_stretch_is_torchvisions_resize_of_both_sides(size, target, crop_fraction, resize):
    preprocessing = make_preprocessing(size=target, crop_fraction=crop_fraction, resize="stretch")
    image = make_image(*size)
    pixels = preprocess_image(image, preprocessing)
    assert torch.equal(pixels, torchvision_pixels(image, preprocessing, resize))


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((100, 100), (42, 42)),  # The width decides: 28 x 42 of a square.
        ((300, 100), (28, 84)),  # The height decides: the image is wider than the crop.
        ((150, 100), (28, 42)),  # Exactly the crop's shape.
        ((100, 300), (126, 42)),
        ((7, 5), (30, 42)),
    ],
)
def test_cover_of_a_crop_that_is_not_square(size, resized):
    preprocessing = make_preprocessing(size=(28, 42))
    image = make_image(*size)
    pixels = preprocess_image(image, preprocessing)
    assert pixels.shape == (3, 28, 42)
    assert torch.equal(pixels, torchvision_pixels(image, preprocessing, resized))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(640, 427), (97, 101), (5, 3), (1, 1), (3, 500), (400, 1)])
def test_resampling_the_kept_part_alone_is_the_same_image(monkeypatch, size, interpolation):
    preprocessing = make_preprocessing(crop_fraction=0.875, interpolation=interpolation)
    image = make_gradient(*size)
    whole = preprocess_image(image, preprocessing)
    monkeypatch.setattr(decoding, "_MAX_RESIZED_PIXELS", 0)
    part = preprocess_image(image, preprocessing)
    # The filter's weights are formed from the part's own edges: one may round to the next level.
    assert ((part - whole).abs().amax(dim=(1, 2)) <= 1.01 / 255 / torch.tensor(STD)).all()


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (1, 10_000_000), (20_000_000, 2)])
def test_long_thin_images(size):
    stripes = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    stripes[: size[1] // 2 + 1, : size[0] // 2 + 1] = [255, 128, 0]
    preprocessing = make_preprocessing(size=(224, 224), mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = preprocess_image(Image.fromarray(stripes), preprocessing)
    assert pixels.shape == (3, 224, 224)
    # The crop is the one or two pixels around the middle, the first of which has the colour.
    assert torch.equal(pixels[:, 0, 0], torch.tensor([255.0, 128.0, 0.0]) / 255)


def test_pixels_are_contiguous_float32_of_their_own():
    image = make_image(28, 28)
    preprocessing = make_preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels = preprocess_image(image, preprocessing)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    pixels.zero_()
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert torch.equal(preprocess_image(image, preprocessing), expected)
