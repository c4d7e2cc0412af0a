"""open_clip: its own `VisionTransformer`, and towers that are timm models with a projection."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import open_clip
import torch
from jaxtyping import Float
from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg
from open_clip.transformer import LayerScale, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from vitscope.adapters.timm import is_clip_tower, make_timm_adapter
from vitscope.errors import UnknownModelError
from vitscope.images.preprocessing import Interpolation, Preprocessing
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.blocks import BlockParts
from vitscope.models.info import ModelInfo, count_parameters
from vitscope.models.parts import lay_out, make_packed_block, require, require_class
from vitscope.weights.catalogue import describe_near_matches
from vitscope.weights.checkpoints import plain_faults_of
from vitscope.weights.hub import find_snapshot

_RESIZES: Mapping[str, Literal["cover", "stretch"]] = {"shortest": "cover", "squash": "stretch"}
_WRAP = "load the model yourself and use wrap_model"


def make_open_clip_adapter(
    module: nn.Module, *, preprocessing: Preprocessing | None = None, model_id: str | None = None
) -> ViTAdapter:
    """Adapt an open_clip model."""
    tower: Any = getattr(module, "visual", module)
    name = model_id or type(module).__name__
    if type(tower) is TimmModel:
        return _adapt_timm_tower(tower, name, preprocessing)
    _check_tower(tower, name)
    blocks = {i: _make_block(block, name) for i, block in enumerate(tower.transformer.resblocks)}
    return ViTAdapter(
        module=tower.eval(),
        info=ModelInfo(
            id=name,
            family="open_clip/vit",
            num_params=count_parameters(tower),
            depth=len(blocks),
            embed_dim=tower.transformer.width,
            num_heads=tower.transformer.resblocks[0].attn.num_heads,
            patch_size=tuple(tower.patch_size),
            num_registers=0,
            notes=_make_notes(tower, preprocessing),
        ),
        preprocessing=preprocessing or _read_preprocessing(tower, name),
        blocks=blocks,
        make_layout=partial(
            lay_out,
            {"cls": 1, "patches": 0},
            tower.patch_size,
            native=tuple(tower.image_size),
            otherwise="build it with open_clip.create_model(..., force_image_size=...)",
        ),
        run=partial(_run, tower),
        embed_row=partial(_embed_row, tower),
    )


def load_open_clip(name: str) -> ViTAdapter:
    """Load a pretrained open_clip model."""
    architecture, _, tag = name.rpartition("/")
    settings = open_clip.get_pretrained_cfg(architecture, tag)
    if not settings:
        known = [f"{known}/{its_tag}" for known, its_tag in open_clip.list_pretrained()]
        raise UnknownModelError(
            f"open_clip has no pretrained model {name!r}: expected ARCHITECTURE/TAG"
            + describe_near_matches(name, known)
        )
    config = open_clip.get_model_config(architecture)
    _check_architecture(config, f"open_clip:{name}")
    module = _build(architecture, _find_weights(name, settings), settings, name)
    adapter = make_open_clip_adapter(module, model_id=f"open_clip:{name}")
    info = replace(adapter.info, source=f"open_clip {name}")
    if settings.get("quick_gelu") and not config.get("quick_gelu"):
        info = info.noted(f"{tag} was trained with QuickGELU, which replaces {architecture}'s GELU")
    return replace(adapter, info=info)


def _check_architecture(config: Mapping[str, Any], model_id: str) -> None:
    # Build the image tower on the meta device, under a minimal text tower.
    vision = CLIPVisionCfg(**{**config["vision_cfg"], "timm_model_pretrained": False})
    text = CLIPTextCfg(context_length=1, vocab_size=1, width=8, heads=1, layers=1)
    with torch.device("meta"):
        module = CLIP(embed_dim=config["embed_dim"], vision_cfg=vision, text_cfg=text)
        make_open_clip_adapter(module, model_id=model_id)


def _build(architecture: str, weights: Path, settings: Mapping[str, Any], name: str) -> nn.Module:
    preprocess_keys = PreprocessCfg.__dataclass_fields__.keys() - {"size"}
    advice = "the weights are damaged, or a file that the text tower needs is unavailable"
    with plain_faults_of(f"open_clip:{name}", advice, instead=_WRAP):
        model: nn.Module = open_clip.create_model(
            architecture,
            pretrained=str(weights),
            weights_only=True,
            force_quick_gelu=bool(settings.get("quick_gelu", False)),
            force_preprocess_cfg={k: v for k, v in settings.items() if k in preprocess_keys},
        )
    return model


def _find_weights(name: str, settings: Mapping[str, Any]) -> Path:
    repo_id, _, file = str(settings.get("hf_hub", "")).rpartition("/")
    if repo_id:
        names: list[str] = [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
        if file:
            names = [Path(file).with_suffix(".safetensors").name, file]
        folder = find_snapshot(repo_id, [], names)
        return next(folder / each for each in names if (folder / each).is_file())
    advice = "connect to the network and run again"
    with plain_faults_of(f"open_clip:{name}", advice, instead=_WRAP):
        return Path(open_clip.download_pretrained(settings))


def _check_tower(tower: Any, name: str) -> None:
    require_class(tower, {VisionTransformer}, name, "an image tower of class")
    require(tower.attn_pool is None, name, "an attentional pooler (attentional_pool, CoCa)")
    require(
        tower.pool_type == "tok",
        name,
        f"a global feature that is not its [CLS] token (pool_type={tower.pool_type!r})",
    )
    require(tower.transformer.batch_first, name, "tokens in the first dimension (batch_first)")


def _make_block(block: Any, name: str) -> BlockParts:
    require(
        type(block) is ResidualAttentionBlock,
        name,
        f"blocks of class {type(block).__name__} (qk_norm, scale_attn, scale_heads and the like)",
    )
    require_class(block.ls_1, {LayerScale, nn.Identity}, name, "a scale")
    return make_packed_block(block, "attn", name)


def _adapt_timm_tower(tower: Any, name: str, preprocessing: Preprocessing | None) -> ViTAdapter:
    trunk = tower.trunk
    adapter = make_timm_adapter(trunk, model_id=name)
    for part in tower.head:
        require(
            type(part) in {nn.Dropout, nn.Linear, nn.Identity},
            name,
            f"a {type(part).__name__} on top of its timm tower (timm_pool, timm_proj)",
        )
    require(
        adapter.info.global_feature != "cls" or trunk.global_pool == "token",
        name,
        f"a global feature that is not its [CLS] token (timm_pool={trunk.global_pool!r})",
    )
    # For CLIP towers the timm adapter already applies the trunk's own projection.
    head = tower.head if is_clip_tower(trunk) else nn.Sequential(trunk.head, tower.head)
    return replace(
        adapter,
        module=tower.eval(),
        info=adapter.info.noted(
            *_make_notes(tower, preprocessing),
            family=f"open_clip/{adapter.info.family}",
            num_params=count_parameters(tower),
        ),
        preprocessing=preprocessing or _read_preprocessing(tower, name),
        run=partial(_apply_head, head, adapter.run),
        embed_row=partial(_apply_head, head, adapter.embed_row),
        classifier=None,  # the trunk's head, if any, is part of the feature
    )


def _apply_head(
    head: nn.Module, function: Callable[[Tensor], Tensor], given: Tensor
) -> Float[Tensor, "batch out"]:
    feature: Tensor = head(function(given))
    return feature


def _run(tower: Any, pixels: Pixels) -> Float[Tensor, "batch out"]:
    output = tower(pixels)
    # With output_tokens the tower also returns the patches.
    feature: Tensor = output[0] if isinstance(output, tuple) else output
    return feature


def _embed_row(tower: Any, rows: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch out"]:
    # The last norm acts on each token separately, so it does not matter whether it is applied
    # before or after the [CLS] row is selected (final_ln_after_pool).
    normed: Tensor = tower.ln_post(rows)
    return normed if tower.proj is None else normed @ tower.proj


def _make_notes(tower: Any, preprocessing: Preprocessing | None) -> tuple[str, ...]:
    if preprocessing is None and not hasattr(tower, "preprocess_cfg"):
        return ("no preprocessing came with the model: open_clip's default is used",)
    return ()


def _read_preprocessing(tower: Any, name: str) -> Preprocessing:
    settings = vars(PreprocessCfg()) | open_clip.get_model_preprocess_cfg(tower)
    resize, interpolation = settings["resize_mode"], settings["interpolation"]
    require(resize in _RESIZES, name, f"images resized by their {resize} side (resize_mode)")
    require(interpolation in get_args(Interpolation), name, f"the interpolation {interpolation!r}")
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return Preprocessing(
        size=(height, width),
        resize=_RESIZES[resize],
        interpolation=interpolation,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )
