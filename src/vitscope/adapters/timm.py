"""timm: `VisionTransformer` (DINOv2, DeiT III, CLIP, DINO, …) and `Eva` (DINOv3, EVA-02, …).

Where timm averages patches although there is a [CLS] token, the [CLS] token is used and noted.
"""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import HybridEmbed, PatchEmbed, QuickGELU
from timm.models import eva, is_model_in_modules, vision_transformer
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from vitscope.adapters.timm_blocks import check_block, make_block_parts, make_pool_parts
from vitscope.adapters.timm_weights import HEADS, convert_weights, count_classes, lacks_layer_scale
from vitscope.errors import UnknownModelError, UnsupportedModelError, UsageError
from vitscope.images.preprocessing import Interpolation, Preprocessing
from vitscope.layout import TokenLayout
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.blocks import BlockParts
from vitscope.models.classifier import Classifier
from vitscope.models.info import ModelInfo, count_parameters
from vitscope.models.parts import lay_out, require, require_class
from vitscope.weights.catalogue import describe_near_matches
from vitscope.weights.checkpoints import load_weights, read_checkpoint
from vitscope.weights.hub import find_snapshot

_FAMILIES = {
    vision_transformer.VisionTransformer: "timm/vit",
    VisionTransformerDistilled: "timm/deit",
    eva.Eva: "timm/eva",
}
_MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva")
"""Files of timm that define models of these classes."""

_WEIGHTS_FILE = "model.safetensors"
_RESIZES: dict[str, Literal["cover", "stretch"]] = {"center": "cover", "squash": "stretch"}
_POOLINGS = {"avg": "averages", "max": "takes the maximum of"}
_CLIP_TOWERS = ("_clip_", "_pe_core_", "_mci_")
"""Parts of architecture names whose `head` projects into the space shared with text."""


def make_timm_adapter(
    module: nn.Module, *, preprocessing: Preprocessing | None = None, model_id: str | None = None
) -> ViTAdapter:
    """Adapt a timm model."""
    adapter = _adapt(module, model_id or type(module).__name__)
    info = adapter.info.noted(*_make_weight_notes(module))
    return replace(adapter, info=info, preprocessing=preprocessing or adapter.preprocessing)


def _adapt(module: nn.Module, name: str) -> ViTAdapter:
    # By class, whichever weights the module has: they may not be those of its pretrained tag.
    if type(module) not in _FAMILIES:
        raise _refuse_class(name)
    tower: Any = module.eval()
    require(
        "radio" not in _read_published(tower)[0],
        name,
        "a [CLS] token for each of several teachers, all but the first of which timm counts among "
        "the registers (RADIO)",
    )
    require_class(tower.patch_embed, {PatchEmbed, HybridEmbed}, name, "the patch embedding")
    preprocessing = _read_preprocessing(tower, name)
    blocks = _make_blocks(tower, name)
    project = tower.head if is_clip_tower(tower) else nn.Identity()
    norms = [tower.fc_norm] if tower.attn_pool is not None else [tower.norm, tower.fc_norm]
    heads = _list_heads(tower)
    analysed: Any = tower.blocks[-1].attn if tower.attn_pool is None else tower.attn_pool
    return ViTAdapter(
        module=module,
        info=ModelInfo(
            id=name,
            family=_FAMILIES[type(module)],
            num_params=count_parameters(tower) - sum(map(count_parameters, heads)),
            depth=len(tower.blocks),
            embed_dim=tower.embed_dim,
            num_heads=analysed.num_heads,
            patch_size=_read_patch_size(tower),
            num_registers=_count_registers(tower),
            global_feature=_name_feature(tower),
            own_output=_tell_own_output(tower),
            notes=_make_notes(tower),
        ),
        preprocessing=preprocessing,
        blocks=blocks,
        make_layout=partial(_lay_out, tower),
        run=partial(_run, tower, project),
        embed_row=nn.Sequential(*norms, project),
        encoder=tuple(tower.blocks),
        classifier=_find_classifier(tower, heads),
    )


def _find_classifier(tower: Any, heads: list[nn.Module]) -> Classifier | None:
    if not heads or isinstance(tower.head, nn.Identity) or not tower.global_pool:
        return None
    # The head is on what timm pools, which is the feature but for a pooling beside a [CLS] token.
    return Classifier(
        module=tower,
        run=tower,
        head=nn.ModuleList(heads) if len(heads) > 1 else tower.head,
        reads_feature=not _tell_own_output(tower),
    )


def _list_heads(tower: Any) -> list[nn.Module]:
    if is_clip_tower(tower):
        return []
    # The second one is on the distillation token.
    return [tower.head, tower.head_dist] if hasattr(tower, "head_dist") else [tower.head]


