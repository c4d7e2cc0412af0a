"""Read weights from checkpoint files, as data and never as code."""

import argparse
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vitscope.errors import ModelUnreachableError, UnsupportedModelError, UsageError, first_line
from vitscope.extras import find_failed_import
from vitscope.files.printable import name_some

_WRAPPERS = (
    "teacher",
    "target_encoder",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "ema_model",
    "ema",
    "state_dict",
    "model",
    "model_state_dict",
    "module",
    "backbone",
    "encoder",
    "student",
)
"""Keys under which weights are found, best first: authors evaluate and publish the teacher, or the
average of the weights over training."""

_TRANSPARENT = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names added by torch's wrappers (compile, FSDP, activation checkpointing)."""

_PATCH_KERNEL = "patch_embed.proj.weight"
_STEMS = tuple(
    re.compile(rf"(?P<prefix>(.+\.)?){stem}")
    for stem in (
        r"patch_embed\.proj\.weight",
        r"visual\.class_embedding",
        "registers",  # PH-Reg saves the rest under two names, or not at all
        "cls_token",
    )
)
"""Weights that occur once in a Vision Transformer: the prefix of one of them is that of all."""
_CONVERTED = re.compile(r"(visual\.(trunk\.)?|vision_encoder\.)$")
"""Ends of prefixes that timm's own converters expect."""

_PREFERRED = {"teacher", "ema", "swa", "average", "averaged", "target"}
_AVOIDED = {"student", "momentum", "k", "context", "predictor"}
"""Words in prefixes of models that are evaluated, and of models used only to train them
(`encoder_k` and `momentum_encoder` in MoCo)."""
_FROZEN = "gram"  # prefix word of an early teacher that DINOv3's trainer keeps as an anchor

_CHUNKED = re.compile(r"blocks\.(\d+)\.(\d+)\.")
_PROJECTION_HEAD = re.compile(r"head\d*\.(mlp|last_layer)\d*\.|head\d+\.")
_PRETRAINING_ONLY = ("masked_embed",)
"""iBOT's name for the mask token; timm itself drops DINOv2's."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights of one model from a file."""

    weights: dict[str, Tensor]
    notes: tuple[str, ...]  # which model was chosen if the file holds several


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a model's weights from a file."""
    try:
        if not path.is_file():
            raise UsageError(
                f"{path} is not a file: give the path of a checkpoint (.pth, .safetensors)"
            )
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror or error}): check its permissions"
        ) from None
    found, place = _unwrap(content)
    if not found:
        raise UsageError(
            f"no weights in {path}: expected tensors by name, at the top or under one of "
            f"{', '.join(_WRAPPERS)}"
        )
    weights, prefixes = _strip(found, path)
    _check_colour(weights, path)
    notes = (_note_choice(path, place), _note_choice(path, prefixes))
    return Checkpoint(_join_chunks(weights), tuple(note for note in notes if note))


@contextmanager
def plain_faults_of(
    model: str, advice: str, *, instead: str, local: bool = False
) -> Iterator[None]:
    """Tell in one line why a library cannot load weights as data.

    `instead` is the advice on weights that are more than data; `local` ones are never fetched.
    """
    try:
        yield
    except UnpicklingError:
        raise ModelUnreachableError(
            f"the weights of {model} hold more than tensors, and code is never executed: {instead}"
        ) from None
    except (OSError, RuntimeError, SafetensorError) as error:
        if find_failed_import(error):
            raise
        reason = first_line(error)
        if local:
            raise ModelUnreachableError(
                f"the weights of {model} cannot be read ({reason}): {advice}"
            ) from None
        raise ModelUnreachableError(
            f"{model} cannot be read or fetched ({reason}): {advice}"
        ) from None


def load_weights(
    module: nn.Module, weights: Mapping[str, Tensor], path: Path, *, optional: tuple[str, ...] = ()
) -> None:
    """Load weights into a model; every weight must be used and every parameter set."""
    expected = {k: v for k, v in module.state_dict().items() if not k.startswith(optional)}
    given = {k: v for k, v in weights.items() if not k.startswith(optional)}
    shared = expected.keys() & given.keys()
    problems = {
        "missing:": expected.keys() - given.keys(),
        "unexpected:": given.keys() - expected.keys(),
        "of another shape:": {k for k in shared if expected[k].shape != given[k].shape},
    }
    found = [f"{what} {name_some(sorted(names))}" for what, names in problems.items() if names]
    if found:
        raise UsageError(
            f"{path} does not fit {type(module).__name__}: {'; '.join(found)}; give the state_dict "
            "of the Vision Transformer alone, and choose the architecture that it was trained with"
        )
    module.load_state_dict(given, strict=False)


