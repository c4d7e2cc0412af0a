"""Tiny random timm models of every supported kind, built from its own classes."""

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import QuickGELU, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitscope.testing.randomize import randomize

_SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
_TWO_THIRDS = 8 / 3
_DINOV3: dict[str, Any] = {
    "dynamic_img_size": True,
    "init_values": 1e-5,
    "num_reg_tokens": 4,
    "rope_rotate_half": True,
    "rope_temperature": 100,
    "rope_type": "dinov3",
    "use_abs_pos_emb": False,
    "use_fc_norm": False,
    "use_rot_pos_emb": True,
}
_EVA02: dict[str, Any] = {
    "swiglu_mlp": True,
    "mlp_ratio": _TWO_THIRDS,
    "use_rot_pos_emb": True,
    "ref_feat_shape": (6, 6),
}
_MIXED: dict[str, Any] = {
    "attn_type": "rope",
    "init_values": 1e-5,
    "use_abs_pos_emb": False,
    "use_rot_pos_emb": True,
    "rope_type": "mixed",
    "dynamic_img_size": True,
}


_CLIP = {"architecture": "vit_tiny_patch8_clip_32", "tag": "openai", "num_classes": 12}


def _make(build: Callable[..., Any], published: Any = None, **settings: Any) -> nn.Module:
    module = build(**{**_SIZE, "num_classes": 0, **settings})
    if published:  # by timm.create_model; shows that the head of a CLIP tower is a projection
        module.pretrained_cfg = published
    return randomize(module)


TINY_TIMM: dict[str, Callable[[], nn.Module]] = {
    "vit": partial(_make, VisionTransformer, num_classes=5),
    "vit_grid": partial(_make, VisionTransformer, img_size=(24, 40), patch_size=(8, 10)),
    "vit_qk_norm": partial(_make, VisionTransformer, qk_norm=True, qkv_bias=False),
    "vit_avg": partial(_make, VisionTransformer, global_pool="avg"),
    "dinov2": partial(_make, VisionTransformer, init_values=1e-5, dynamic_img_size=True),
    "dinov2_reg": partial(
        _make,
        VisionTransformer,
        init_values=1e-5,
        reg_tokens=4,
        no_embed_class=True,
        dynamic_img_size=True,
        mlp_layer=SwiGLUPacked,
        mlp_ratio=2 * _TWO_THIRDS,
    ),
    "deit3": partial(_make, VisionTransformer, init_values=1e-6, no_embed_class=True),
    "deit_distilled": partial(_make, VisionTransformerDistilled),
    "clip": partial(
        _make,
        VisionTransformer,
        _CLIP,
        num_classes=12,
        pre_norm=True,
        act_layer=QuickGELU,
        dynamic_img_size=True,
    ),
    "siglip": partial(
        _make, VisionTransformer, class_token=False, global_pool="map", dynamic_img_size=True
    ),
    "vit_map": partial(_make, VisionTransformer, reg_tokens=2, global_pool="map", fc_norm=True),
    "eva02": partial(_make, Eva, **_EVA02, qkv_fused=False, scale_mlp=True),
    "eva02_fused": partial(_make, Eva, **_EVA02, global_pool="token", dynamic_img_size=True),
    "dinov3": partial(_make, Eva, **_DINOV3, qkv_bias=False),
    "dinov3_bias": partial(_make, Eva, **_DINOV3, swiglu_mlp=True, swiglu_align_to=8),
    "rope_mixed": partial(_make, Eva, **_MIXED, global_pool="token"),
    "rope_grouped": partial(
        _make,
        Eva,
        **_DINOV3,
        attn_type="rope",
        attn_only_layer_scale=True,
        global_pool="token",
        num_kv_heads=2,
        qk_norm=True,
        qkv_fused=False,
    ),
    "eva_map": partial(
        _make,
        Eva,
        attn_type="rope",
        attn_pool_num_heads=2,
        global_pool="map",
        use_pre_transformer_norm=True,
        use_rot_pos_emb=True,
        rope_grid_indexing="xy",
        rope_grid_offset=1.0,
        dynamic_img_size=True,
    ),
}
"""Builders by name; each call makes the same weights, in float32."""

_GAP: dict[str, Any] = {"class_token": False, "global_pool": "avg"}

AVERAGED_TIMM: dict[str, Callable[[], nn.Module]] = {
    "vit_gap": partial(_make, VisionTransformer, **_GAP, dynamic_img_size=True),
    "vit_reg_gap": partial(_make, VisionTransformer, **_GAP, reg_tokens=3, fc_norm=False),
    "vit_all": partial(_make, VisionTransformer, **_GAP, reg_tokens=3, pool_include_prefix=True),
    "rope_gap": partial(_make, Eva, **_GAP, **_MIXED, num_reg_tokens=1),
}
"""Builders of models whose global feature is the mean of their tokens: they have no row."""
