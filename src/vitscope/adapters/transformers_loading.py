"""Load a vision tower from a folder written by `save_pretrained`, as data and never as code."""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers.utils import logging

from vitscope.adapters.transformers_families import FAMILIES, Family
from vitscope.errors import (
    ModelUnreachableError,
    UnknownModelError,
    UnsupportedModelError,
    first_line,
)
from vitscope.files.printable import name_some
from vitscope.weights.checkpoints import plain_faults_of
from vitscope.weights.folders import read_json_object

CONFIG_FILE = "config.json"
_ADAPTER_FILE = "adapter_config.json"

_WITH_TEXT = [family for family in FAMILIES.values() if family.attribute == "vision_model"]
_MODEL_TYPES = FAMILIES | {f"{family.name}_vision_model": family for family in _WITH_TEXT}
_AVERAGED = {f"{family.prefix}ForImageClassification" for family in _WITH_TEXT}

_REFUSED: Mapping[str, str] = {
    "internvl": (
        "it is a language model around a vision tower; load it yourself and give its vision_tower "
        "to wrap_model"
    ),
    "vit_mae": "it drops patches at random, and its [CLS] token is never trained",
    "siglip2": (
        "NaFlex pads the patch sequence; a SigLIP 2 checkpoint of fixed resolution, whose model "
        "type is siglip, works"
    ),
}
"""Reasons why some related models are refused, by the start of their model type."""


_CONFIG_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)
"""Errors that transformers raises for an invalid configuration."""

_LARGEST = {
    "hidden_size": 10**6,
    "image_size": 10**6,
    "intermediate_size": 10**6,
    "num_attention_heads": 10**6,
    "num_channels": 10**6,
    "num_hidden_layers": 1000,
    "patch_size": 10**6,
}
"""Settings of a tower that must be positive, with numbers beyond any Vision Transformer's."""

_LEFT_OUT = re.compile(
    r"(text_model|text_projection|visual_projection|decoder|head|lm_head|(\w+_)?classifier)\."
    r"|logit_(scale|bias)$"
    r"|((\w+\.)?pooler\.|(.*\.)?(mask_token|position_ids)$)"
)
"""Names of weights that a vision tower does not use in evaluation: text towers, classifiers,
decoders, unused projections, poolers, and parts for pre-training only."""


def check_model_type(model_type: str, architecture: str) -> None:
    """Raise an error for a model that is known to have no row to analyse."""
    for start, reason in _REFUSED.items():
        if model_type.startswith(start) and model_type not in _MODEL_TYPES:
            raise UnsupportedModelError(f"{architecture} ({model_type}) is not supported: {reason}")
    if architecture in _AVERAGED:
        raise UnsupportedModelError(
            f"{architecture} is not supported: it classifies an average of the patches and drops "
            "the row that attends to them; give its vision_model to wrap_model instead"
        )


def load_tower(folder: Path, name: str) -> nn.Module:
    """Load a vision tower, with its classifier if the folder holds a trained one."""
    config = _read_config(folder, name)
    family, architecture = _choose_family(config, name)
    _check_sizes(config, name)
    if architecture in family.wrappers and "ForImageClassification" in architecture:
        module, report = _build(folder, name, architecture, {})
        if not (report["missing_keys"] or report["mismatched_keys"]):
            return _finish(module, report, architecture, name)
    class_name = family.model if architecture == family.model else family.loaded or family.model
    module, report = _build(folder, name, class_name, _choose_options(config, family, class_name))
    unset = report["missing_keys"]
    if unset and all(key.startswith("pooler.") for key in unset):
        module.pooler = None  # BEiT's, which comes with fine-tuning
        report["missing_keys"] = set()
    return _finish(module, report, class_name, name)


