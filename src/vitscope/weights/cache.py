"""Whether a model's weights are on this machine, told without a request and without its library."""

from collections.abc import Mapping
from typing import Literal

from vitscope.weights.catalogue import CatalogueEntry
from vitscope.weights.embedded_file import EMBEDDED_NAME, embedded_available
from vitscope.weights.hub import is_cached

WeightsState = Literal["cached", "embedded", "not cached", "by hand"]

_FILES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "transformers": (("config.json",), ("model*.safetensors", "pytorch_model*.bin")),
    "timm": ((), ("model.safetensors",)),
    "open_clip": ((), ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
}
"""Per library, the file it needs beside the weights and the weights' names, as its adapter asks."""


def find_weights(entry: CatalogueEntry) -> WeightsState:
    """Where a model's weights would come from, were it loaded now."""
    if entry.checkpoint:
        return "by hand"
    if is_cached(entry.repository, *_FILES[entry.library]):
        return "cached"
    if entry.name == EMBEDDED_NAME and embedded_available():
        return "embedded"
    return "not cached"
