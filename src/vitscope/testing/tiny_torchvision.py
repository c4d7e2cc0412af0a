"""Tiny random Vision Transformers of torchvision."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from vitscope.testing.randomize import randomize


def _make(**settings: Any) -> nn.Module:
    return randomize(
        VisionTransformer(
            image_size=32,
            patch_size=8,
            num_layers=3,
            num_heads=4,
            hidden_dim=32,
            mlp_dim=48,
            num_classes=5,
            **settings,
        )
    )


TINY_TORCHVISION: dict[str, Callable[[], nn.Module]] = {
    "vit": _make,
    "vit_stem": partial(
        _make, conv_stem_configs=[ConvStemConfig(8, 4, 4), ConvStemConfig(8, 2, 2)]
    ),
}
"""Builders by name: patches by one convolution, and by several."""
