"""Shared parts of adapters: refusals by name, heads, fused and packed projections, blocks."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.layout import TokenLayout, make_grid, make_layout
from vitscope.models.blocks import AttentionCall, BlockParts, Heads, HeadsFunction, return_rows
from vitscope.trace import AttentionTail


def require(condition: bool, model: str, setting: str) -> None:
    """Refuse a model with an unsupported part or setting, given in its library's words."""
    if not condition:
        raise UnsupportedModelError(
            f"{model} has {setting}, which vitscope does not model: a decomposition of its "
            "attention would look right and be wrong; choose a model without it"
        )


def check_parts(
    module: nn.Module, owner: str, known: Collection[str], *, optional: Collection[str] = ()
) -> None:
    """Refuse a module with another part, be it a module or a tensor, or without a known one."""
    tensors = (module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    parts = {name for name, _ in chain(module.named_children(), *tensors)}
    kind = type(module).__name__
    place = "" if kind == owner else f" in its {kind}"
    for what, names in (
        ("has a part", parts.difference(known, optional)),
        ("lacks the part", set(known).difference(parts, optional)),
    ):
        if names:
            raise UnsupportedModelError(
                f"{owner} {what} {min(names)!r}{place}: this version of its library computes "
                "something that vitscope has no exact account of"
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
    order: Mapping[str, int],
    patch_size: tuple[int, int],
    height: int,
    width: int,
    *,
    native: tuple[int, int] | None = None,
    otherwise: str = "",
    grid: tuple[int, int] | None = None,
    **kind: Any,
) -> TokenLayout:
    """Lay out the tokens of an input, to be pickled.

    A model with positions for its `native` size alone refuses others. Its grid may be given;
    `kind` is passed to `make_layout`.
    """
    if native not in {None, (height, width)}:
        raise UsageError(
            f"an input of {height} x {width} px was given to a model built for {native[0]} x "
            f"{native[1]} px alone: give it that size, or {otherwise}"
        )
    return make_layout(order, grid or make_grid(height, width, patch_size), **kind)


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
    block: nn.Module,
    *,
    taps: Mapping[str, nn.Module],
    make_heads: HeadsFunction,
    project_heads: HeadsFunction | None = None,
    attention: str = "attn",
    output: str = "proj",
    norms: Sequence[str] = ("norm1", "norm2"),
    mlp: Sequence[str] = ("mlp",),
    scales: Sequence[str] = ("ls1", "ls2"),
    scaling: float | None = None,
) -> BlockParts:
    """Find the parts of a block that computes r = x + γ₁ attention(norm₁(x)), r + γ₂ mlp(norm₂(r)).

    The parts have the names given: `output`, the projection W_O, within the attention; the modules
    of the MLP in order; layer scales, which a block may lack, as modules or parameters. `scaling`
    is the factor on the query-key products; by default that of the attention, `scale`. `make_heads`
    also projects, if nothing is recorded, unless there is a function `project_heads` for that.
    """
    heads: Any = block.get_submodule(attention)
    projection: Any = heads.get_submodule(output)
    first, second = scales or ("", "")
    branch, gamma = _find_scale(block, first)
    if branch is not None and gamma is None:
        require_class(branch, {nn.Identity}, type(block).__name__, "a layer scale of class")
    mlp_scale, mlp_gamma = _find_scale(block, second)
    norm, *others = (block.get_submodule(name) for name in (norms[1], *mlp))
    return BlockParts(
        block=block,
        attention=heads,
        taps=taps,
        make_heads=make_heads,
        project_heads=project_heads or make_heads,
        scale=heads.scale if scaling is None else scaling,
        tail=AttentionTail(weight=projection.weight, bias=projection.bias, scale=gamma),
        branch=heads if branch is None else branch,
        branch_scale=gamma if branch is None else None,
        attention_norm=block.get_submodule(norms[0]),
        mlp_norm=norm,
        finish=partial(
            finish_prenorm,
            norm,
            others[0] if len(others) == 1 else nn.Sequential(*others),
            mlp_scale if mlp_gamma is None or mlp_scale else partial(torch.mul, mlp_gamma),
        ),
    )


def _find_scale(block: nn.Module, name: str) -> tuple[nn.Module | None, Tensor | None]:
    # The module of a layer scale, if it is one, and γ.
    found = getattr(block, name, None)
    if isinstance(found, nn.Module):
        return found, getattr(found, "gamma", getattr(found, "lambda1", None))
    # A layer of BEiT without scale has the number 1 in its place.
    return None, found if isinstance(found, Tensor) else None


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
    norm: nn.Module | None = None,
    mlp: nn.Module | None = None,
) -> BlockParts:
    """Pooling head around `nn.MultiheadAttention`, whose query is learned."""
    finish = (
        return_rows if norm is None or mlp is None else partial(finish_prenorm, norm, mlp, None)
    )
    return BlockParts(
        block=head,
        attention=attention,
        make_heads=partial(make_packed_heads, attention),
        scale=float(attention.head_dim) ** -0.5,
        tail=AttentionTail(
            weight=attention.out_proj.weight, bias=attention.out_proj.bias, scale=None
        ),
        branch=attention,
        mlp_norm=norm,
        finish=finish,
    )


def make_packed_block(block: nn.Module, name: str, owner: str) -> BlockParts:
    """Pre-norm block around `nn.MultiheadAttention`, which has this name."""
    check_parts(block, owner, {name, "ln_1", "ln_2", "mlp"}, optional={"ls_1", "ls_2", "dropout"})
    attention = check_packed_attention(block.get_submodule(name), owner)
    return make_prenorm_parts(
        block,
        taps={},
        make_heads=partial(make_packed_heads, attention),
        attention=name,
        output="out_proj",
        norms=("ln_1", "ln_2"),
        scales=("ls_1", "ls_2"),
        scaling=float(attention.head_dim) ** -0.5,
    )
