"""Model ids: which library one names, and whether a model can have it; imports no library."""

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from vitscope.errors import UnknownModelError, UnsupportedModelError, UsageError
from vitscope.plugins import find_plugin
from vitscope.weights.catalogue import CATALOGUE, describe_near_matches
from vitscope.weights.folders import find_folder

GROUP = "vitscope.adapters"
"""Group of entry points: each is named after the library it adapts and points to a class."""

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WEIGHT_SUFFIXES = {".bin", ".ckpt", ".pt", ".pth", ".safetensors"}

_TEST_TIME_REGISTERS = {
    "torchhub:dinov2_vitl14_tt_reg": (
        "dinov2-large",
        "test-time-registers:published=true,compat=released",
    ),
    "amildravid4292/clip-vitb16-test-time-registers": (
        "openclip-b16",
        "test-time-registers:depth=12,threshold=30,highest=5,compat=released",
    ),
    "amildravid4292/clip-vitl14-test-time-registers": (
        "openclip-l14",
        "test-time-registers:compat=released",
    ),
}
"""Published models that are code around others: which model and remedy to take in their place."""


class OwnLibrary(NamedTuple):
    """The adapter of a library."""

    home: str  # its module
    load: str  # name of the function that loads a model by its name
    make: str  # name of the function that adapts a module; empty if it has none of its own
    has_prefix: bool = True  # whether ids start with the library's name and a colon
    takes_file: bool = False  # whether a file of weights may follow the name after an @

    def find(self, function: str) -> Any:
        """A function of the module, which is imported now."""
        return getattr(import_module(f"vitscope.adapters.{self.home}"), function)


LIBRARIES: Mapping[str, OwnLibrary] = {
    "transformers": OwnLibrary(
        "transformers", "load_transformers", "make_transformers_adapter", has_prefix=False
    ),
    "open_clip": OwnLibrary("open_clip", "load_open_clip", "make_open_clip_adapter"),
    "ph-reg": OwnLibrary("ph_reg", "load_ph_reg", "make_ph_reg_adapter", takes_file=True),
    "scenes": OwnLibrary("scenes", "load_scenes", ""),
    "timm": OwnLibrary("timm", "load_timm", "make_timm_adapter", takes_file=True),
    "torchhub": OwnLibrary("torch_hub", "load_hub", "make_hub_adapter", takes_file=True),
    "torchvision": OwnLibrary("torchvision", "", "make_torchvision_adapter", has_prefix=False),
}
PREFIXES = {name for name, library in LIBRARIES.items() if library.has_prefix}


def check_model_id(model_id: str) -> None:
    """Raise an error for an unknown id, without importing a library or using the network."""
    entry = CATALOGUE.get(model_id)
    if entry is not None and entry.checkpoint:
        raise UsageError(
            f"{model_id} cannot be downloaded by name: get {entry.checkpoint} and give "
            f"{entry.id}, with the file's path after the @"
        )
    if model_id in _TEST_TIME_REGISTERS:
        name, remedy = _TEST_TIME_REGISTERS[model_id]
        raise UnsupportedModelError(
            f"{model_id} is code around a known model, which vitscope does not execute: take "
            f"{name} with the remedy {remedy}"
        )
    library, _, name = model_id.partition(":")
    known = bool(name) and (library in PREFIXES or find_plugin(GROUP, library) is not None)
    addressed = known or find_folder(model_id) is not None
    if entry is None and not addressed and Path(model_id).suffix in _WEIGHT_SUFFIXES:
        raise UsageError(
            f"{model_id} is a file of weights without an architecture: give "
            f"both, as in timm:ARCHITECTURE@{model_id}"
        )
    if entry is None and not addressed and _REPOSITORY.fullmatch(model_id) is None:
        raise UnknownModelError(
            f"unknown model {model_id!r}: expected a name from the catalogue, a local folder, "
            "organisation/name on Hugging Face, timm:NAME or torchhub:NAME (with @CHECKPOINT for a "
            f"file of weights), or open_clip:ARCHITECTURE/TAG{describe_near(model_id)}"
        )


def check_weights(model_id: str) -> None:
    """Raise an error for weights that can be neither read nor fetched; loads none, nor torch."""
    library, _, name = model_id.partition(":")
    if library in LIBRARIES and LIBRARIES[library].takes_file:
        checkpoint = name.partition("@")[2]
        if checkpoint and not Path(checkpoint).expanduser().is_file():
            raise UsageError(
                f"{checkpoint} is not a file: give the path of a checkpoint (.pth, .safetensors)"
            )
    if has_weights(model_id):
        return
    from vitscope.weights.hub import check_reachable  # here, because importing it is slow

    entry = CATALOGUE.get(model_id)
    if entry is not None:
        check_reachable(entry.repository, entry.library)
    elif not name:
        check_reachable(model_id, "timm" if model_id.startswith("timm/") else "transformers")


def has_weights(model_id: str) -> bool:
    """Whether the weights are known to be on this machine."""
    entry = CATALOGUE.get(model_id)
    if entry is not None:
        from vitscope.weights.hub import find_weights  # here, because importing it is slow

        return find_weights(entry) != "not cached"
    library, _, name = model_id.partition(":")
    has_file = library in LIBRARIES and LIBRARIES[library].takes_file and "@" in name
    return has_file or find_folder(model_id) is not None


def describe_near(model_id: str) -> str:
    """Words on models with nearly this id."""
    return describe_near_matches(model_id, [*CATALOGUE, *(e.id for e in CATALOGUE.values())])
