"""transformers: DINOv2 (with registers), DINOv3, ViT, DeiT, CLIP and SigLIP vision towers.

Requirements met here:

- A wrapper with a classifier or a text tower is reduced to its vision tower; CLIP's projection,
  which makes the feature its users are given, stays.
- Loading runs no code from a repository: the class comes from an allow-list by model type, weights
  from safetensors or PyTorch's reader with `weights_only=True`.
- Weights fit exactly: a model with a randomly initialised part is refused.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from vitscope.errors import (
    ModelUnreachableError,
    UnknownModelError,
    UnsupportedModelError,
    UsageError,
)
from vitscope.layout import TokenLayout, make_grid, make_layout
from vitscope.models.base import ModelInfo, Pixels, ViTAdapter, count_parameters
from vitscope.models.hub import find_snapshot
from vitscope.models.transformers_families import FAMILIES, Family, is_class, make_blocks
from vitscope.models.transformers_preprocessing import (
    PROCESSOR_FILES,
    default_preprocessing,
    read_preprocessing,
)
from vitscope.preprocessing import Preprocessing

_CLASSIFIERS = {
    "Dinov2ForImageClassification": "dinov2",
    "Dinov2WithRegistersForImageClassification": "dinov2_with_registers",
    "ViTForImageClassification": "vit",
    "ViTForMaskedImageModeling": "vit",
    "DeiTForImageClassification": "deit",
    "DeiTForImageClassificationWithTeacher": "deit",
    "DeiTForMaskedImageModeling": "deit",
}
_PAIRS = {"CLIPModel", "CLIPVisionModelWithProjection", "SiglipModel"}
_PROJECTED = {"CLIPModel", "CLIPVisionModelWithProjection"}

_REFUSED = {
    "vit_mae": "ViT-MAE drops patches at random and its [CLS] token is never trained",
    "siglip2": (
        "SigLIP 2 NaFlex pads its patch sequence; choose a fixed-resolution SigLIP 2 checkpoint, "
        "which has the model type siglip"
    ),
    "ijepa": "I-JEPA has no [CLS] token, its global feature is an average of the patches",
}
"""Why some neighbours of the supported families are refused, by the start of their model type."""

_AVERAGED = {"CLIPForImageClassification", "SiglipForImageClassification"}

_LOADABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2": ("Dinov2Model", {}),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", {}),
    "dinov3_vit": ("DINOv3ViTModel", {}),
    "vit": ("ViTModel", {"add_pooling_layer": False}),
    "deit": ("DeiTModel", {"add_pooling_layer": False}),
    "clip": ("CLIPVisionModelWithProjection", {}),
    "clip_vision_model": ("CLIPVisionModelWithProjection", {}),
    "siglip": ("SiglipVisionModel", {}),
    "siglip_vision_model": ("SiglipVisionModel", {}),
}
"""Class and arguments by model type."""

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def make_transformers_adapter(
    module: nn.Module,
    *,
    preprocessing: Preprocessing | None = None,
    model_id: str | None = None,
) -> ViTAdapter:
    """Adapt a transformers model.

    Args:
        module: A vision tower of a supported family, or a model that holds one; the tower is put
            into evaluation mode.
        preprocessing: How it wants its pictures; its family's customary way if not given.
        model_id: The id that results shall carry; the class name if not given.

    Returns:
        The adapter of the vision tower. Of SigLIP, the pooling head is analysed.

    Raises:
        UnsupportedModelError: If a class, part or setting is not among those understood.
    """
    tower, projection = _find_tower(module)
    family = FAMILIES[type(tower).__name__]
    config = tower.config
    _check_config(family, config)
    notes = []
    if type(module).__name__ in _CLASSIFIERS:
        notes.append("the head on top of the model is left out: the embedding is the normed [CLS]")
    if preprocessing is None:
        preprocessing = default_preprocessing(family.name, _pair(config.image_size))
        notes.append(f"preprocessing was not given: the customary one of {family.name} is used")
    analysed = tower if projection is None else _join(tower, projection)
    return ViTAdapter(
        module=analysed.eval(),
        info=ModelInfo(
            id=model_id or type(module).__name__,
            family=f"transformers/{family.name}",
            num_params=count_parameters(analysed),
            depth=config.num_hidden_layers,
            embed_dim=config.hidden_size,
            num_heads=config.num_attention_heads,
            patch_size=_pair(config.patch_size),
            num_registers=family.count_registers(config),
            global_feature="cls" if family.pooling_head is None else "attention pooling",
            notes=tuple(notes),
        ),
        preprocessing=preprocessing,
        blocks=make_blocks(tower, family),
        make_layout=partial(_make_layout, family, config),
        run=partial(_run, tower, projection, family),
        embed_row=partial(_embed_row, tower, projection, family),
    )