def _make_blocks(tower: Any, name: str) -> dict[int, BlockParts]:
    if tower.attn_pool is not None:
        return {len(tower.blocks): make_pool_parts(tower.attn_pool, name)}
    if tower.cls_token is not None:
        return {i: make_block_parts(block, name) for i, block in enumerate(tower.blocks)}
    require(
        tower.global_pool == "avg",
        name,
        f"no [CLS] token and a pooling of its tokens by {tower.global_pool!r} (global_pool)",
    )
    for block in tower.blocks:
        check_block(block, name)
    return {}


def _name_feature(tower: Any) -> str:
    if tower.attn_pool is not None:
        return "attention pooling"
    return "average" if tower.cls_token is None else "cls"


def load_timm(name: str, checkpoint: Path | None = None) -> ViTAdapter:
    """Build a timm model and load its weights."""
    model_id = f"timm:{name}"
    _check_name(name)
    with torch.device("meta"):
        unfilled = _create(name)
        make_timm_adapter(unfilled, model_id=model_id)
    if checkpoint is not None:
        return _load_from_file(name, checkpoint)
    if native := _find_quick_gelu_name(unfilled):
        raise UsageError(
            f"{model_id} would run weights trained with QuickGELU as a model with GELU, and its "
            f"numbers would be wrong: load timm:{native}"
        )
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    if not repository:
        raise UnknownModelError(
            f"timm publishes no weights for {name}: give a file, {model_id}@checkpoint.pth"
        )
    file = find_snapshot(repository, (), (_WEIGHTS_FILE,)) / _WEIGHTS_FILE
    source = {"file": str(file), "custom_load": False}
    module = _create(name, pretrained=True, pretrained_cfg_overlay=source)
    adapter = make_timm_adapter(module, model_id=model_id)
    return adapter.named(model_id, f"Hugging Face hub, {repository}")


def is_clip_tower(module: nn.Module) -> bool:
    """Whether a timm model's `head` is a projection that is part of its global feature."""
    tower: Any = module
    architecture, tag = _read_published(tower)
    return (
        any(part in architecture for part in _CLIP_TOWERS)
        and "ft_in" not in tag
        and isinstance(tower.head, nn.Linear)
        and tower.head.out_features == tower.pretrained_cfg.get("num_classes")
    )


def _read_published(tower: Any) -> tuple[str, str]:
    # Architecture and tag that the module was created with; empty if it was built by hand.
    config = getattr(tower, "pretrained_cfg", None) or {}
    return config.get("architecture") or "", config.get("tag") or ""


def _find_quick_gelu_name(tower: Any) -> str | None:
    # timm publishes weights trained with QuickGELU under two names; under the shorter one it runs
    # them with plain GELU.
    architecture, tag = _read_published(tower)
    native = f"{architecture.replace('_clip_', '_clip_quickgelu_')}.{tag}"
    trained_with_it = "_clip_" in architecture and native in timm.list_pretrained()
    return native if trained_with_it and type(tower.blocks[0].mlp.act) is not QuickGELU else None


def _run(tower: Any, project: nn.Module, pixels: Pixels) -> Tensor:
    tokens = tower.forward_features(pixels)
    if _name_feature(tower) == "cls":
        pooled = tower.fc_norm(tokens[:, 0])
    else:
        pooled = tower.forward_head(tokens, pre_logits=True)
    feature: Tensor = project(pooled)
    return feature


def _lay_out(tower: Any, height: int, width: int) -> TokenLayout:
    # Read at each call: `set_input_size` changes the size of a model.
    averaged = "all" if getattr(tower, "pool_include_prefix", False) else "patches"
    embed, fixed = tower.patch_embed, not tower.dynamic_img_size
    return lay_out(
        _count_tokens(tower),
        _read_patch_size(tower),
        height,
        width,
        native=tuple(embed.img_size) if fixed else None,
        otherwise="build it with timm.create_model(..., dynamic_img_size=True)",
        # timm crops pixels beyond the last whole patch, so the size need not fit the grid.
        grid=tuple(embed.grid_size) if fixed else None,
        pooling_query=tower.attn_pool is not None,
        averaged=averaged if _name_feature(tower) == "average" else None,
    )


def _count_tokens(tower: Any) -> dict[str, int]:
    # In sequence order; the patch count comes from the grid.
    # Eva pools over all tokens; VisionTransformer over the patches unless configured otherwise.
    if tower.attn_pool is not None and not getattr(tower, "pool_include_prefix", True):
        return {"patches": 0}
    return {
        "cls": int(tower.cls_token is not None),
        "distillation": int(hasattr(tower, "dist_token")),
        "registers": _count_registers(tower),
        "patches": 0,
    }


def _count_registers(tower: Any) -> int:
    return 0 if tower.reg_token is None else int(tower.reg_token.shape[1])


def _read_patch_size(tower: Any) -> tuple[int, int]:
    height, width = tower.patch_embed.feat_ratio(as_scalar=False)
    return int(height), int(width)


