"""Tiny random models of every transformers family, built from the library's own configurations."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from vitscope.testing.randomize import randomize

_SIZE = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_MLP = {"intermediate_size": 48}


def _make(
    build: Callable[..., nn.Module], config: Callable[..., Any], **settings: Any
) -> nn.Module:
    return randomize(build(config(**{**_SIZE, **settings})))


TINY_TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "dinov2": partial(_make, Dinov2Model, Dinov2Config, mlp_ratio=2),
    "dinov2_swiglu": partial(
        _make, Dinov2Model, Dinov2Config, use_swiglu_ffn=True, qkv_bias=False, drop_path_rate=0.1
    ),
    "dinov2_registers": partial(
        _make, Dinov2WithRegistersModel, Dinov2WithRegistersConfig, num_register_tokens=3
    ),
    "vit": partial(_make, partial(ViTModel, add_pooling_layer=False), ViTConfig, **_MLP),
    "vit_pooler": partial(_make, ViTModel, ViTConfig, **_MLP),
    "deit": partial(_make, partial(DeiTModel, add_pooling_layer=False), DeiTConfig, **_MLP),
    "clip": partial(
        _make, CLIPVisionModelWithProjection, CLIPVisionConfig, projection_dim=24, **_MLP
    ),
    "clip_tower": partial(_make, CLIPVisionModel, CLIPVisionConfig, **_MLP),
    "dinov3": partial(_make, DINOv3ViTModel, DINOv3ViTConfig, num_register_tokens=4, **_MLP),
    "dinov3_gated": partial(
        _make,
        DINOv3ViTModel,
        DINOv3ViTConfig,
        num_register_tokens=4,
        use_gated_mlp=True,
        hidden_act="silu",
        **_MLP,
    ),
    "siglip": partial(_make, SiglipVisionModel, SiglipVisionConfig, **_MLP),
}
"""Builders by name: DINOv2 (layer scale, SwiGLU, registers), ViT, DeiT (distillation token), CLIP
(with and without projection), DINOv3 (registers, rotary positions) and SigLIP (attention pooling).
Patches of 8 px; the native input is 32 x 32 px."""
