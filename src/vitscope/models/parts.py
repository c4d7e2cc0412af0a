"""Shared parts of adapters: refusals by name, heads, fused and packed projections, blocks."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vitscope.errors import UnsupportedModelError
from vitscope.layout import TokenLayout, make_grid, make_layout
from vitscope.models.blocks import AttentionCall, BlockParts, Heads, HeadsFunction
from vitscope.trace import AttentionTail


def require(condition: bool, model: str, setting: str) -> None:
    """Refuse a model with an unsupported part or setting, given in its library's words."""
    if not condition:
        raise UnsupportedModelError(
            f"{model} has {setting}, which vitscope does not model: a decomposition of its "
            "attention would look right and be wrong; choose a model without it"
        )


def require_class(part: object, kinds: Collection[type], model: str, what: str) -> None:
    """Refuse a part of another class, derived ones included: they may compute something else."""
    require(type(part) in kinds, model, f"{what} {type(part).__name__}")


def split_heads(
    tokens: Float[Tensor, "batch token value_dim"], num_heads: int
) -> Float[Tensor, "batch head token head_dim"]:
    """Split each token's vector into its heads."""
    batch, length, _ = tokens.shape
    return tokens.view(batch, length, num_heads, -1).transpose(1, 2)


def rotate_patches(
    keys: Float[Tensor, "batch head token head_dim"],
    cos: Float[Tensor, "patch head_dim"],
    sin: Float[Tensor, "patch head_dim"],
) -> Float[Tensor, "batch head token head_dim"]:
    """Rotate the last tokens, the patches; dimension i is rotated with i + head_dim / 2."""
    prefix, patches = keys[:, :, : -len(cos)], keys[:, :, -len(cos) :]
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((prefix, turned), dim=2)


def lay_out(
    order: Mapping[str, int], patch_size: tuple[int, int], height: int, width: int
) -> TokenLayout:
    """Lay out the tokens of an input of any size, to be pickled."""
    return make_layout(order, make_grid(height, width, patch_size))


