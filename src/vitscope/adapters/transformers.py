"""transformers: DINOv2 (with registers), DINOv3, ViT, DeiT, CLIP and SigLIP vision towers.

All classes, modules and parameters must be known, so that a new version is refused, not misread.
"""

from collections.abc import Collection, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitscope.adapters.transformers_families import FAMILIES, Family
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
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")

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
    notes = _make_notes(type(module).__name__, family.name, preprocessing)
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
            global_feature="cls" if family.pooling_head is None else "attention pooling",
            notes=notes,
        ),
        preprocessing=preprocessing or family.choose_preprocessing(_make_pair(config.image_size)),
        blocks=_make_blocks(tower, family),
        make_layout=partial(_make_layout, family, config),
        run=partial(_run, tower, projection, family),
        embed_row=partial(_embed_row, tower, projection, family),
        encoder=tuple(tower.get_submodule(family.layers).children()),
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
    if family.pooling_head is not None and not config.vision_use_head:
        raise UnsupportedModelError(
            f"this {family.model} was built without its attention-pooling head "
            "(vision_use_head=False): no row of it makes a global feature"
        )
    if family.positions == "learned" and not _is_square(config):
        raise UnsupportedModelError(
            f"{family.model} resamples its position table as a square, but image_size is "
            f"{config.image_size}: transformers cannot run it"
        )


def _make_notes(name: str, family: str, preprocessing: Preprocessing | None) -> tuple[str, ...]:
    notes = []
    if "For" in name:
        notes.append(f"the head of {name} is left out: the embedding is the normed [CLS] token")
    if preprocessing is None:
        notes.append(
            f"no preprocessing came with the model: the one customary for {family} is used"
        )
    return tuple(notes)


def _make_layout(family: Family, config: Any, height: int, width: int) -> TokenLayout:
    native = _make_pair(config.image_size)
    resizable = family.positions != "optional" or (
        _is_square(config) and isinstance(config.patch_size, int)
    )
    if not resizable and (height, width) != native:
        raise UsageError(
            f"an input of {height} x {width} px was given to a model built for {native[0]} x "
            f"{native[1]} px alone: transformers resamples square position tables only"
        )
    grid = make_grid(height, width, _make_pair(config.patch_size))
    return make_layout(
        family.order_tokens(config), grid, pooling_query=family.pooling_head is not None
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
    row: Tensor = outputs[family.output]
    feature = row[:, 0] if family.output == "last_hidden_state" else row
    return feature if projection is None else projection(feature)


def _check_precision(tower: Any, family: Family) -> None:
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
    if family.pooling_head is not None:
        return rows
    normed: Tensor = tower.get_submodule(family.final_norm)(rows)
    return normed if projection is None else projection(normed)


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


def _make_blocks(tower: nn.Module, family: Family) -> dict[int, BlockParts]:
    _check_parts(tower, family.parts, optional=family.optional)
    layers = list(tower.get_submodule(family.layers).children())
    if family.pooling_head is not None:
        head = tower.get_submodule(family.pooling_head)
        return {len(layers): _make_pooling_block(head, family)}
    return {index: _make_block(layer, family) for index, layer in enumerate(layers)}


def _make_block(layer: nn.Module, family: Family) -> BlockParts:
    names = family.names
    scales = names.layer_scales or ()
    _check_class(layer, family.prefix + names.layer)
    _check_parts(layer, {names.attention, *names.norms, "mlp", *scales, *names.idle})
    attention: Any = layer.get_submodule(names.attention)
    _check_class(attention, f"{family.prefix}Attention")
    _check_parts(attention, {*_PROJECTIONS, names.output})
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
    # `queries` holds a single row.
    queries, keys, values = (split_heads(part, num_heads) for part in projected)
    if rotary:
        # Only patches have rotary positions: the query of [CLS] is unchanged.
        keys = _rotate_patches(keys, *call.kwargs["position_embeddings"])
    return Heads(query=queries[:, :, 0], keys=keys, values=values)


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