def _build(
    folder: Path, name: str, class_name: str, extra: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    kind: Any = getattr(transformers, class_name)
    advice = "expected model.safetensors or pytorch_model.bin that fits config.json"
    plain = plain_faults_of(name, advice, instead="save them as safetensors", local=True)
    try:
        with _quiet_library(), plain:
            built: tuple[Any, dict[str, Any]] = kind.from_pretrained(
                folder,
                local_files_only=True,
                weights_only=True,
                output_loading_info=True,
                dtype=torch.float32,
                # A configuration may request a kernel that would be downloaded and run.
                attn_implementation="sdpa",
                # The report lists them by name.
                ignore_mismatched_sizes=True,
                **extra,
            )
    except (*_CONFIG_ERRORS, StrictDataclassError) as error:
        raise UnsupportedModelError(
            f"transformers cannot build {name} from its config.json "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None
    return built


def _finish(module: Any, report: Mapping[str, Any], class_name: str, name: str) -> nn.Module:
    if mismatched := sorted(report["mismatched_keys"]):
        key, found, expected = mismatched[0]
        raise ModelUnreachableError(
            f"the weights of {name} do not fit {class_name} ({key} has shape {tuple(found)}, not "
            f"{tuple(expected)}): expected model.safetensors or "
            "pytorch_model.bin that fits config.json"
        )
    if unset := sorted(report["missing_keys"]):
        raise UnsupportedModelError(
            f"the weights of {name} leave {len(unset)} tensors of {class_name} unset, {unset[0]} "
            "among them: they belong to another architecture"
        )
    unused = sorted(key for key in report["unexpected_keys"] if not _LEFT_OUT.match(key))
    if unused:
        raise UnsupportedModelError(
            f"{class_name} has no place for {len(unused)} tensors among the weights of {name} "
            f"({name_some(unused)}): they belong to another architecture"
        )
    tower: nn.Module = module.eval()
    return tower


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        present = {file: (folder / file).is_file() for file in (CONFIG_FILE, _ADAPTER_FILE)}
    except OSError as error:
        raise ModelUnreachableError(
            f"{name} cannot be read ({error.strerror}): check its permissions"
        ) from None
    if present[CONFIG_FILE]:
        return read_json_object(folder / CONFIG_FILE, name)
    if present[_ADAPTER_FILE]:
        raise UnsupportedModelError(
            f"{name} holds a LoRA adapter, which is not a model by itself: load it with its base "
            "model, call merge_and_unload() and save that with save_pretrained"
        )
    raise UnknownModelError(
        f"{name} holds no {CONFIG_FILE}: expected a folder written by save_pretrained"
    )


def _choose_options(config: Mapping[str, Any], family: Family, class_name: str) -> dict[str, Any]:
    if "pooler" in family.optional:
        # BEiT's pooler has the norm of its mean.
        averaged = family.mean_pooling and config.get("use_mean_pooling", True)
        return {"add_pooling_layer": bool(averaged)}
    # CLIP has one projection width for both towers, given at the top level in LAION's files.
    whole = class_name == family.loaded and "vision_config" in config
    if whole and config.get("projection_dim") is not None:
        return {"projection_dim": config["projection_dim"]}
    return {}


def _check_sizes(config: Mapping[str, Any], name: str) -> None:
    # With impossible sizes transformers may divide by zero or build for ever.
    vision = config.get("vision_config")
    sizes = vision if isinstance(vision, Mapping) else config
    for key, largest in _LARGEST.items():
        value = sizes.get(key, 1)
        pair = value if isinstance(value, (list, tuple)) and value else [value]
        if not all(isinstance(side, int) and 1 <= side <= largest for side in pair):
            raise UnsupportedModelError(
                f"{CONFIG_FILE} of {name} says {key}={value!r}: expected 1 to {largest}"
            )


def _choose_family(config: Mapping[str, Any], name: str) -> tuple[Family, str]:
    model_type = str(config.get("model_type"))
    listed = config.get("architectures")
    architecture = str(listed[0]) if isinstance(listed, list) and listed else model_type
    if "auto_map" in config:
        raise UnsupportedModelError(
            f"{name} needs code from its repository, which vitscope does not execute: choose a "
            "model that transformers itself knows, or load it yourself and use wrap_model"
        )
    if "model_type" not in config and "architecture" in config:
        raise UnsupportedModelError(
            f"{name} is a timm model, which transformers does not load: give its file of "
            f"weights as timm:{config['architecture']}@{name}/model.safetensors"
        )
    check_model_type(model_type, architecture)
    if model_type not in _MODEL_TYPES:
        raise UnsupportedModelError(
            f"{name} has the model type {model_type}, expected one of {', '.join(sorted(FAMILIES))}"
        )
    if "quantization_config" in config:
        raise UnsupportedModelError(f"{name} is quantised: choose its full-precision weights")
    return _MODEL_TYPES[model_type], architecture


# transformers would report the text tower's weights as unexpected and show a bar for every tensor.
@contextmanager
def _quiet_library() -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(logging.set_verbosity, logging.get_verbosity())
        if logging.is_progress_bar_enabled():
            stack.callback(logging.enable_progress_bar)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
