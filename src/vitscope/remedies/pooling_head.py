"""A pooling head that reads patches alone: its module, and the adapter of a model that has it."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitscope.layout import TokenLayout, make_layout
from vitscope.maps.passes import take_patches
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.info import count_parameters
from vitscope.models.parts import make_packed_pooling
from vitscope.models.running import Hooks
from vitscope.models.stream import take_stream

Rows = Float[Tensor, "batch dim"]
Patches = Float[Tensor, "batch patch dim"]


class PoolingHead(nn.Module):
    r"""One learned query q over the patches x_i of the last block's output, in H heads.

    r = b_O + W_O [Σ_i a_hi (W_V^h x̂_i + b_V^h)]_h with a_h = softmax_i(⟨W_Q^h q, W_K^h x̂_i⟩ / √d_H)
    and x̂ the layer norm of x. It starts as the mean of x̂.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        """Make a head; W_Q and W_K are random."""
        super().__init__()
        self.input_norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        for weight in (self.attention.in_proj_weight[2 * dim :], self.attention.out_proj.weight):
            nn.init.eye_(weight.detach())

    def forward(self, patches: Patches) -> Rows:
        """The row r."""
        normed = self.input_norm(patches)
        query = self.query.expand(len(normed), -1, -1)
        pooled: Tensor = self.attention(query, normed, normed, need_weights=False)[0]
        return pooled[:, 0]

    def pool(self, normed: Patches) -> Rows:
        """The row r of normed patches x̂, many times faster, for fitting."""
        # No patch is projected: ⟨q_h, W_K x̂⟩ = ⟨W_Kᵀ q_h, x̂⟩, and Σ a (W_V x̂ + b_V) is
        # W_V (Σ a x̂) + b_V because Σ a = 1. The bias of the keys adds the same to all products.
        attention, dim = self.attention, normed.shape[-1]
        num_heads = attention.num_heads
        of_query, of_keys, of_values = (
            weight.view(num_heads, -1, dim) for weight in attention.in_proj_weight.chunk(3)
        )
        query_bias, _, value_bias = attention.in_proj_bias.chunk(3)
        query = of_query @ self.query[0, 0] + query_bias.view(num_heads, -1)
        directions = torch.einsum("hk,hkd->hd", query, of_keys) * attention.head_dim**-0.5
        weights = (normed @ directions.mT).softmax(dim=1)
        heads = torch.einsum("bhd,hkd->bhk", weights.mT @ normed, of_values)
        row: Tensor = attention.out_proj(heads.reshape(-1, dim) + value_bias)
        return row


class _Headed(nn.Module):
    """A model and its head, so that both have one identity and one place."""

    def __init__(self, backbone: nn.Module, head: PoolingHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


def adapt_headed(vit: ViTAdapter, head: PoolingHead) -> ViTAdapter:
    """The adapter of a model with a head; the model's final norm and projection follow it."""
    blocks = tuple(vit.encoder_blocks)
    return replace(
        vit,
        module=_Headed(vit.module, head.eval()),
        info=replace(
            vit.info,
            num_params=vit.info.num_params + count_parameters(head),
            num_heads=head.attention.num_heads,
            global_feature="attention pooling",
            own_output="",
        ),
        blocks={len(blocks): make_packed_pooling(head, head.attention)},
        make_layout=partial(_lay_out, vit),
        run=partial(_run, vit, head),
        encoder=blocks,
        classifier=None,
        weights_hash=None,
    )


def _lay_out(vit: ViTAdapter, height: int, width: int) -> TokenLayout:
    return make_layout({"patches": 0}, vit.make_layout(height, width).grid, pooling_query=True)


def _run(vit: ViTAdapter, head: PoolingHead, pixels: Pixels) -> Float[Tensor, "batch out"]:
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Any) -> None:
        kept.append(take_stream(output))

    with Hooks() as hooks:
        # Made last, so that it sees what other hooks make of the output.
        hooks.after(vit.encoder_blocks[-1], keep)
        vit.run(pixels)
    return vit.embed_row(head(take_patches(_lay_out(vit, *pixels.shape[-2:]), kept[0])))
