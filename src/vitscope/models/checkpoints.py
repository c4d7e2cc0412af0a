"""Weights out of files: whatever the training code wrapped around them, as data and never as code.

Requirements met here:

- Nothing in a file is executed: safetensors, or PyTorch's reader with `weights_only=True`.
- Of a self-distillation checkpoint (DINO, iBOT, DINOv2) the teacher is taken, its projection heads
  are left.
- A file that does not fit its model is refused with the names that do not, in one line.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vitscope.errors import UsageError

_WRAPPERS = ("teacher", "model_ema", "state_dict", "model", "model_state_dict", "student")
"""Keys that weights are found under, best first: a teacher is what its authors publish."""

_BACKBONE = "backbone."
_PROJECTION_HEAD = re.compile(r"head\d*\.(mlp|last_layer)\d*\.|head\d+\.")
_PRETRAINING_ONLY = ("masked_embed",)
"""iBOT's mask token under its own name; timm drops DINOv2's itself."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a model's weights.

    Args:
        path: A `.safetensors` file, or a file written by `torch.save`: weights by name, possibly
            under `teacher`, `state_dict`, `model` and the like, their names possibly prefixed with
            `module.` and `backbone.`.

    Returns:
        Weights by name on the CPU, prefixes stripped, projection heads dropped.

    Raises:
        UsageError: If the file is missing, damaged, holds code, or holds no weights.
    """
    if not path.is_file():
        raise UsageError(
            f"{path} is not a file: give the path of a checkpoint (.pth, .safetensors)"
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    weights = {key: value for key, value in _unwrap(content).items() if isinstance(value, Tensor)}
    if not weights:
        raise UsageError(
            f"no weights in {path}: expected tensors by name, at the top or under one of "
            f"{', '.join(_WRAPPERS)}"
        )
    return _strip(weights)


def load_weights(
    module: nn.Module, weights: Mapping[str, Tensor], path: Path, *, optional: tuple[str, ...] = ()
) -> None:
    """Copy weights into a model, all of them and into all of it.

    Args:
        module: The model, filled in place.
        weights: Weights by the model's own names.
        path: Where they came from, for the error.
        optional: Prefixes of names that are left alone on both sides.

    Raises:
        UsageError: If a weight is missing, unexpected or of another shape.
    """
    expected = {k: v for k, v in module.state_dict().items() if not k.startswith(optional)}
    given = {k: v for k, v in weights.items() if not k.startswith(optional)}
    shared = expected.keys() & given.keys()
    problems = {
        "it lacks": expected.keys() - given.keys(),
        "the model has no": given.keys() - expected.keys(),
        "of another shape are": {k for k in shared if expected[k].shape != given[k].shape},
    }
    found = [f"{what} {_name_some(names)}" for what, names in problems.items() if names]
    if found:
        raise UsageError(
            f"{path} does not fit {type(module).__name__}: {'; '.join(found)}; "
            "choose the architecture that the checkpoint was trained with"
        )
    module.load_state_dict(given, strict=False)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{path} is no whole safetensors file: {error}") from None
    return weights


def _read_pickle(path: Path) -> Any:
    # Training scripts save their command line beside the weights; a Namespace is plain data.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError:
            raise UsageError(
                f"{path} holds more than weights (or none): it is not executed; save its "
                "state_dict alone, as .safetensors or with torch.save"
            ) from None
        except (RuntimeError, EOFError) as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(f"{path} is no whole PyTorch checkpoint: {reason}") from None


def _unwrap(content: Any) -> dict[str, Any]:
    while isinstance(content, Mapping):
        wrapped = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not wrapped:
            return dict(content)
        content = wrapped[0]
    return {}


def _strip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {key: key.removeprefix("module.") for key in weights}
    if any(name.startswith(_BACKBONE) for name in names.values()):
        # What is outside the backbone belongs to the projection heads of pretraining.
        names = {k: n.removeprefix(_BACKBONE) for k, n in names.items() if n.startswith(_BACKBONE)}
    return {
        name: weights[key]
        for key, name in names.items()
        if not _PROJECTION_HEAD.match(name) and name not in _PRETRAINING_ONLY
    }


def _name_some(names: set[str]) -> str:
    first = ", ".join(sorted(names)[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"
