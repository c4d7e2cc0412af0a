"""Tiny random open_clip models: its own towers, and towers that are timm models."""

from collections.abc import Callable
from functools import partial
from typing import Any

from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import nn

from vitscope.testing.randomize import randomize

_TIMM: dict[str, Any] = {"timm_model_name": "test_vit", "image_size": 160}
_VISION = {"layers": 3, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32}
_TEXT = CLIPTextCfg(context_length=4, vocab_size=8, width=8, heads=2, layers=1)


def make_tiny_clip(*, quick_gelu: bool = False, **settings: Any) -> nn.Module:
    """Make a CLIP model whose image tower, `visual`, has settings of `CLIPVisionCfg`."""
    vision = CLIPVisionCfg(**{**_VISION, **settings})
    return randomize(CLIP(embed_dim=12, vision_cfg=vision, text_cfg=_TEXT, quick_gelu=quick_gelu))


TINY_OPEN_CLIP: dict[str, Callable[[], nn.Module]] = {
    "plain": make_tiny_clip,
    "layer_scale": partial(make_tiny_clip, ls_init_value=1e-5, no_ln_pre=True),
    "quick_gelu": partial(
        make_tiny_clip, quick_gelu=True, final_ln_after_pool=True, output_tokens=True
    ),
    "wide": partial(make_tiny_clip, image_size=(24, 40)),
    "timm": partial(
        make_tiny_clip, **_TIMM, timm_pool="token", timm_proj="linear", timm_proj_bias=True
    ),
    "timm_own_head": partial(make_tiny_clip, **_TIMM, timm_pool="token", timm_proj=""),
    "timm_pooling": partial(make_tiny_clip, **_TIMM, timm_pool="map", timm_proj="none"),
}
"""Builders of whole CLIP models by name. The input is 32 x 32 px, for "wide" 24 x 40 px, for the
timm towers 160 x 160 px."""
