"""Tiny models whose [CLS] output has a known source."""

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

_WIDTH, _PATCH, _SIZE, _REGISTERS = 32, 8, 64, 4
_KEPT = slice(0, 12)  # token dimensions for its own patch; never overwritten
_GATHERED = slice(12, 24)  # token dimensions for what attention gathered from the patches
_MARK = 24  # dimension that marks registers
_CONSTANT = slice(25, 32)
_LARGE = 30.0  # so much larger than image-dependent values that layer norms are nearly linear

RECIPES = {
    "patches": (50.0, 0.0),
    "half_and_half": (0.8, 0.0),
    "skip_copy": (0.005, 0.0),
    "registers_copy": (50.0, 4.0),
}
"""Gain of the last block's attention, whose skip connection has gain 1, and what it adds to the
logits of registers. The first block writes the mean of the patches to every token. In `skip_copy`
the last block adds almost nothing to it; in `registers_copy` it reads the mean from the registers.
So the output differs between images as the patches do, whichever source writes it."""


def plant(name: str) -> nn.Module:
    """Make a model whose output has a known source."""
    gain, mark = RECIPES[name]
    model: Any = VisionTransformer(
        img_size=_SIZE,
        patch_size=_PATCH,
        embed_dim=_WIDTH,
        depth=2,
        num_heads=1,
        num_classes=0,
        reg_tokens=_REGISTERS,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for token in (model.cls_token, model.reg_token):
            token.zero_()
        model.pos_embed.zero_()
        model.pos_embed[..., _CONSTANT] = _LARGE * (-1.0) ** torch.arange(7)
        model.pos_embed[:, 1 : 1 + _REGISTERS, _MARK] = _LARGE
        filters = model.patch_embed.proj
        filters.bias.zero_()
        filters.weight.zero_()
        kept = filters.weight[_KEPT]
        kept.copy_(torch.randn(kept.shape, generator=generator) / _PATCH)
        _write_attention(model.blocks[0], gain=_LARGE)
        _write_attention(model.blocks[1], gain=_LARGE * gain, mark=mark)
    planted: nn.Module = model.eval()
    return planted


def _write_attention(block: Any, *, gain: float, mark: float = 0.0) -> None:
    attention = block.attn
    for linear in (attention.qkv, attention.proj, block.mlp.fc2):
        linear.weight.zero_()
        linear.bias.zero_()
    _, key, value = attention.qkv.weight.unflatten(0, (3, _WIDTH))
    # Every query is the same constant; a key holds only the mark.
    attention.qkv.bias[0] = _WIDTH**0.5
    key[0, _MARK] = mark
    value[_GATHERED, _KEPT] = torch.eye(12)
    value[_GATHERED, _GATHERED] = torch.eye(12)
    attention.proj.weight[_GATHERED, _GATHERED] = gain * torch.eye(12)
