"""A vector from a file, as the target of maps: reading runs no code."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitscope.errors import UsageError
from vitscope.files.printable import printable_path
from vitscope.images.search import find_images
from vitscope.maps.chosen_target import IMAGE, NAMED_TARGETS, is_named


def _read_pickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


_READERS = {
    ".safetensors": load_file,
    ".npy": lambda path: np.load(path, allow_pickle=False),
    ".pt": _read_pickle,
    ".pth": _read_pickle,
}


def open_target(text: str) -> str | Tensor:
    """A target as the command line takes it: a name, or the file of a vector."""
    if not is_named(text):
        return read_vector(Path(text))
    word, _, rest = text.partition(":")
    if word == IMAGE:
        find_images(rest)  # refuses early what is not there
    return text


def read_vector(path: Path) -> Tensor:
    """Read the one vector of a file: .safetensors, .npy or .pt."""
    name = printable_path(path)
    if path.suffix not in _READERS or not path.is_file():
        raise UsageError(
            f"target {name}: expected {NAMED_TARGETS}, or a file with one vector "
            "(.safetensors, .npy, .pt)"
        )
    try:
        content = _READERS[path.suffix](path)
    except UnpicklingError:
        raise UsageError(
            f"target {name} is not a plain file of a tensor, and code in it is never executed: "
            "save the vector alone"
        ) from None
    except (OSError, ValueError, EOFError, RuntimeError, SafetensorError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"target {name} cannot be read: {reason}") from None
    return _take_vector(content, name)


def _take_vector(content: Any, name: str) -> Tensor:
    if isinstance(content, dict):
        if len(content) != 1:
            raise UsageError(f"target {name} holds {len(content)} tensors: expected one")
        (content,) = content.values()
    if isinstance(content, np.ndarray) and content.dtype.kind == "f":
        content = torch.from_numpy(content)
    if not isinstance(content, Tensor) or not content.is_floating_point():
        raise UsageError(f"target {name} is no tensor of floating-point numbers")
    vector = content.detach().squeeze()
    if vector.ndim != 1 or not vector.isfinite().all():
        raise UsageError(
            f"target {name} has the shape {tuple(content.shape)}: expected one vector of finite "
            "numbers"
        )
    return vector