def _check_colour(weights: Mapping[str, Tensor], path: Path) -> None:
    kernel = weights.get(_PATCH_KERNEL)
    if kernel is not None and kernel.ndim == 4 and kernel.shape[1] != 3:
        raise UnsupportedModelError(
            f"{path} is for a model of images with {kernel.shape[1]} channels: expected 3 "
            "(red, green, blue)"
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{path} is not a complete safetensors file: {error}") from None
    return weights


def _read_pickle(path: Path) -> Any:
    # Training scripts also save their command line and best score: a Namespace and numpy numbers
    # are plain data.
    with torch.serialization.safe_globals([argparse.Namespace, *_list_numpy_types()]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError:
            raise UsageError(
                f"{path} is not a plain file of weights, and code in it is never executed; save "
                "its state_dict alone, as .safetensors or with torch.save"
            ) from None
        except (RuntimeError, EOFError) as error:
            raise UsageError(
                f"{path} is not a complete PyTorch checkpoint: {first_line(error)}"
            ) from None


def _list_numpy_types() -> list[Any]:
    # The types needed to unpickle numpy numbers and arrays, under the names of numpy 1 and 2.
    codes = np.typecodes["All"].replace("O", "").replace("V", "")
    made_of = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.empty(0).__reduce__()[0]}
    named = [
        (function, f"numpy.{core}.multiarray.{name}")
        for name, function in made_of.items()
        for core in ("core", "_core")
    ]
    return [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in codes}, *named]


def _unwrap(content: Any) -> tuple[dict[str, Tensor], list[str]]:
    # The weights, and the candidate keys at the outermost choice, the chosen one first.
    if not isinstance(content, Mapping):
        return {}, []
    wrapped = {key: _unwrap(content[key]) for key in _WRAPPERS if key in content}
    candidates = [key for key, (weights, _) in wrapped.items() if weights]
    if not candidates:
        return _list_tensors(content) or _flatten(content), []
    weights, inner = wrapped[candidates[0]]
    return weights, candidates if len(candidates) > 1 else inner


def _list_tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in content.items() if isinstance(v, Tensor)}


def _flatten(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    # Models under a trainer's own keys, such as `net`, which become prefixes.
    flat = {
        f"{key}.{name}": value
        for key, inner in content.items()
        if isinstance(inner, Mapping)
        for name, value in _list_tensors(inner).items()
    }
    return flat if _find_prefixes(flat.keys()) else {}


def _strip(weights: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    # The weights of one model, and all prefixes in the file, the chosen one first.
    plain = {_drop_transparent(str(key)): value for key, value in weights.items()}
    prefixes = _find_prefixes(plain.keys())
    if not prefixes:
        # Not the names of a known Vision Transformer: only drop the prefix of parallel training.
        prefixes = ["module."] if all(name.startswith("module.") for name in plain) else [""]
    ranked = sorted(prefixes, key=_rank_prefix)
    taken = ranked[0]
    stripped = _take(plain, taken)
    alike = [prefix for prefix in ranked[1:] if _rank_prefix(prefix) == _rank_prefix(taken)]
    if not all(_are_equal(stripped, _take(plain, prefix)) for prefix in alike):
        raise UsageError(
            f"{path} holds several models ({name_some(sorted(ranked))}), and it is unclear which "
            "one to use: save the state_dict of one"
        )
    kept = {
        name: value
        for name, value in stripped.items()
        if not _PROJECTION_HEAD.match(name) and name not in _PRETRAINING_ONLY
    }
    return kept, ranked


def _drop_transparent(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _TRANSPARENT)


def _find_prefixes(names: Collection[str]) -> list[str]:
    for stem in _STEMS:
        found = [match["prefix"] for name in names if (match := stem.fullmatch(name))]
        if found:
            return sorted({_CONVERTED.sub("", prefix) for prefix in found})
    return []


def _rank_prefix(prefix: str) -> int:
    words = set(re.split(r"[._]", prefix))
    if _FROZEN in words:
        return 2
    return 0 if words & _PREFERRED else 2 if words & _AVOIDED else 1


def _take(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}


def _are_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    # DINOv3's trainer saves the same teacher under two names.
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def _join_chunks(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    # Blocks trained in chunks are named blocks.CHUNK.BLOCK; sort them by both numbers.
    found = {name: _CHUNKED.match(name) for name in weights}
    pairs = {(int(match[1]), int(match[2])) for match in found.values() if match}
    place = {pair: number for number, pair in enumerate(sorted(pairs))}
    return {
        f"blocks.{place[int(match[1]), int(match[2])]}.{name[match.end() :]}" if match else name: v
        for (name, match), v in zip(found.items(), weights.values(), strict=True)
    }


def _note_choice(path: Path, candidates: list[str]) -> str:
    if len(candidates) < 2:
        return ""
    taken, *left = (repr(name) if name else "no prefix" for name in candidates)
    return f"{path.name} holds several sets of weights: used {taken}, not {', '.join(left)}"
