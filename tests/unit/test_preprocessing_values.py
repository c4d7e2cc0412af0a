"""Values of a preprocessing: what cannot be meant is refused where it is written."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torchvision import transforms
from transformers import (
    CLIPImageProcessorPil,
    ConvNextImageProcessor,
    DINOv3ViTImageProcessor,
    ViTImageProcessor,
)

from vitscope.adapters.registry import wrap_model
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.images.preprocessing import Preprocessing
from vitscope.testing.tiny_timm import TINY_TIMM

HALF = (0.5, 0.5, 0.5)
BASE = {"size": (64, 64), "mean": HALF, "std": HALF}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 64}, "size=64: expected two sides in pixels"),
        ({"size": (64,)}, "two sides"),
        ({"size": (64, 64, 3)}, "two sides"),
        ({"size": (64.5, 64)}, "two sides"),
        ({"size": "64"}, "two sides"),
        ({"size": (0, 64)}, "at least 1 pixel"),
        ({"size": None}, "two sides"),
        ({"resize": "squash"}, "resize='squash': expected cover or stretch"),
        ({"resize": "crop"}, "expected cover or stretch"),
        ({"resize": None}, "expected cover or stretch"),
        ({"interpolation": "cubic"}, "expected nearest, bilinear, bicubic or lanczos"),
        ({"interpolation": 3}, "interpolation=3"),
        ({"pipeline": "timm"}, "expected torchvision, transformers"),
        ({"mean": (123.7, 116.3, 103.5)}, "from 0 to 1"),
        ({"mean": (-0.1, 0.5, 0.5)}, "from 0 to 1"),
        ({"mean": (float("nan"), 0.5, 0.5)}, "from 0 to 1"),
        ({"mean": 0.5}, "three numbers"),
        ({"mean": (0.5, 0.5)}, "three numbers"),
        ({"mean": "abc"}, "three numbers"),
        ({"mean": "000"}, "three numbers"),
        ({"std": (58.4, 57.1, 57.4)}, "above 0 and at most 1"),
        ({"std": (0.0, 0.5, 0.5)}, "above 0 and at most 1"),
        ({"std": None}, "three numbers"),
        ({"crop_fraction": 0}, "crop_fraction=0"),
        ({"crop_fraction": 1.5}, "crop_fraction=1.5"),
        ({"crop_fraction": "0.9"}, "crop_fraction='0.9'"),
        ({"crop_fraction": float("nan")}, "crop_fraction=nan"),
        ({"background": 256}, "background=256"),
        ({"background": (255, 255, 255)}, "background="),
        ({"draft": "yes"}, "draft='yes'"),
    ],
)
def test_values_that_cannot_be_meant(changes, words):
    with pytest.raises(UsageError, match=f"^preprocessing .*{words}") as caught:
        Preprocessing(**BASE | changes)
    assert "\n" not in str(caught.value)


def test_sequences_and_numbers_of_other_kinds_are_taken_as_what_they_hold():
    given = Preprocessing(
        size=[np.int64(64), torch.tensor(64)], mean=np.full(3, 0.5), std=torch.full((3,), 0.5)
    )
    assert given == Preprocessing(**BASE)
    assert hash(given) == hash(Preprocessing(**BASE))
    assert json.loads(json.dumps(asdict(given)))["size"] == [64, 64]


def test_another_size_is_checked_too():
    with pytest.raises(UsageError, match="two sides"):
        Preprocessing(**BASE).with_size(64)


def wrap(preprocessing):
    return wrap_model(TINY_TIMM["vit"](), preprocessing=preprocessing).preprocessing


def test_an_image_processor_is_taken_as_a_models_preprocessing():
    found = wrap(ViTImageProcessor(size={"height": 64, "width": 48}, resample=3))
    assert (found.size, found.resize, found.interpolation) == ((64, 48), "stretch", "bicubic")
    assert found.pipeline == "transformers"
    assert wrap(CLIPImageProcessorPil()).pipeline == "transformers-pil"
    assert wrap(DINOv3ViTImageProcessor()).pipeline == "transformers-float"


def test_a_processor_that_holds_an_image_processor_is_taken():
    class Holder(ViTImageProcessor):
        image_processor = ViTImageProcessor(size={"height": 64, "width": 64})

    Holder.__module__ = "transformers.models.x"
    assert wrap(Holder()).size == (64, 64)


def test_an_image_processor_that_is_not_known_is_refused_by_name():
    with pytest.raises(UnsupportedModelError, match="ConvNextImageProcessor is not one of"):
        wrap(ConvNextImageProcessor())


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (transforms.Compose([transforms.ToTensor()]), r"torchvision\.transforms.*Compose"),
        ({"size": 64}, r"builtins\.dict"),
        (lambda image: image, r"builtins\.function"),
        ("bicubic", r"builtins\.str"),
    ],
    ids=["compose", "dictionary", "function", "text"],
)
def test_transforms_are_refused_by_name(given, name):
    module = TINY_TIMM["vit"]()
    with pytest.raises(UsageError, match=f"preprocessing is a {name}: expected") as caught:
        wrap_model(module, preprocessing=given)
    assert "\n" not in str(caught.value)
