"""Tiny random models of every transformers family, built from the library's own configurations."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import transformers
from torch import nn

from vitscope.testing.randomize import randomize

_SIZE = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_MLP: dict[str, Any] = {"intermediate_size": 48}
_NO_POOLER = {"add_pooling_layer": False}


def _make(
    family: str, *, model: str = "Model", options: Mapping[str, Any] | None = None, **settings: Any
) -> nn.Module:
    # The library's classes of a family begin with the same words.
    build, configure = (getattr(transformers, family + end) for end in (model, "Config"))
    return randomize(build(configure(**{**_SIZE, **settings}), **(options or {})))


TINY_TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "dinov2": partial(_make, "Dinov2", mlp_ratio=2),
    "dinov2_swiglu": partial(
        _make, "Dinov2", use_swiglu_ffn=True, qkv_bias=False, drop_path_rate=0.1
    ),
    "dinov2_registers": partial(_make, "Dinov2WithRegisters", num_register_tokens=3),
    "vit": partial(_make, "ViT", options=_NO_POOLER, **_MLP),
    "vit_pooler": partial(_make, "ViT", **_MLP),
    "deit": partial(_make, "DeiT", options=_NO_POOLER, **_MLP),
    "clip": partial(_make, "CLIPVision", model="ModelWithProjection", projection_dim=24, **_MLP),
    "clip_tower": partial(_make, "CLIPVision", **_MLP),
    "dinov3": partial(_make, "DINOv3ViT", num_register_tokens=4, **_MLP),
    "dinov3_gated": partial(
        _make, "DINOv3ViT", num_register_tokens=4, use_gated_mlp=True, hidden_act="silu", **_MLP
    ),
    "siglip": partial(_make, "SiglipVision", **_MLP),
    "msn": partial(_make, "ViTMSN", **_MLP),
    "metaclip": partial(_make, "MetaClip2Vision", **_MLP),
    "beit": partial(_make, "Beit", use_relative_position_bias=True, use_mean_pooling=False, **_MLP),
    "beit_shared": partial(
        _make,
        "Beit",
        use_absolute_position_embeddings=True,
        use_shared_relative_position_bias=True,
        layer_scale_init_value=0.0,
        use_mean_pooling=False,
        **_MLP,
    ),
    "data2vec": partial(
        _make,
        "Data2VecVision",
        use_relative_position_bias=True,
        use_shared_relative_position_bias=True,
        use_mean_pooling=False,
        **_MLP,
    ),
    "internvl": partial(_make, "InternVLVision", use_mean_pooling=False, **_MLP),
    "aimv2": partial(_make, "Aimv2Vision", is_native=True, **_MLP),
}
"""Builders by name: DINOv2 (layer scale, SwiGLU, registers), ViT, DeiT (distillation token), CLIP
(with and without projection), DINOv3 (registers, rotary positions), SigLIP and AIMv2 (attention
pooling), ViTMSN, MetaCLIP 2, BEiT and data2vec (relative positions) and InternViT. Patches of 8 px;
the native input is 32 x 32 px."""

AVERAGED_TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "ijepa": partial(_make, "IJepa", **_MLP),
    "siglip_headless": partial(_make, "SiglipVision", vision_use_head=False, **_MLP),
    "aimv2_headless": partial(_make, "Aimv2Vision", use_head=False, **_MLP),
    "beit_mean": partial(_make, "Beit", use_relative_position_bias=True, **_MLP),
    "data2vec_mean": partial(_make, "Data2VecVision", use_relative_position_bias=True, **_MLP),
    "internvl_mean": partial(
        _make, "InternVLVision", use_qk_norm=True, norm_type="rms_norm", **_MLP
    ),
}
"""Builders of models whose global feature is the mean of their patches: they have no row."""
