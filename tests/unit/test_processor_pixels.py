"""Pixels of transformers' models are those of their own image processors, bit for bit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor

from images import preprocess_image
from vitscope.adapters.transformers_families import FAMILIES
from vitscope.adapters.transformers_preprocessing import (
    read_preprocessing,
    translate_processor,
)
from vitscope.errors import UnsupportedModelError
from vitscope.images.decoding import prepare_image, resample_with_pillow
from vitscope.images.preprocessing import Preprocessing

RNG = np.random.default_rng(0)
# As (width, height): ordinary, odd, nearly the crop's, smaller than the crop, long and thin.
SIZES = [(640, 427), (333, 500), (224, 225), (256, 256), (100, 37), (301, 300), (7, 5), (1, 1)]
BIT = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
PROCESSORS = {
    "BeitImageProcessor": {},
    "BeitImageProcessorPil": {},
    "BitImageProcessor": BIT,
    "BitImageProcessorPil": BIT,
    "CLIPImageProcessor": {},
    "CLIPImageProcessorPil": {},
    "DeiTImageProcessor": {},
    "DeiTImageProcessorPil": {},
    "DINOv3ViTImageProcessor": {},
    "SiglipImageProcessor": {},
    "SiglipImageProcessorPil": {},
    "ViTImageProcessor": {},
    "ViTImageProcessorPil": {},
}
RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def make_noise(width, height):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_processor(name, **changes):
    return getattr(transformers, name)(**PROCESSORS[name], **changes)


def run_processor(processor, image):
    return processor(image, return_tensors="pt").pixel_values[0]


def assert_same_pixels(processor, image, preprocessing=None):
    preprocessing = preprocessing or translate_processor(processor)
    found, expected = preprocess_image(image, preprocessing), run_processor(processor, image)
    assert found.shape == expected.shape
    if processor.backend == "pil":
        # It scales and normalises in other steps: a few roundings of float32 at |x| < 4.
        torch.testing.assert_close(found, expected, rtol=0, atol=4e-6)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_the_processors(name, size):
    assert_same_pixels(make_processor(name), make_noise(*size))


@pytest.mark.parametrize("resample", RESAMPLING.values(), ids=RESAMPLING)
@pytest.mark.parametrize(
    "name", ["CLIPImageProcessor", "DINOv3ViTImageProcessor", "ViTImageProcessorPil"]
)
def test_every_filter_is_the_processors(name, resample):
    assert_same_pixels(make_processor(name, resample=resample), make_noise(333, 500))


@given(st.integers(1, 400), st.integers(1, 400), st.integers(8, 64), st.integers(0, 9))
@settings(deadline=None, max_examples=150)
def test_the_crop_is_the_processors_for_any_shape(width, height, side, border):
    image = make_noise(width, height)
    crop = {"height": side, "width": side}
    for name in ("BitImageProcessor", "BitImageProcessorPil"):
        kind = getattr(transformers, name)
        assert_same_pixels(kind(size={"shortest_edge": side + border}, crop_size=crop), image)


def test_the_crop_of_an_odd_border_is_not_torchvisions():
    """640 x 427 at a shorter side of 256 is 383 wide: 79.5 pixels are left on either side."""
    image = make_noise(640, 427)
    own = translate_processor(make_processor("BitImageProcessor"))
    other = Preprocessing(**{**vars(own), "pipeline": "torchvision"})
    assert not torch.equal(preprocess_image(image, own), preprocess_image(image, other))


@pytest.mark.parametrize(
    "changes", [{"image_mean": 0.5, "image_std": 0.25}, {"do_normalize": False}]
)
@pytest.mark.parametrize("name", ["CLIPImageProcessor", "DINOv3ViTImageProcessor"])
def test_other_normalisations(name, changes):
    processor = make_processor(name, **changes)
    found = preprocess_image(image := make_noise(300, 200), translate_processor(processor))
    # Without normalisation the level is divided by 255 or multiplied by its inverse.
    torch.testing.assert_close(found, run_processor(processor, image), rtol=0, atol=1e-6)


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CUSTOMARY = {
    "dinov2": ("BitImageProcessor", IMAGENET),
    "dinov2_with_registers": ("BitImageProcessor", IMAGENET),
    "dinov3_vit": ("DINOv3ViTImageProcessor", {}),
    "vit": ("ViTImageProcessor", {}),
    "vit_msn": ("ViTImageProcessor", IMAGENET),
    "ijepa": ("ViTImageProcessor", {}),
    "deit": ("DeiTImageProcessor", IMAGENET),
    "beit": ("BeitImageProcessor", {}),
    "data2vec-vision": ("BeitImageProcessor", {}),
    "internvl_vision": (
        "CLIPImageProcessor",
        IMAGENET,
    ),
    "metaclip_2": ("CLIPImageProcessor", {}),
    "aimv2": ("CLIPImageProcessor", {}),
    "clip": ("CLIPImageProcessor", {}),
    "siglip": ("SiglipImageProcessor", {}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_customarily_wants_is_its_processors(family):
    name, changes = CUSTOMARY[family]
    preprocessing = FAMILIES[family].choose_preprocessing((224, 224))
    for size in ((640, 427), (333, 500)):
        assert_same_pixels(make_processor(name, **changes), make_noise(*size), preprocessing)


@pytest.mark.parametrize(
    "settings_",
    [
        {"image_processor_type": "ViTFeatureExtractor", "size": {"height": 64, "width": 64}},
        {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 64, "width": 64}},
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 64},
        {"feature_extractor_type": "DeiTFeatureExtractor", "size": 72, "crop_size": 64},
        {
            "image_processor_type": "CLIPFeatureExtractor",
            "size": 64,
            "crop_size": 64,
            "resample": 3,
        },
        {
            "image_processor_type": "BitImageProcessorFast",
            "size": {"shortest_edge": 71},
            "crop_size": 64,
        },
        {
            "image_processor_type": "DINOv3ViTImageProcessorFast",
            "size": {"height": 64, "width": 64},
        },
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 64, "width": 64}},
    ],
    ids=lambda value: next(iter(value.values())),
)
def test_processors_read_from_a_folder_under_any_of_their_names(tmp_path, settings_):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **settings_}))
    found = read_preprocessing(tmp_path)
    assert found is not None
    # transformers 5 no longer knows the older names itself.
    key = next(iter(settings_))
    newer = settings_[key].replace("FeatureExtractor", "ImageProcessor")
    del settings_[key]
    path.write_text(
        json.dumps(
            {
                "image_processor_type": newer,
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
                **settings_,
            }
        )
    )
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    for size in ((640, 427), (97, 101)):
        assert_same_pixels(processor, make_noise(*size), found)


def test_settings_inside_the_newer_file_come_first(tmp_path):
    inner = {"image_processor_type": "ViTImageProcessor", "size": {"height": 48, "width": 48}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**inner, "size": 64}))
    assert read_preprocessing(tmp_path).size == (48, 48)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_mean": "mean"},
        {"image_mean": ["a", "b", "c"]},
        {"image_mean": [0.5]},
        {"image_std": 0},
        {"rescale_factor": "1/255"},
        {"rescale_factor": [1]},
        {"size": "large"},
        {"size": {"height": "a", "width": 3}},
        {"resample": "best"},
        {"resample": 99},
        {"crop_size": "x", "do_center_crop": True},
        {"do_pad": True},
        {"image_processor_type": "ConvNextImageProcessor"},
        {"image_processor_type": "Mine"},
        {"image_processor_type": 7},
    ],
    ids=str,
)
def test_damaged_settings_are_refused_in_a_sentence(tmp_path, changes):
    settings_ = {"image_processor_type": "ViTImageProcessor", **changes}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings_))
    with pytest.raises(UnsupportedModelError, match="image processor") as caught:
        read_preprocessing(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "", "[" * 100_000])
def test_a_damaged_file_of_settings(tmp_path, content):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(UnsupportedModelError, match="damaged") as caught:
        read_preprocessing(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["BitImageProcessor", "DINOv3ViTImageProcessor", "SiglipImageProcessorPil"]
)
def test_how_an_image_looks_is_what_the_model_is_given(name):
    preprocessing = replace(translate_processor(make_processor(name)), crop_fraction=0.9)
    shown, pixels = prepare_image(make_noise(333, 500), preprocessing)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    levels = torch.from_numpy(np.array(shown)).permute(2, 0, 1)
    # Half a level, which is what rounding a float costs; nothing where levels were whole.
    bound = 0.5001 if preprocessing.pipeline == "transformers-float" else 1e-3
    assert ((pixels * std + mean) * 255 - levels).abs().max() <= bound
    # What is kept of an image is the crop alone.
    assert pixels.is_contiguous()
    assert pixels.untyped_storage().nbytes() == pixels.nbytes


def test_a_mask_lies_on_the_same_crop():
    preprocessing = translate_processor(make_processor("BitImageProcessor", resample=0))
    levels = np.add.outer(np.zeros(427), np.arange(640)).astype(np.int32)
    mask = np.asarray(resample_with_pillow(Image.fromarray(levels, mode="I"), preprocessing))
    # The crop begins at column 79 of 383, whose centre lies on column 132 of 640.
    assert mask[0, 0] == int((79 + 0.5) * 640 / 383)


@pytest.mark.parametrize("size", [(1, 10_000_000), (20_000_000, 2)])
def test_long_thin_images(size):
    image = Image.new("RGB", size, (255, 128, 0))
    pixels = preprocess_image(image, translate_processor(make_processor("CLIPImageProcessor")))
    assert pixels.shape == (3, 224, 224)
    assert (pixels == pixels[:, :1, :1]).all()
