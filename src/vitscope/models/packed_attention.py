"""torch's own multi-head attention, which keeps W_Q, W_K and W_V in one packed matrix.

The module may answer from a fused kernel that calls no submodule, so there is nothing to tap: the
one query row, the keys and the values are made again from its recorded input and its weights.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vitscope.models.blocks import AttentionCall, Heads
from vitscope.models.parts import require, split_heads
from vitscope.trace import AttentionTail


def check_packed_attention(attention: nn.Module, owner: str) -> nn.MultiheadAttention:
    """Refuse everything but plain attention with tokens in the second dimension."""
    kind = type(attention)
    require(kind is nn.MultiheadAttention, owner, f"attention {kind.__name__}")
    packed: Any = attention
    projection = type(packed.out_proj)
    for known, setting in (
        (packed.batch_first, "batch_first=False"),
        (packed.in_proj_weight is not None, "kdim or vdim"),
        (packed.bias_k is None and packed.bias_v is None, "add_bias_kv"),
        (not packed.add_zero_attn, "add_zero_attn"),
        (projection is NonDynamicallyQuantizableLinear, f"out_proj={projection.__name__}"),
    ):
        require(known, owner, f"attention with {setting}")
    checked: nn.MultiheadAttention = packed
    return checked


def make_packed_heads(attention: nn.MultiheadAttention, call: AttentionCall, row: int) -> Heads:
    """Queries of one row, and keys and values of all tokens."""
    names = ("query", "key", "value")
    given = dict(zip(names, call.args, strict=False)) | call.kwargs
    inputs = (given["query"][:, row : row + 1], given["key"], given["value"])
    weights = attention.in_proj_weight.chunk(3)
    packed_bias = attention.in_proj_bias
    biases = (None,) * 3 if packed_bias is None else packed_bias.chunk(3)
    query, keys, values = (
        split_heads(linear(tokens, weight, bias), attention.num_heads)
        for tokens, weight, bias in zip(inputs, weights, biases, strict=True)
    )
    return Heads(query=query[:, :, 0], keys=keys, values=values)


def make_packed_tail(
    attention: nn.MultiheadAttention, scale: Float[Tensor, " dim"] | None
) -> AttentionTail:
    """The map from concatenated heads to the residual stream."""
    return AttentionTail(
        weight=attention.out_proj.weight, bias=attention.out_proj.bias, scale=scale
    )
