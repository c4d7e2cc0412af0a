"""transformers: DINOv2, DINOv3, ViT, DeiT, BEiT, CLIP, SigLIP and other vision towers.

All classes, modules and parameters must be known, so that a new version is refused, not misread.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitscope.adapters.transformers_families import FAMILIES, Family, LayerNames
from vitscope.adapters.transformers_loading import (
    CONFIG_FILE,
    check_model_type,
    describe_families,
    load_tower,
)
from vitscope.adapters.transformers_preprocessing import PROCESSOR_FILES, read_preprocessing
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.images.preprocessing import Preprocessing
from vitscope.layout import TokenLayout, make_grid, make_layout
from vitscope.models.base import ModelInfo, Pixels, ViTAdapter, count_parameters
from vitscope.models.blocks import AttentionCall, BlockParts, Heads
from vitscope.models.parts import (
    check_packed_attention,
    finish_prenorm,
    make_packed_heads,
    make_packed_tail,
    split_heads,
)
from vitscope.trace import AttentionTail
from vitscope.weights.folders import check_readable, find_folder
from vitscope.weights.hub import find_snapshot

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_TAPS = ("queries", "keys", "values")
_TOWERS = {family.model: family for family in FAMILIES.values()}
_WRAPPERS = {wrapper: family for family in FAMILIES.values() for wrapper in family.wrappers}


def make_transformers_adapter(
    module: nn.Module,
    *,
    preprocessing: Preprocessing | None = None,
    model_id: str | None = None,
) -> ViTAdapter:
    """Adapt a transformers model."""
    tower, family = _find_tower(module)
    config = tower.config
    _check_config(family, config)
    analysed, projection = tower, None
    if family.projection is not None and tower is not module:
        projection = module.get_submodule(family.projection)
        analysed = nn.ModuleDict({family.attribute: tower, family.projection: projection})
    feature = _name_feature(tower, family)
    notes = _make_notes(type(module).__name__, family.name, feature, preprocessing)
    bias = f"{family.prefix}RelativePositionBias"
    return ViTAdapter(
        module=analysed.eval(),
        info=ModelInfo(
            id=model_id or type(module).__name__,
            family=f"transformers/{family.name}",
            num_params=count_parameters(analysed),
            depth=len(tower.get_submodule(family.layers)),
            embed_dim=config.hidden_size,
            num_heads=config.num_attention_heads,
            patch_size=_make_pair(config.patch_size),
            num_registers=family.count_registers(config),
            global_feature=feature,
            notes=notes,
        ),
        preprocessing=preprocessing or family.choose_preprocessing(_make_pair(config.image_size)),
        blocks=_make_blocks(tower, family, feature),
        make_layout=partial(_make_layout, family, config, feature),
        run=partial(_run, tower, projection, family),
        embed_row=partial(_embed_row, tower, projection, family),
        encoder=tuple(tower.get_submodule(family.layers).children()),
        position_biases=tuple(part for part in tower.modules() if _is_class(part, bias)),
    )


def load_transformers(repo_or_folder: str) -> ViTAdapter:
    """Load a model from the Hugging Face cache, the hub, or a local folder."""
    folder, source = find_folder(repo_or_folder), "a local folder"
    if folder is None:
        folder = find_snapshot(repo_or_folder, [CONFIG_FILE, *PROCESSOR_FILES], _WEIGHTS)
        source = f"Hugging Face {repo_or_folder}, revision {folder.name[:12]}"
    check_readable(folder, [CONFIG_FILE, *PROCESSOR_FILES])
    adapter = make_transformers_adapter(
        load_tower(folder, repo_or_folder), preprocessing=read_preprocessing(folder)
    )
    return adapter.named(repo_or_folder, source)


def _find_tower(module: nn.Module) -> tuple[Any, Family]:
    name = type(module).__name__
    config: Any = getattr(module, "config", None)
    check_model_type(str(getattr(config, "model_type", None)), name)
    tower: Any = module
    if name in _WRAPPERS and _is_class(module, name):
        tower = module.get_submodule(_WRAPPERS[name].attribute)
    tower_name = type(tower).__name__
    if tower_name not in _TOWERS or not _is_class(tower, tower_name):
        raise UnsupportedModelError(
            f"{type(tower).__module__}.{tower_name} is not a class that vitscope has an exact "
            f"account of: from transformers it knows {describe_families()}"
        )
    return tower, _TOWERS[tower_name]


def _check_config(family: Family, config: Any) -> None:
    if config.num_channels != 3:
        raise UnsupportedModelError(
            f"this {family.model} takes images of {config.num_channels} channels (num_channels): "
            "expected 3 (red, green, blue)"
        )
    if family.positions in {"learned", "native"} and not _is_square(config):
        raise UnsupportedModelError(
            f"{family.model} resamples its position table as a square, but image_size is "
            f"{config.image_size}: transformers cannot run it"
        )


def _name_feature(tower: Any, family: Family) -> str:
    if family.pooling_head is not None and hasattr(tower, family.pooling_head):
        return "attention pooling"
    averaged = not family.cls or (family.mean_pooling and tower.config.use_mean_pooling)
    return "average" if averaged else "cls"


def _make_notes(
    name: str, family: str, feature: str, preprocessing: Preprocessing | None
) -> tuple[str, ...]:
    notes = []
    if "For" in name:
        taken = "the mean of the patches" if feature == "average" else "the normed [CLS] token"
        notes.append(f"the head of {name} is left out: the embedding is {taken}")
    if preprocessing is None:
        notes.append(
            f"no preprocessing came with the model: the one customary for {family} is used"
        )
    return tuple(notes)


def _make_layout(family: Family, config: Any, feature: str, height: int, width: int) -> TokenLayout:
    native = _make_pair(config.image_size)
    resizable = {
        "optional": _is_square(config) and isinstance(config.patch_size, int),
        "fixed": getattr(config, "is_native", False),  # AIMv2's positions for any size
    }.get(family.positions, True)
    if not resizable and (height, width) != native:
        raise UsageError(
            f"an input of {height} x {width} px was given to a model built for {native[0]} x "
            f"{native[1]} px alone: transformers does not resample its position table"
        )
    grid = make_grid(height, width, _make_pair(config.patch_size))
    return make_layout(
        family.order_tokens(config),
        grid,
        pooling_query=feature == "attention pooling",
        averaged="patches" if feature == "average" else None,
    )


def _run(
    tower: Any, projection: nn.Module | None, family: Family, pixels: Pixels
) -> Float[Tensor, "batch out"]:
    _check_precision(tower, family)
    resample = family.positions == "optional" and tuple(pixels.shape[-2:]) != _make_pair(
        tower.config.image_size
    )
    # Named outputs even if the configuration asks for tuples.
    options = {"return_dict": True} | ({"interpolate_pos_encoding": True} if resample else {})
    outputs = tower(pixels, **options)
    feature = _take_feature(tower, family, outputs)
    return feature if projection is None else projection(feature)


def _take_feature(tower: Any, family: Family, outputs: Any) -> Float[Tensor, "batch dim"]:
    if _name_feature(tower, family) == "average":
        pooled: Tensor | None = outputs.get("pooler_output")
        if family.cls and pooled is not None:  # BEiT's mean with its norm
            return pooled
        tokens: Tensor = outputs["last_hidden_state"]
        return tokens[:, int(family.cls) :].mean(dim=1)
    row: Tensor = outputs[family.output]
    return row[:, 0] if family.output == "last_hidden_state" else row


def _check_precision(tower: Any, family: Family) -> None:
    rounded = getattr(tower.config, "norm_type", None) == "rms_norm"
    if rounded and _name_feature(tower, family) == "cls" and tower.dtype == torch.float64:
        raise UsageError(
            f"transformers' RMS norm of {family.name} computes in float32 even in a float64 model, "
            "which cannot balance to float64: use float32"
        )
    kernel = tower.config._attn_implementation
    if family.float32_softmax and kernel == "eager" and tower.dtype == torch.float64:
        raise UsageError(
            f"transformers' eager attention of {family.name} computes its softmax in float32 even "
            "in a float64 model, which cannot balance to float64: call set_attn_implementation("
            "'sdpa') on it first"
        )


def _embed_row(
    tower: Any,
    projection: nn.Module | None,
    family: Family,
    rows: Float[Tensor, "batch dim"],
) -> Float[Tensor, "batch out"]:
    feature = rows
    if _name_feature(tower, family) != "attention pooling":
        feature = tower.get_submodule(family.final_norm)(rows)
        pooler_norm = getattr(getattr(tower, "pooler", None), "layernorm", None)
        feature = feature if pooler_norm is None else pooler_norm(feature)
    return feature if projection is None else projection(feature)


def _is_square(config: Any) -> bool:
    (height, width), (rows, columns) = _make_pair(config.image_size), _make_pair(config.patch_size)
    return bool(height // rows == width // columns)


def _make_pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _is_class(module: nn.Module, name: str) -> bool:
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


def _make_blocks(tower: Any, family: Family, feature: str) -> dict[int, BlockParts]:
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
        finish=_return_rows,
    )


def _make_aim_heads(head: Any, call: AttentionCall, row: int) -> Heads:
    keys, values = (split_heads(call.taps[name], head.num_heads) for name in ("keys", "values"))
    query = split_heads(head.cls_token, head.num_heads)[:, :, row]
    return Heads(query=query.expand(len(keys), -1, -1), keys=keys, values=values)


def _return_rows(rows: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
    return rows


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
        keys = _rotate_patches(keys, *call.kwargs["position_embeddings"])
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


def _rotate_patches(
    keys: Float[Tensor, "batch head token head_dim"],
    cos: Float[Tensor, "patch head_dim"],
    sin: Float[Tensor, "patch head_dim"],
) -> Float[Tensor, "batch head token head_dim"]:
    # Patches are the last tokens; dimension i is rotated with i + head_dim / 2.
    prefix, patches = keys[:, :, : -len(cos)], keys[:, :, -len(cos) :]
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((prefix, turned), dim=2)


def _check_class(module: nn.Module, name: str) -> None:
    if not _is_class(module, name):
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