def _read_preprocessing(tower: Any, name: str) -> Preprocessing:
    config = resolve_model_data_config(tower)
    crop, interpolation = config["crop_mode"], config["interpolation"]
    first_kernel = next(p for p in tower.patch_embed.parameters() if p.ndim == 4)
    channels = first_kernel.shape[1]
    require(channels == 3, name, f"images of {channels} channels (in_chans)")
    require(crop in _RESIZES, name, f"the crop mode {crop!r} (crop_mode)")
    require(interpolation in get_args(Interpolation), name, f"the interpolation {interpolation!r}")
    size = _choose_size(tower)
    return Preprocessing(
        size=size,
        resize=_RESIZES[crop],
        # timm rounds the size before the crop down: 224 / 0.9 is 248.
        crop_fraction=size[0] / math.floor(size[0] / config["crop_pct"]),
        interpolation=interpolation,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _choose_size(tower: Any) -> tuple[int, int]:
    (rows, columns), (height, width) = tower.patch_embed.grid_size, _read_patch_size(tower)
    native: tuple[int, int] = tuple(tower.patch_embed.img_size)
    return (rows * height, columns * width) if tower.dynamic_img_size else native


def _tell_own_output(tower: Any) -> str:
    if hasattr(tower, "dist_token"):
        return "timm averages its [CLS] and distillation tokens"
    if _name_feature(tower) != "cls" or tower.global_pool in {"token", ""}:
        return ""
    tokens = "tokens" if getattr(tower, "pool_include_prefix", False) else "patches"
    return f"timm {_POOLINGS.get(tower.global_pool, 'pools')} its {tokens}"


def _make_notes(tower: Any) -> tuple[str, ...]:
    notes = []
    if own_output := _tell_own_output(tower):
        notes.append(f"{own_output}; the [CLS] token was analysed, and the embedding is its own")
    size, built_for = _choose_size(tower), tuple(tower.patch_embed.img_size)
    if size != built_for:
        notes.append(
            f"built for {built_for[0]} x {built_for[1]} px, which is no multiple of the patch; "
            f"{size[0]} x {size[1]} px is given instead"
        )
    return tuple(notes)


def _make_weight_notes(tower: Any) -> tuple[str, ...]:
    tag = _read_published(tower)[1]
    notes = []
    if tag == "mae" or (tag.startswith("mim_") and "_ft_" not in tag):
        method = "MAE" if tag == "mae" else "masked image modelling"
        notes.append(
            f"{method} never trains its [CLS] token: no loss is taken there, so its row was not "
            "learned as a global feature"
        )
    if native := _find_quick_gelu_name(tower):
        notes.append(
            f"the weights of {tag} were trained with QuickGELU, but this model has another "
            f"activation: build {native} to get their numbers"
        )
    return tuple(notes)


def _check_name(name: str) -> None:
    known = {*timm.list_models(include_tags=True), *timm.list_models()}
    if name not in known:
        near = describe_near_matches(name, known)
        raise UnknownModelError(
            f"timm has no model {name!r}: expected one of timm.list_models(), with or without a "
            f"tag{near}"
        )
    if not is_model_in_modules(name, _MODULES):
        raise _refuse_class(f"timm:{name}")


def _refuse_class(name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name} is not a VisionTransformer or Eva of timm: choose one that is, such as "
        "vit_small_patch14_dinov2.lvd142m"
    )


def _create(name: str, **kwargs: Any) -> nn.Module:
    module: nn.Module = timm.create_model(name, dynamic_img_size=True, **kwargs)
    return module


def _load_from_file(name: str, checkpoint: Path) -> ViTAdapter:
    model_id = f"timm:{name}@{checkpoint}"
    if "flexi" in name:
        raise UnsupportedModelError(
            f"{model_id}: timm resamples the position embeddings of this architecture in a way of "
            "its own, which weights from a file would miss; leave the file out"
        )
    read = read_checkpoint(checkpoint)
    module: Any = _create(name)
    if scaled := lacks_layer_scale(module, read.weights):
        module = _create(name, init_values=1.0)  # The values are overwritten by the file's.
    weights, resampled = convert_weights(module, read.weights, checkpoint)
    # A projection is part of the global feature; a classifier need not be in the file.
    classes = None if is_clip_tower(module) else count_classes(module, weights)
    if classes is not None:
        # Without the file's, its weights are random: no two loads would be the same model.
        module.reset_classifier(classes)
    optional = HEADS if classes == 0 else ()
    load_weights(module, weights, checkpoint, optional=optional)
    adapter = _adapt(module, model_id)
    info = adapter.info.noted(
        *read.notes,
        *(["built with the layer scale that the file holds"] if scaled else []),
        *resampled,
        f"the weights come from a file; images are preprocessed as timm does for {name} (mean "
        f"{adapter.preprocessing.mean}): check that the weights were trained that way",
        source=str(checkpoint),
    )
    return replace(adapter, info=info)
