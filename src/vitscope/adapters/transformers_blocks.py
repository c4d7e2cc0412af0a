"""Parts of transformers' layers and pooling heads, all of whose modules must be known."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitscope.adapters.transformers_families import Family, LayerNames
from vitscope.errors import UnsupportedModelError
from vitscope.models.blocks import AttentionCall, BlockParts, Heads
from vitscope.models.parts import (
    check_packed_attention,
    finish_prenorm,
    make_packed_pooling,
    return_rows,
    rotate_patches,
    split_heads,
)
from vitscope.trace import AttentionTail

_TAPS = ("queries", "keys", "values")


def is_class(module: nn.Module, name: str) -> bool:
    """Whether a module is a class of transformers itself, not one derived from it."""
    kind = type(module)
    return kind.__name__ == name and kind.__module__.startswith("transformers.models.")


def _check_parts(
    module: nn.Module, known: Collection[str], *, optional: Collection[str] = ()
) -> None:
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
                "library computes something that vitscope has no exact account of"
            )


def make_blocks(tower: Any, family: Family, feature: str) -> dict[int, BlockParts]:
    """Find the analysable blocks of a tower by layer index."""
    head = [] if family.pooling_head is None else [family.pooling_head]
    _check_parts(tower, family.parts, optional=[*family.optional, *head])
    layers = list(tower.get_submodule(family.layers).children())
    if feature == "attention pooling":
        make = _make_aim_pooling if family.name == "aimv2" else _make_pooling_block
        return {len(layers): make(tower.get_submodule(head[0]), family)}
    config = tower.config
    blocks = {index: _make_block(layer, family, config) for index, layer in enumerate(layers)}
    return {} if feature == "average" else blocks


def _make_block(layer: nn.Module, family: Family, config: Any) -> BlockParts:
    names = family.names
    scales, gammas = names.layer_scales or (), names.gammas or ()
    _check_class(layer, family.prefix + names.layer)
    _check_parts(
        layer,
        {names.attention, *names.norms, *names.mlp, *scales, *names.idle},
        optional={*gammas, *names.optional},
    )
    attention = layer.get_submodule(names.attention)
    _check_class(attention, f"{family.prefix}Attention")
    output = _check_attention(attention, names)
    num_heads = config.num_attention_heads
    projections, taps = _list_projections(attention, names)
    finish_heads = partial(
        _finish_heads,
        num_heads,
        family.positions == "rotary",
        partial(_find_bias, attention, names.own_bias, config.patch_size),
    )
    if names.scaling is None:
        scaling = (output.in_features / num_heads) ** -0.5
    else:
        scaling = float(getattr(attention, names.scaling))
    branch_scale, mlp_gamma = (_find_parameter(layer, name) for name in gammas or ("", ""))
    scale: Any = layer.get_submodule(scales[0]) if scales else None
    mlp_scale: Any = layer.get_submodule(scales[1]) if scales else None
    if mlp_gamma is not None:
        mlp_scale = partial(torch.mul, mlp_gamma)
    mlp_norm = layer.get_submodule(names.norms[1])
    mlp = [layer.get_submodule(name) for name in names.mlp]
    return BlockParts(
        block=layer,
        attention=attention,
        taps=taps,
        make_heads=partial(_make_heads, finish_heads),
        project_heads=partial(_project_heads, projections, finish_heads),
        scale=scaling,
        tail=AttentionTail(
            weight=output.weight,
            bias=output.bias,
            scale=branch_scale if scale is None else scale.lambda1,
        ),
        branch=attention if scale is None else scale,
        branch_scale=branch_scale,
        attention_norm=layer.get_submodule(names.norms[0]),
        mlp_norm=mlp_norm,
        finish=partial(
            finish_prenorm, mlp_norm, mlp[0] if len(mlp) == 1 else nn.Sequential(*mlp), mlp_scale
        ),
    )


def _check_attention(attention: nn.Module, names: LayerNames) -> nn.Linear:
    parts = [*names.projections, *names.qk_norms, names.output, *names.attention_idle]
    optional = set() if names.own_bias is None else {names.own_bias}
    # Parts are named by paths: the attention of data2vec consists of two modules.
    for parent in {"", *(path.rpartition(".")[0] for path in parts)}:
        prefix = f"{parent}." if parent else ""
        known, maybe = (
            {p.removeprefix(prefix).partition(".")[0] for p in paths if p.startswith(prefix)}
            for paths in (parts, optional)
        )
        part = attention.get_submodule(parent)
        _check_class(part, type(part).__name__)
        _check_parts(part, known, optional=maybe)
    return _take_linear(attention, names.output)


def _list_projections(
    attention: nn.Module, names: LayerNames
) -> tuple[list[nn.Module], dict[str, nn.Module]]:
    # Modules that make queries, keys and values of tokens, and those whose outputs they are.
    projections = [attention.get_submodule(name) for name in names.projections]
    last = list(projections)
    for index, name in enumerate(names.qk_norms):
        last[index] = attention.get_submodule(name)
        projections[index] = nn.Sequential(projections[index], last[index])
    return projections, dict(zip(_TAPS, last, strict=True))


def _find_parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    # A layer of BEiT without scale has the number 1 in its place.
    found = getattr(module, name, None)
    return found if isinstance(found, nn.Parameter) else None


def _make_pooling_block(head: nn.Module, family: Family) -> BlockParts:
    _check_class(head, f"{family.prefix}MultiheadAttentionPoolingHead")
    _check_parts(head, {"probe", "attention", "layernorm", "mlp"})
    attention = check_packed_attention(head.get_submodule("attention"), type(head).__name__)
    norm = head.get_submodule("layernorm")
    finish = partial(finish_prenorm, norm, head.get_submodule("mlp"), None)
    return make_packed_pooling(head, attention, mlp_norm=norm, finish=finish)


def _make_aim_pooling(head: nn.Module, family: Family) -> BlockParts:
    _check_class(head, f"{family.prefix}AttentionPoolingHead")
    _check_parts(head, {"cls_token", "k_proj", "v_proj", "output_proj"})
    pooling: Any = head
    output = _take_linear(head, "output_proj")
    return BlockParts(
        block=head,
        attention=head,
        taps={"keys": pooling.k_proj, "values": pooling.v_proj},
        make_heads=partial(_make_aim_heads, head),
        scale=float(pooling.hidden_size // pooling.num_heads) ** -0.5,
        tail=AttentionTail(weight=output.weight, bias=output.bias, scale=None),
        branch=output,
        mlp_norm=None,
        finish=return_rows,
    )


def _make_aim_heads(head: Any, call: AttentionCall, row: int) -> Heads:
    keys, values = (split_heads(call.taps[name], head.num_heads) for name in ("keys", "values"))
    query = split_heads(head.cls_token, head.num_heads)[:, :, row]
    return Heads(query=query.expand(len(keys), -1, -1), keys=keys, values=values)


def _make_heads(finish: Callable[..., Heads], call: AttentionCall, row: int) -> Heads:
    queries, keys, values = (call.taps[name] for name in _TAPS)
    return finish(call, row, queries[:, row : row + 1], keys, values)


def _project_heads(
    projections: Sequence[nn.Module], finish: Callable[..., Heads], call: AttentionCall, row: int
) -> Heads:
    given = (call.tokens[:, row : row + 1], call.tokens, call.tokens)
    projected = (project(tokens) for project, tokens in zip(projections, given, strict=True))
    return finish(call, row, *projected)


def _finish_heads(
    num_heads: int,
    rotary: bool,
    find_bias: Callable[[AttentionCall], Tensor | None],
    call: AttentionCall,
    row: int,
    *projected: Tensor,
) -> Heads:
    # The first of `projected` holds the queries of a single row.
    queries, keys, values = (split_heads(part, num_heads) for part in projected)
    if rotary:
        # Only patches have rotary positions: the query of [CLS] is unchanged.
        keys = rotate_patches(keys, *call.kwargs["position_embeddings"])
    bias = find_bias(call)
    return Heads(queries[:, :, 0], keys, values, None if bias is None else bias[:, :, row])


def _find_bias(
    attention: nn.Module, own: str | None, patch_size: int, call: AttentionCall
) -> Float[Tensor, "1 head token token"] | None:
    # Relative positions: those that the attention is given, and its own.
    kwargs = call.kwargs
    given: Tensor | None = kwargs.get("attention_mask", kwargs.get("relative_position_bias"))
    parent, _, name = (own or "").rpartition(".")
    make = getattr(attention.get_submodule(parent), name, None) if own else None
    if make is None:
        return given
    grid = tuple(side // patch_size for side in kwargs["resolution"])
    made: Tensor = make(grid, kwargs["interpolate_pos_encoding"], dim_size=call.tokens.shape[1])
    return made if given is None else made + given


def _check_class(module: nn.Module, name: str) -> None:
    if not is_class(module, name):
        raise UnsupportedModelError(
            f"expected a {name} of transformers, found a {type(module).__module__}."
            f"{type(module).__name__}: vitscope has no exact account of it"
        )


def _take_linear(attention: nn.Module, name: str) -> nn.Linear:
    module = attention.get_submodule(name)
    if type(module) is not nn.Linear:
        raise UnsupportedModelError(
            f"{name} of {type(attention).__name__} is a {type(module).__name__}, expected a plain "
            "Linear: merge adapters and undo quantisation first"
        )
    return module
