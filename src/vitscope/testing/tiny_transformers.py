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
    # what some families lack
    "intermediate_size": 48,
    "use_mean_pooling": False,
}
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
    "vit": partial(_make, "ViT", options=_NO_POOLER),
    "vit_pooler": partial(_make, "ViT"),
    "deit": partial(_make, "DeiT", options=_NO_POOLER),
    "clip": partial(_make, "CLIPVision", model="ModelWithProjection", projection_dim=24),
    "clip_tower": partial(_make, "CLIPVision"),
    "dinov3": partial(_make, "DINOv3ViT", num_register_tokens=4),
    "dinov3_gated": partial(
        _make, "DINOv3ViT", num_register_tokens=4, use_gated_mlp=True, hidden_act="silu"
    ),
    "siglip": partial(_make, "SiglipVision"),
    "msn": partial(_make, "ViTMSN"),
    "metaclip": partial(_make, "MetaClip2Vision"),
    "beit": partial(_make, "Beit", use_relative_position_bias=True),
    "beit_shared": partial(
        _make,
        "Beit",
        use_absolute_position_embeddings=True,
        use_shared_relative_position_bias=True,
        layer_scale_init_value=0.0,
    ),
    "data2vec": partial(
        _make,
        "Data2VecVision",
        use_relative_position_bias=True,
        use_shared_relative_position_bias=True,
    ),
    "internvl": partial(_make, "InternVLVision"),
    "aimv2": partial(_make, "Aimv2Vision", is_native=True),
}
"""Builders by name. Patches of 8 px; the native input is 32 x 32 px."""

AVERAGED_TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "ijepa": partial(_make, "IJepa"),
    "siglip_headless": partial(_make, "SiglipVision", vision_use_head=False),
    "aimv2_headless": partial(_make, "Aimv2Vision", use_head=False),
    "beit_mean": partial(_make, "Beit", use_mean_pooling=True, use_relative_position_bias=True),
    "data2vec_mean": partial(
        _make, "Data2VecVision", use_mean_pooling=True, use_relative_position_bias=True
    ),
    "internvl_mean": partial(
        _make, "InternVLVision", use_mean_pooling=True, use_qk_norm=True, norm_type="rms_norm"
    ),
}
"""Builders of models whose global feature is the mean of their patches: they have no row."""
