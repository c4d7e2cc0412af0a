"""Model ids: which library one names, and whether a model can have it; imports no library."""

import os
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
    "torchhub:dinov2_vitl14_tt_reg": ("dinov2-large", "published=true,compat=released"),
    "amildravid4292/clip-vitb16-test-time-registers": (
        "openclip-b16",
        "depth=12,threshold=30,highest=5,compat=released",
    ),
    "amildravid4292/clip-vitl14-test-time-registers": ("openclip-l14", "compat=released"),
}
"""Published models that are code around others: which of these to take, and with which settings of
the remedy."""


class OwnLibrary(NamedTuple):
    """The adapter of a library."""

    home: str  # its module; its functions are called after it
    has_prefix: bool = True  # whether ids start with the library's name and a colon
    takes_file: bool = False  # whether a file of weights may follow the name after an @
    wraps: bool = True  # whether it adapts modules, not only what it has loaded itself
    # classes of published code that is no package: copies of it keep their names
    classes: tuple[str, ...] = ()

    def find(self, function: str) -> Any:
        """The module's function, such as "load_{}"; the library is imported now."""
        module = import_module(f"vitscope.adapters.{self.home}")
        return getattr(module, function.format(self.home))


LIBRARIES: Mapping[str, OwnLibrary] = {
    "transformers": OwnLibrary("transformers", has_prefix=False),
    "open_clip": OwnLibrary("open_clip"),
    "ph-reg": OwnLibrary("ph_reg", takes_file=True, classes=("RegDINOv2Base", "StudentCLIP")),
    "scenes": OwnLibrary("scenes", wraps=False),
    "timm": OwnLibrary("timm", takes_file=True),
    "torchhub": OwnLibrary("torch_hub", takes_file=True, classes=("DinoVisionTransformer",)),
    "torchvision": OwnLibrary("torchvision", has_prefix=False),
}


class Address(NamedTuple):
    """What a model id names."""

    library: str  # its prefix; empty for transformers, timm/NAME and what is no address
    name: str
    checkpoint: Path | None = None  # the file of its weights, where one is given


def parse_id(model_id: str) -> Address:
    """Tell which library an id names, and which model of it."""
    library, _, name = model_id.partition(":")
    own = LIBRARIES.get(library)
    if not name or not (own.has_prefix if own else find_plugin(GROUP, library)):
        return Address("", model_id)
    if own is None or not own.takes_file:
        return Address(library, name)
    name, _, file = name.partition("@")
    # Path.expanduser raises for an unknown user.
    return Address(library, name, Path(os.path.expanduser(file)) if file else None)  # noqa: PTH111


def check_model_id(model_id: str) -> None:
    """Raise an error for an unknown id, without importing a library or using the network."""
    entry = CATALOGUE.get(model_id)
    if entry is not None and entry.checkpoint:
        raise UsageError(
            f"{model_id} cannot be downloaded by name: get {entry.checkpoint} and give "
            f"{entry.id}, with the file's path after the @"
        )
    if model_id in _TEST_TIME_REGISTERS:
        name, settings = _TEST_TIME_REGISTERS[model_id]
        raise UnsupportedModelError(
            f"{model_id} is code around a known model, which vitscope does not execute: take "
            f"{name} with the remedy test-time-registers:{settings}"
        )
    if entry is not None or parse_id(model_id).library or find_folder(model_id) is not None:
        return
    if Path(model_id).suffix in _WEIGHT_SUFFIXES:
        raise UsageError(
            f"{model_id} is a file of weights without an architecture: give "
            f"both, as in timm:ARCHITECTURE@{model_id}"
        )
    if _REPOSITORY.fullmatch(model_id) is None:
        raise UnknownModelError(
            f"unknown model {model_id!r}: expected a name from the catalogue, a local folder, "
            "organisation/name on Hugging Face, timm:NAME or torchhub:NAME (with @CHECKPOINT for a "
            f"file of weights), or open_clip:ARCHITECTURE/TAG{describe_near(model_id)}"
        )


def check_weights(model_id: str) -> None:
    """Raise an error for weights that can be neither read nor fetched; loads none, nor torch."""
    library, _, checkpoint = parse_id(model_id)
    if checkpoint is not None and not checkpoint.is_file():
        raise UsageError(
            f"{checkpoint} is not a file: give the path of a checkpoint (.pth, .safetensors)"
        )
    if has_weights(model_id):
        return
    from vitscope.weights.hub import check_reachable  # here, because importing it is slow

    entry = CATALOGUE.get(model_id)
    if entry is not None:
        check_reachable(entry.repository, entry.library)
    elif not library:
        check_reachable(model_id, "timm" if model_id.startswith("timm/") else "transformers")


def has_weights(model_id: str) -> bool:
    """Whether the weights are known to be on this machine."""
    entry = CATALOGUE.get(model_id)
    if entry is not None:
        from vitscope.weights.hub import find_weights  # here, because importing it is slow

        return find_weights(entry) != "not cached"
    return parse_id(model_id).checkpoint is not None or find_folder(model_id) is not None


def describe_near(model_id: str) -> str:
    """Words on models with nearly this id."""
    return describe_near_matches(model_id, [*CATALOGUE, *(e.id for e in CATALOGUE.values())])
