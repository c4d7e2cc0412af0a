"""Parts of transformers' layers and pooling heads, all of whose modules must be known."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vitscope.adapters.transformers_families import Family, LayerNames
from vitscope.models.blocks import AttentionCall, BlockParts, Heads
from vitscope.models.parts import (
    check_packed_attention,
    check_parts,
    make_packed_pooling,
    make_prenorm_parts,
    require,
    rotate_patches,
    split_heads,
)
from vitscope.trace import AttentionTail

_TAPS = ("queries", "keys", "values")


def is_class(module: nn.Module, name: str) -> bool:
    """Whether a module is a class of transformers itself, not one derived from it."""
    kind = type(module)
    return kind.__name__ == name and kind.__module__.startswith("transformers.models.")


def make_blocks(tower: Any, family: Family, feature: str) -> dict[int, BlockParts]:
    """Find the analysable blocks of a tower by layer index."""
    head = [] if family.pooling_head is None else [family.pooling_head]
    known = {"embeddings", family.layers.partition(".")[0], family.final_norm, *family.others}
    check_parts(tower, family.model, known, optional=[*family.optional, *head])
    layers = list(tower.get_submodule(family.layers).children())
    if feature == "attention pooling":
        make = _make_aim_pooling if family.name == "aimv2" else _make_pooling_block
        return {len(layers): make(tower.get_submodule(head[0]), family)}
    config = tower.config
    blocks = {index: _make_block(layer, family, config) for index, layer in enumerate(layers)}
    return {} if feature == "average" else blocks


def _make_block(layer: nn.Module, family: Family, config: Any) -> BlockParts:
    names, num_heads = family.names, config.num_attention_heads
    _check_class(layer, family, family.prefix + names.layer)
    known = {names.attention, *names.norms, *names.mlp, *names.scales, *names.idle}
    check_parts(layer, family.model, known, optional=names.optional)
    attention = layer.get_submodule(names.attention)
    _check_class(attention, family, f"{family.prefix}Attention")
    _check_attention(attention, family)
    projections, taps = _list_projections(attention, names)
    find_bias = partial(_find_bias, attention, names.own_bias, config.patch_size)
    make_heads = partial(
        _make_heads, num_heads, family.positions == "rotary", find_bias, projections
    )
    scaling = names.scaling and float(getattr(attention, names.scaling))
    return make_prenorm_parts(
        layer,
        taps=taps,
        make_heads=make_heads,
        attention=names.attention,
        output=names.output,
        norms=names.norms,
        mlp=names.mlp,
        scales=names.scales,
        scaling=scaling or (config.hidden_size / num_heads) ** -0.5,
    )


def _check_attention(attention: nn.Module, family: Family) -> None:
    names = family.names
    parts = [*names.projections, *names.qk_norms, names.output, *names.attention_idle]
    optional = set() if names.own_bias is None else {names.own_bias}
    # Parts are named by paths: the attention of data2vec consists of two modules.
    for parent in sorted({"", *(path.rpartition(".")[0] for path in parts)}):
        prefix = f"{parent}." if parent else ""
        known, maybe = (
            {p.removeprefix(prefix).partition(".")[0] for p in paths if p.startswith(prefix)}
            for paths in (parts, optional)
        )
        part = attention.get_submodule(parent)
        _check_class(part, family, type(part).__name__)
        check_parts(part, family.model, known, optional=maybe - known)
    _take_linear(attention, family, names.output)


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


def _make_pooling_block(head: nn.Module, family: Family) -> BlockParts:
    _check_class(head, family, f"{family.prefix}MultiheadAttentionPoolingHead")
    check_parts(head, family.model, {"probe", "attention", "layernorm", "mlp"})
    attention = check_packed_attention(head.get_submodule("attention"), type(head).__name__)
    norm, mlp = head.get_submodule("layernorm"), head.get_submodule("mlp")
    return make_packed_pooling(head, attention, norm=norm, mlp=mlp)


def _make_aim_pooling(head: nn.Module, family: Family) -> BlockParts:
    _check_class(head, family, f"{family.prefix}AttentionPoolingHead")
    check_parts(head, family.model, {"cls_token", "k_proj", "v_proj", "output_proj"})
    pooling: Any = head
    output = _take_linear(head, family, "output_proj")
    return BlockParts(
        block=head,
        attention=head,
        taps={"keys": pooling.k_proj, "values": pooling.v_proj},
        make_heads=partial(_make_aim_heads, head),
        scale=float(pooling.hidden_size // pooling.num_heads) ** -0.5,
        tail=AttentionTail(weight=output.weight, bias=output.bias, scale=None),
        branch=output,
    )


def _make_aim_heads(head: Any, call: AttentionCall, row: int) -> Heads:
    keys, values = (split_heads(call.taps[name], head.num_heads) for name in ("keys", "values"))
    query = split_heads(head.cls_token, head.num_heads)[:, :, row]
    return Heads(query=query.expand(len(keys), -1, -1), keys=keys, values=values)


def _make_heads(
    num_heads: int,
    rotary: bool,
    find_bias: Callable[[AttentionCall], Tensor | None],
    projections: Sequence[nn.Module],
    call: AttentionCall,
    row: int,
) -> Heads:
    if call.taps:
        projected = [call.taps[name] for name in _TAPS]
        projected[0] = projected[0][:, row : row + 1]
    else:
        given = (call.tokens[:, row : row + 1], call.tokens, call.tokens)
        projected = [project(tokens) for project, tokens in zip(projections, given, strict=True)]
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


def _check_class(module: nn.Module, family: Family, name: str) -> None:
    kind = type(module)
    found = f"a {kind.__module__}.{kind.__name__} in place of a {name} of transformers"
    require(is_class(module, name), family.model, found)


def _take_linear(attention: nn.Module, family: Family, name: str) -> nn.Linear:
    linear: Any = attention.get_submodule(name)
    plain = "not a plain Linear (merge adapters and undo quantisation first)"
    found = f"a projection {name} of class {type(linear).__name__}, {plain}"
    require(type(linear) is nn.Linear, family.model, found)
    checked: nn.Linear = linear
    return checked
