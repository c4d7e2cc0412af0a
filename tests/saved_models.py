"""Folders written by `save_pretrained`, and the messages of loading them."""

import json

import pytest
import torch
from transformers import BitImageProcessor

from vitscope.adapters.transformers import load_transformers
from vitscope.testing.tiny_transformers import TINY_TRANSFORMERS

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def save_dinov2(folder):
    """Save a tiny DINOv2 and its image processor."""
    TINY_TRANSFORMERS["dinov2"]().save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 40},
        crop_size={"height": 32, "width": 32},
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    ).save_pretrained(folder)
    return folder


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def run(adapter, pixels=PIXELS):
    return adapter.trace(pixels, [adapter.last_layer], lambda _: None)


def run_tiny(name):
    with torch.no_grad():
        return TINY_TRANSFORMERS[name]()(PIXELS).pooler_output


def refuse(folder, error, words):
    with pytest.raises(error, match=words) as caught:
        load_transformers(str(folder))
    assert "\n" not in str(caught.value)
