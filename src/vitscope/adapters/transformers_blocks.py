"""transformers' Vision Transformers taken apart, layer by layer.

Requirements met here:

- Classes are allow-listed exactly, by library and name; a subclass may compute something else.
- Every child module and parameter of a layer and its attention must be a known one, so that a
  newer version that adds a gate or a norm is refused by name instead of being misread.
- Queries, keys and values are the outputs of the module's own projections, whichever attention
  kernel runs afterwards.
"""

from collections.abc import Collection, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitscope.adapters.transformers_families import Family
from vitscope.errors import UnsupportedModelError
from vitscope.models.blocks import AttentionCall, BlockParts, Heads
from vitscope.models.packed_attention import (
    check_packed_attention,
    make_packed_heads,
    make_packed_tail,
)
from vitscope.models.parts import finish_prenorm, split_heads
from vitscope.trace import AttentionTail

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def is_class(module: nn.Module, name: str) -> bool:
    """Whether a module is exactly a class of the library."""
    kind = type(module)
    return kind.__name__ == name and kind.__module__.startswith("transformers.models.")


def check_parts(
    module: nn.Module, known: Collection[str], *, optional: Collection[str] = ()
) -> None:
    """Refuse a module that has other parts than the known ones."""
    parts = {
        name
        for name, _ in chain(
            module.named_children(),
            module.named_parameters(recurse=False),
            module.named_buffers(recurse=False),
        )
    }
    for problem, names in (
        ("an unknown part", parts - set(known) - set(optional)),
        ("no part", set(known) - parts),
    ):
        if names:
            raise UnsupportedModelError(
                f"{type(module).__name__} has {problem} {min(names)!r}: this version of the "
                "library computes something that vitscope does not know"
            )


def make_blocks(tower: nn.Module, family: Family) -> dict[int, BlockParts]:
    """Take the analysable blocks of a tower apart."""
    heads = [] if family.pooling_head is None else [family.pooling_head]
    check_parts(tower, {*family.others, family.final_norm, *heads}, optional=family.optional)
    layers = list(tower.get_submodule(family.layers).children())
    if family.pooling_head is not None:
        return {len(layers): _make_pooling_block(tower.get_submodule(family.pooling_head))}
    return {index: _make_block(layer, family) for index, layer in enumerate(layers)}


def _make_block(layer: nn.Module, family: Family) -> BlockParts:
    names = family.names
    scales = names.layer_scales or ()
    _check_class(layer, family.prefix + names.layer)
    check_parts(layer, {names.attention, *names.norms, "mlp", *scales, *names.idle})
    attention: Any = layer.get_submodule(names.attention)
    _check_class(attention, f"{family.prefix}Attention")
    check_parts(attention, {*_PROJECTIONS, names.output})
    output = _take_linear(attention, names.output)
    projections = [attention.get_submodule(name) for name in _PROJECTIONS]
    num_heads, rotary = output.in_features // attention.head_dim, family.positions == "rotary"
    scale: Any = layer.get_submodule(scales[0]) if scales else None
    mlp_scale = layer.get_submodule(scales[1]) if scales else None
    mlp_norm = layer.get_submodule(names.norms[1])
    return BlockParts(
        block=layer,
        attention=attention,
        taps=dict(zip(_PROJECTIONS, projections, strict=True)),
        make_heads=partial(_make_heads, num_heads, rotary),
        project_heads=partial(_project_heads, projections, num_heads, rotary),
        scale=float(getattr(attention, names.scaling)),
        tail=AttentionTail(
            weight=output.weight,
            bias=output.bias,
            scale=None if scale is None else scale.lambda1,
        ),
        branch=attention if scale is None else scale,
        attention_norm=layer.get_submodule(names.norms[0]),
        mlp_norm=mlp_norm,
        finish=partial(finish_prenorm, mlp_norm, layer.get_submodule("mlp"), mlp_scale),
    )


def _make_pooling_block(head: nn.Module) -> BlockParts:
    _check_class(head, "SiglipMultiheadAttentionPoolingHead")
    check_parts(head, {"probe", "attention", "layernorm", "mlp"})
    attention = check_packed_attention(head.get_submodule("attention"), type(head).__name__)
    norm = head.get_submodule("layernorm")
    return BlockParts(
        block=head,
        attention=attention,
        taps={},
        make_heads=partial(make_packed_heads, attention),
        scale=float(attention.head_dim) ** -0.5,
        tail=make_packed_tail(attention, None),
        branch=attention,
        mlp_norm=norm,
        finish=partial(finish_prenorm, norm, head.get_submodule("mlp"), None),
    )


def _make_heads(num_heads: int, rotary: bool, call: AttentionCall, row: int) -> Heads:
    queries, keys, values = (call.taps[name] for name in _PROJECTIONS)
    return _finish_heads(num_heads, rotary, call, queries[:, row : row + 1], keys, values)


def _project_heads(
    projections: Sequence[nn.Module], num_heads: int, rotary: bool, call: AttentionCall, row: int
) -> Heads:
    given = (call.tokens[:, row : row + 1], call.tokens, call.tokens)
    projected = (project(tokens) for project, tokens in zip(projections, given, strict=True))
    return _finish_heads(num_heads, rotary, call, *projected)


def _finish_heads(num_heads: int, rotary: bool, call: AttentionCall, *projected: Tensor) -> Heads:
    # Of the queries there is one.
    queries, keys, values = (split_heads(part, num_heads) for part in projected)
    if rotary:
        # Positions turn the patches alone: the query of [CLS] is left as it is.
        keys = _rotate_patches(keys, *call.kwargs["position_embeddings"])
    return Heads(query=queries[:, :, 0], keys=keys, values=values)


def _rotate_patches(
    keys: Float[Tensor, "batch head token head_dim"],
    cos: Float[Tensor, "patch head_dim"],
    sin: Float[Tensor, "patch head_dim"],
) -> Float[Tensor, "batch head token head_dim"]:
    # The patches are the last tokens; dimension i is turned against i + head_dim / 2.
    prefix, patches = keys[:, :, : -len(cos)], keys[:, :, -len(cos) :]
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((prefix, turned), dim=2)


def _check_class(module: nn.Module, name: str) -> None:
    if not is_class(module, name):
        raise UnsupportedModelError(
            f"expected a {name} of transformers, found a {type(module).__module__}."
            f"{type(module).__name__}, which vitscope does not support"
        )


def _take_linear(attention: nn.Module, name: str) -> nn.Linear:
    module = attention.get_submodule(name)
    if type(module) is not nn.Linear:
        raise UnsupportedModelError(
            f"{name} of {type(attention).__name__} is a {type(module).__name__}, expected a plain "
            "Linear: merge adapters and undo quantisation first"
        )
    return module
