"""Tiny random models of every transformers family, built from the library's own configurations."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    BeitConfig,
    BeitModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Data2VecVisionConfig,
    Data2VecVisionModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    IJepaConfig,
    IJepaModel,
    InternVLVisionConfig,
    InternVLVisionModel,
    MetaClip2VisionConfig,
    MetaClip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
    ViTMSNConfig,
    ViTMSNModel,
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
    "msn": partial(_make, ViTMSNModel, ViTMSNConfig, **_MLP),
    "metaclip": partial(_make, MetaClip2VisionModel, MetaClip2VisionConfig, **_MLP),
    "beit": partial(
        _make,
        BeitModel,
        BeitConfig,
        use_relative_position_bias=True,
        use_mean_pooling=False,
        **_MLP,
    ),
    "beit_shared": partial(
        _make,
        BeitModel,
        BeitConfig,
        use_absolute_position_embeddings=True,
        use_shared_relative_position_bias=True,
        layer_scale_init_value=0.0,
        use_mean_pooling=False,
        **_MLP,
    ),
    "data2vec": partial(
        _make,
        Data2VecVisionModel,
        Data2VecVisionConfig,
        use_relative_position_bias=True,
        use_shared_relative_position_bias=True,
        use_mean_pooling=False,
        **_MLP,
    ),
    "internvl": partial(
        _make, InternVLVisionModel, InternVLVisionConfig, use_mean_pooling=False, **_MLP
    ),
    "aimv2": partial(_make, Aimv2VisionModel, Aimv2VisionConfig, is_native=True, **_MLP),
}
"""Builders by name: DINOv2 (layer scale, SwiGLU, registers), ViT, DeiT (distillation token), CLIP
(with and without projection), DINOv3 (registers, rotary positions), SigLIP and AIMv2 (attention
pooling), ViTMSN, MetaCLIP 2, BEiT and data2vec (relative positions) and InternViT. Patches of 8 px;
the native input is 32 x 32 px."""

AVERAGED_TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "ijepa": partial(_make, IJepaModel, IJepaConfig, **_MLP),
    "siglip_headless": partial(
        _make, SiglipVisionModel, SiglipVisionConfig, vision_use_head=False, **_MLP
    ),
    "aimv2_headless": partial(_make, Aimv2VisionModel, Aimv2VisionConfig, use_head=False, **_MLP),
    "beit_mean": partial(_make, BeitModel, BeitConfig, use_relative_position_bias=True, **_MLP),
    "data2vec_mean": partial(
        _make, Data2VecVisionModel, Data2VecVisionConfig, use_relative_position_bias=True, **_MLP
    ),
    "internvl_mean": partial(
        _make,
        InternVLVisionModel,
        InternVLVisionConfig,
        use_qk_norm=True,
        norm_type="rms_norm",
        **_MLP,
    ),
}
"""Builders of models whose global feature is the mean of their patches: they have no row."""
