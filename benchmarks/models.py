"""transformers' DINOv2 with random weights: nothing is downloaded.

timm's models are in a module of their own: importing timm takes memory that a measured process
need not hold.
"""

from transformers import Dinov2Config, Dinov2Model

import vitscope
from vitscope.models.base import ViTAdapter
from vitscope.testing import randomize

_DINOV2 = {
    "tiny": (32, 2, 4, 32, 8),
    "small": (384, 12, 6, 518, 14),
    "base": (768, 12, 12, 518, 14),
    "large": (1024, 24, 16, 518, 14),
}
"""Width, blocks, heads, size of the position table and patch size in pixels."""


def build_dinov2(size: str, attention: str = "sdpa") -> Dinov2Model:
    """A DINOv2 of transformers; the same size has the same weights."""
    width, depth, heads, image, patch = _DINOV2[size]
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=image,
        patch_size=patch,
        attn_implementation=attention,
    )
    return randomize(Dinov2Model(config))


def load_dinov2(size: str, attention: str = "sdpa") -> ViTAdapter:
    """The same as an adapter."""
    return vitscope.wrap_model(build_dinov2(size, attention), model_id=f"dinov2-{size}")