def project_fused(
    projection: nn.Module, tokens: Float[Tensor, "batch token dim"], row: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a fused projection: the query of one row, and the keys and values of all tokens."""
    # A weight computed before each call (pruning, weight_norm) can only be had by calling the
    # module.
    if type(projection) is nn.Linear and isinstance(projection.weight, nn.Parameter):
        return multiply_fused(projection.weight, projection.bias, tokens, row)
    # Any other module (low-rank adapters, quantised weights) must run on all tokens.
    queries, keys, values = projection(tokens).chunk(3, dim=-1)
    return queries[:, row : row + 1], keys, values


def multiply_fused(
    weight: Float[Tensor, "thrice dim"],
    bias: Float[Tensor, " thrice"] | None,
    tokens: Float[Tensor, "batch token dim"],
    row: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a fused projection by its weight, in which W_Q, W_K and W_V are stacked."""
    width = len(weight) // 3
    query_bias, others_bias = (None, None) if bias is None else (bias[:width], bias[width:])
    query = linear(tokens[:, row : row + 1], weight[:width], query_bias)
    keys, values = linear(tokens, weight[width:], others_bias).chunk(2, dim=-1)
    return query, keys, values


def return_rows(rows: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
    """Second half of a block that has none, to be pickled."""
    return rows


def finish_prenorm(
    norm: nn.Module,
    mlp: nn.Module,
    scale: Callable[[Tensor], Tensor] | None,
    rows: Float[Tensor, "batch dim"],
) -> Float[Tensor, "batch dim"]:
    """Second half of a block, to be pickled: r + γ ∘ mlp(norm(r)); `scale` multiplies by γ."""
    branch: Tensor = mlp(norm(rows))
    return rows + (branch if scale is None else scale(branch))


def make_prenorm_parts(
    block: Any,
    *,
    taps: Mapping[str, nn.Module],
    make_heads: HeadsFunction,
    project_heads: HeadsFunction,
) -> BlockParts:
    """Find the parts of a block that computes r = x + ls1(attn(norm1(x))), r + ls2(mlp(norm2(r))).

    The parts must have these names; `ls1` and `ls2` are layer scales with a `gamma`, or identities.
    EVA's scales are bare parameters or None, called `gamma_1` and `gamma_2`.
    """
    attention = block.attn
    bare = not hasattr(block, "ls1")
    if bare:
        gamma, mlp_scale = block.gamma_1, None
        if block.gamma_2 is not None:
            mlp_scale = partial(torch.mul, block.gamma_2)
    else:
        gamma, mlp_scale = getattr(block.ls1, "gamma", None), block.ls2
    return BlockParts(
        block=block,
        attention=attention,
        taps=taps,
        make_heads=make_heads,
        project_heads=project_heads,
        scale=attention.scale,
        tail=AttentionTail(weight=attention.proj.weight, bias=attention.proj.bias, scale=gamma),
        branch=attention if bare else block.ls1,
        branch_scale=gamma if bare else None,
        attention_norm=block.norm1,
        mlp_norm=block.norm2,
        finish=partial(finish_prenorm, block.norm2, block.mlp, mlp_scale),
    )


def check_packed_attention(attention: nn.Module, owner: str) -> nn.MultiheadAttention:
    """Refuse anything but plain attention with tokens in the second dimension."""
    require_class(attention, {nn.MultiheadAttention}, owner, "attention")
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
    """Compute the query of one row, and the keys and values of all tokens."""
    names = ("query", "key", "value")
    given = dict(zip(names, call.args, strict=False)) | call.kwargs
    inputs = (given["query"][:, row : row + 1], given["key"], given["value"])
    query, keys, values = project_packed(attention, *inputs)
    return Heads(query=query[:, :, 0], keys=keys, values=values)


def project_packed(attention: nn.MultiheadAttention, *inputs: Tensor) -> list[Tensor]:
    """Queries, keys and values in heads, or the first of them, of as many inputs."""
    packed_bias = attention.in_proj_bias
    biases = (None,) * 3 if packed_bias is None else packed_bias.chunk(3)
    return [
        split_heads(linear(tokens, weight, bias), attention.num_heads)
        for tokens, weight, bias in zip(
            inputs, attention.in_proj_weight.chunk(3), biases, strict=False
        )
    ]


def make_packed_pooling(
    head: nn.Module,
    attention: nn.MultiheadAttention,
    *,
    mlp_norm: nn.Module | None = None,
    finish: Callable[[Tensor], Tensor] = return_rows,
) -> BlockParts:
    """Pooling head around `nn.MultiheadAttention`, whose query is learned."""
    return BlockParts(
        block=head,
        attention=attention,
        taps={},
        make_heads=partial(make_packed_heads, attention),
        scale=float(attention.head_dim) ** -0.5,
        tail=AttentionTail(
            weight=attention.out_proj.weight, bias=attention.out_proj.bias, scale=None
        ),
        branch=attention,
        mlp_norm=mlp_norm,
        finish=finish,
    )


def make_packed_block(
    block: Any,
    attention: nn.Module,
    owner: str,
    *,
    parts: Collection[str],  # those that a block may have
    branch: nn.Module,  # what its attention adds
    mlp_scale: Any,
) -> BlockParts:
    """Pre-norm block around `nn.MultiheadAttention`."""
    unknown = {name for name, _ in block.named_children()}.difference(parts)
    require(not unknown, owner, f"blocks with {', '.join(sorted(unknown))}")
    packed = check_packed_attention(attention, owner)
    finish = partial(finish_prenorm, block.ln_2, block.mlp, mlp_scale)
    found = make_packed_pooling(block, packed, mlp_norm=block.ln_2, finish=finish)
    return replace(
        found,
        project_heads=found.make_heads,  # packed heads are always computed from the call
        tail=replace(found.tail, scale=getattr(branch, "gamma", None)),
        branch=branch,
        attention_norm=block.ln_1,
    )
