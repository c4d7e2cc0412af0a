"""transformers: DINOv2, DINOv3, ViT, DeiT, BEiT, CLIP, SigLIP and other vision towers.

All classes, modules and parameters must be known, so that a new version is refused, not misread.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitscope.adapters.transformers_blocks import is_class, make_blocks
from vitscope.adapters.transformers_families import FAMILIES, Family
from vitscope.adapters.transformers_loading import CONFIG_FILE, check_model_type, load_tower
from vitscope.adapters.transformers_preprocessing import PROCESSOR_FILES, read_preprocessing
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.images.preprocessing import Preprocessing
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.classifier import Classifier
from vitscope.models.info import ModelInfo, count_parameters
from vitscope.models.parts import lay_out, require
from vitscope.weights.folders import check_readable, find_folder
from vitscope.weights.hub import find_snapshot

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_TOWERS = {family.model: family for family in FAMILIES.values()}
_HEADS = ("classifier", "cls_classifier", "distillation_classifier")
"""Attributes of `ForImageClassification` classes that hold a head."""

_WRAPPERS = {wrapper: family for family in FAMILIES.values() for wrapper in family.wrappers}


def make_transformers_adapter(
    module: nn.Module, *, preprocessing: Preprocessing | None = None, model_id: str | None = None
) -> ViTAdapter:
    """Adapt a transformers model."""
    tower, family = _find_tower(module)
    config = tower.config
    _check_config(family, config)
    analysed, projection = tower, None
    if family.projection is not None and tower is not module:
        projection = module.get_submodule(family.projection)
        analysed = nn.ModuleDict({family.holder: tower, family.projection: projection})
    feature = _name_feature(tower, family)
    runner = _Runner(tower, family, feature, projection)
    layers = tower.get_submodule(family.layers)
    size, patch_size = _make_pair(config.image_size), _make_pair(config.patch_size)
    bias = f"{family.prefix}RelativePositionBias"
    return ViTAdapter(
        module=analysed.eval(),
        info=ModelInfo(
            id=model_id or type(module).__name__,
            family=f"transformers/{family.name}",
            num_params=count_parameters(analysed),
            depth=len(layers),
            embed_dim=config.hidden_size,
            num_heads=config.num_attention_heads,
            patch_size=patch_size,
            num_registers=family.count_registers(config),
            global_feature=feature,
            notes=_make_notes(type(module).__name__, family.name, feature, preprocessing),
        ),
        preprocessing=preprocessing or family.choose_preprocessing(size),
        blocks=make_blocks(tower, family, feature),
        make_layout=partial(
            lay_out,
            family.order_tokens(config),
            patch_size,
            native=None if _is_resizable(family, config) else size,
            otherwise="choose a model whose position table transformers resamples",
            pooling_query=feature == "attention pooling",
            averaged="patches" if feature == "average" else None,
        ),
        run=runner.run,
        embed_row=runner.embed_row,
        encoder=tuple(layers.children()),
        position_biases=tuple(part for part in tower.modules() if is_class(part, bias)),
        classifier=_find_classifier(module, runner),
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


def _find_classifier(module: Any, runner: "_Runner") -> Classifier | None:
    found = [getattr(module, name) for name in _HEADS if hasattr(module, name)]
    heads = [head for head in found if not isinstance(head, nn.Identity)]  # without labels
    if not heads:
        return None
    names = {int(index): str(name) for index, name in (module.config.id2label or {}).items()}
    return Classifier(
        module=module,
        run=partial(runner.classify, module),
        head=heads[0] if len(heads) == 1 else nn.ModuleList(heads),
        reads_feature=len(heads) == 1 and not runner.family.head_reads_patches,
        # transformers' own, where a model has none.
        names={index: name for index, name in names.items() if name != f"LABEL_{index}"},
    )


def _find_tower(module: nn.Module) -> tuple[Any, Family]:
    name = type(module).__name__
    config: Any = getattr(module, "config", None)
    check_model_type(str(getattr(config, "model_type", None)), name)
    tower: Any = module
    if name in _WRAPPERS and is_class(module, name):
        tower = module.get_submodule(_WRAPPERS[name].holder)
    tower_name = type(tower).__name__
    if tower_name not in _TOWERS or not is_class(tower, tower_name):
        raise UnsupportedModelError(
            f"{type(tower).__module__}.{tower_name} is not a class that vitscope has an exact "
            f"account of: from transformers it knows {', '.join(sorted(FAMILIES))}"
        )
    return tower, _TOWERS[tower_name]


def _check_config(family: Family, config: Any) -> None:
    channels = config.num_channels
    require(channels == 3, family.model, f"images of {channels} channels (num_channels)")
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
        notes.append(f"the embedding is {taken}, before the head of {name}")
    if preprocessing is None:
        notes.append(
            f"no preprocessing came with the model: the one customary for {family} is used"
        )
    return tuple(notes)


@dataclass(frozen=True, eq=False)
class _Runner:
    """How a tower is run, alone and in a model with a classifier; to be pickled."""

    tower: Any
    family: Family
    feature: str  # which the tower's global feature is, as in `ModelInfo`
    projection: nn.Module | None  # of the feature

    def run(self, pixels: Pixels) -> Float[Tensor, "batch out"]:
        feature = self._take_feature(self._call(self.tower, pixels))
        return feature if self.projection is None else self.projection(feature)

    def classify(self, module: nn.Module, pixels: Pixels) -> Float[Tensor, "batch class"]:
        logits: Tensor = self._call(module, pixels).logits
        return logits

    def embed_row(self, rows: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch out"]:
        feature = rows
        if self.feature != "attention pooling":
            feature = self.tower.get_submodule(self.family.final_norm)(rows)
            pooler_norm = getattr(getattr(self.tower, "pooler", None), "layernorm", None)
            feature = feature if pooler_norm is None else pooler_norm(feature)
        return feature if self.projection is None else self.projection(feature)

    def _call(self, module: nn.Module, pixels: Pixels) -> Any:
        self._check_precision()
        resized = tuple(pixels.shape[-2:]) != _make_pair(self.tower.config.image_size)
        resampled = self.family.positions == "optional" and resized
        options = {"interpolate_pos_encoding": True} if resampled else {}
        # Named outputs even if the configuration asks for tuples.
        return module(pixels, return_dict=True, **options)

    def _take_feature(self, outputs: Any) -> Float[Tensor, "batch dim"]:
        family = self.family
        if self.feature == "average":
            pooled: Tensor | None = outputs.get("pooler_output")
            if family.cls and pooled is not None:  # BEiT's mean with its norm
                return pooled
            tokens: Tensor = outputs["last_hidden_state"]
            return tokens[:, int(family.cls) :].mean(dim=1)
        row: Tensor = outputs[family.output]
        return row[:, 0] if family.output == "last_hidden_state" else row

    def _check_precision(self) -> None:
        config = self.tower.config
        if self.tower.dtype != torch.float64:
            return
        if getattr(config, "norm_type", None) == "rms_norm" and self.feature == "cls":
            part, advice = "RMS norm", "use float32"
        elif self.family.float32_softmax and config._attn_implementation == "eager":
            part, advice = "eager softmax", "call set_attn_implementation('sdpa') on it first"
        else:
            return
        raise UsageError(
            f"transformers' {part} of {self.family.name} computes in float32 even in a float64 "
            f"model, which cannot balance to float64: {advice}"
        )


def _is_resizable(family: Family, config: Any) -> bool:
    if family.positions == "optional":
        return _is_square(config) and isinstance(config.patch_size, int)
    # AIMv2's positions fit any size if they are native.
    return family.positions != "fixed" or getattr(config, "is_native", False)


def _is_square(config: Any) -> bool:
    (height, width), (rows, columns) = _make_pair(config.image_size), _make_pair(config.patch_size)
    return bool(height // rows == width // columns)


def _make_pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
