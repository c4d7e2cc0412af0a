"""timm's DINOv2 with registers and random weights: nothing is downloaded."""

from typing import Any

import timm

import vitscope
from vitscope.models.base import ViTAdapter
from vitscope.testing import randomize
from vitscope.testing.tiny_timm import TINY_TIMM


def load_dinov2_reg(name: str, **settings: Any) -> ViTAdapter:
    """A DINOv2 with four registers of timm: tiny, small or giant."""
    if name == "tiny":
        return vitscope.wrap_model(TINY_TIMM["dinov2_reg"](), model_id="dinov2-tiny-reg")
    module = timm.create_model(
        f"vit_{name}_patch14_reg4_dinov2", num_classes=0, dynamic_img_size=True, **settings
    )
    return vitscope.wrap_model(randomize(module), model_id=f"dinov2-{name}-reg")
