"""transformers: DINOv2 (with registers), DINOv3, ViT, DeiT, CLIP and SigLIP vision towers.

Requirements met here:

- A wrapper with a classifier or a text tower is reduced to its vision tower; CLIP's projection,
  which makes the feature that its users are given, stays.
- The tower is asked to resample its positions only where the input differs from the size it was
  built for, so that its own size is computed exactly as without vitscope.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitscope.adapters.transformers_blocks import is_class, make_blocks
from vitscope.adapters.transformers_families import FAMILIES, Family
from vitscope.adapters.transformers_loading import (
    CONFIG_FILE,
    check_model_type,
    describe_families,
    load_tower,
)
from vitscope.adapters.transformers_preprocessing import (
    PROCESSOR_FILES,
    default_preprocessing,
    read_preprocessing,
)
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.images.preprocessing import Preprocessing
from vitscope.layout import TokenLayout, make_grid, make_layout
from vitscope.models.base import ModelInfo, Pixels, ViTAdapter, count_parameters
from vitscope.weights.folders import check_readable, find_folder
from vitscope.weights.hub import find_snapshot

_WRAPPERS = {
    "CLIPModel": "vision_model",
    "CLIPVisionModelWithProjection": "vision_model",
    "DeiTForImageClassification": "deit",
    "DeiTForImageClassificationWithTeacher": "deit",
    "DeiTForMaskedImageModeling": "deit",
    "Dinov2ForImageClassification": "dinov2",
    "Dinov2WithRegistersForImageClassification": "dinov2_with_registers",
    "SiglipModel": "vision_model",
    "ViTForImageClassification": "vit",
    "ViTForMaskedImageModeling": "vit",
}
"""Where models with more than a vision tower keep it."""

_PROJECTED = {"CLIPModel", "CLIPVisionModelWithProjection"}

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def make_transformers_adapter(
    module: nn.Module,
    *,
    preprocessing: Preprocessing | None = None,
    model_id: str | None = None,
) -> ViTAdapter:
    """Adapt a transformers model."""
    tower = _find_tower(module)
    family, config = FAMILIES[type(tower).__name__], tower.config
    _check_config(family, config)
    projection: Any = module.visual_projection if type(module).__name__ in _PROJECTED else None
    analysed = tower
    if projection is not None:
        analysed = nn.ModuleDict({"vision_model": tower, "visual_projection": projection})
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
        preprocessing=preprocessing
        or default_preprocessing(family.name, _make_pair(config.image_size)),
        blocks=make_blocks(tower, family),
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


def _find_tower(module: nn.Module) -> Any:
    name = type(module).__name__
    config: Any = getattr(module, "config", None)
    check_model_type(str(getattr(config, "model_type", None)), name)
    attribute = _WRAPPERS.get(name)
    tower: Any = module
    if attribute is not None and is_class(module, name):
        tower = module.get_submodule(attribute)
    tower_name = type(tower).__name__
    if tower_name not in FAMILIES or not is_class(tower, tower_name):
        raise UnsupportedModelError(
            f"{type(tower).__module__}.{tower_name} is not a class that vitscope has an exact "
            f"account of: from transformers it knows {describe_families()}"
        )
    return tower


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
    # Named outputs even where the configuration asks for tuples.
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
