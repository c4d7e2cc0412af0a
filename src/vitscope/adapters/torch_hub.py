"""The torch.hub code of DINOv2 and DINOv3 (`DinoVisionTransformer`), recognised by its structure.

A fork of DINOv2 for test-time registers, with registers after the patches, can be wrapped too. Only
code of the two publishers is run, and only for the models listed here.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitscope.adapters.transformers_families import FAMILIES
from vitscope.errors import UnknownModelError, UnsupportedModelError, UsageError, VitscopeError
from vitscope.images.preprocessing import Preprocessing
from vitscope.models.base import ViTAdapter
from vitscope.models.blocks import AttentionCall, BlockParts, Heads
from vitscope.models.info import ModelInfo, count_parameters
from vitscope.models.parts import (
    check_parts,
    lay_out,
    make_prenorm_parts,
    multiply_fused,
    project_fused,
    require,
    require_class,
    rotate_patches,
    split_heads,
)
from vitscope.models.running import undisturbed
from vitscope.weights.catalogue import describe_near_matches
from vitscope.weights.checkpoints import load_weights, plain_faults_of, read_checkpoint

_DINOV2 = "facebookresearch/dinov2"
_DINOV3 = "facebookresearch/dinov3"
_REPOSITORIES = {
    **{f"dinov2_vit{size}14{reg}": _DINOV2 for size in "sblg" for reg in ("", "_reg")},
    **{f"dinov3_vit{s}": _DINOV3 for s in ("s16", "s16plus", "b16", "l16", "h16plus", "7b16")},
}

_BLOCKS = {"Block", "NestedTensorBlock", "SelfAttentionBlock"}
_ATTENTIONS = {"Attention", "MemEffAttention", "SelfAttention"}
_MLPS = {"Mlp", "SwiGLUFFN", "SwiGLUFFNFused", "SwiGLUFFNAligned"}
_BLOCK_PARTS = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
_ATTENTION_PARTS = {"qkv", "attn_drop", "proj", "proj_drop"}

_SATELLITE_MEAN, _SATELLITE_STD = (0.430, 0.411, 0.296), (0.213, 0.156, 0.143)
_SATELLITE_TAG = "sat493m"
"""Part of the names of DINOv3 checkpoints for satellite images, which use another mean and std."""


def make_torch_hub_adapter(
    module: nn.Module, *, preprocessing: Preprocessing | None = None, model_id: str | None = None
) -> ViTAdapter:
    """Adapt a model built by the code of facebookresearch/dinov2 or facebookresearch/dinov3."""
    name = model_id or type(module).__name__
    architecture = type(module).__name__
    require(architecture == "DinoVisionTransformer", name, f"the architecture {architecture}")
    tower: Any = module.eval()
    channels = tower.patch_embed.proj.weight.shape[1]
    require(channels == 3, name, f"images of {channels} channels (in_chans)")
    rotary = hasattr(tower, "rope_embed")
    registers = tower.n_storage_tokens if rotary else getattr(tower, "num_register_tokens", 0)
    patch_size: tuple[int, int] = tuple(tower.patch_embed.patch_size)
    blocks = {i: _make_block_parts(block, name) for i, block in enumerate(_list_blocks(tower))}
    _refuse_released_hooks(tower, name)
    order = {"cls": 1, "registers": registers, "patches": 0}
    if registers and not rotary:
        order = _find_order(tower, registers, name)
    customary = FAMILIES["dinov3_vit" if rotary else "dinov2"].preprocessing
    return ViTAdapter(
        module=module,
        info=ModelInfo(
            id=name,
            family="torch_hub/dinov3" if rotary else "torch_hub/dinov2",
            num_params=count_parameters(module),
            depth=len(blocks),
            embed_dim=tower.embed_dim,
            num_heads=tower.num_heads,
            patch_size=patch_size,
            num_registers=registers,
        ),
        # Same values as for these weights in transformers, applied as torchvision does.
        preprocessing=preprocessing or replace(customary, pipeline="torchvision"),
        blocks=blocks,
        make_layout=partial(lay_out, order, patch_size),
        run=tower,
        embed_row=partial(_embed_row, tower),
    )


def _refuse_released_hooks(tower: nn.Module, name: str) -> None:
    hooks = [hook for part in tower.modules() for hook in part._forward_hooks.values()]
    functions = {getattr(getattr(hook, "func", hook), "__name__", "") for hook in hooks}
    if "activate_on_registers" in functions:
        raise UnsupportedModelError(
            f"{name} has the published hooks of test-time registers (activate_on_registers), which "
            "edit the first image of a batch alone: take the model without them, such as "
            "dinov2-large, with the remedy test-time-registers:published=true,compat=released"
        )


def _find_order(tower: Any, registers: int, name: str) -> dict[str, int]:
    # Copies of the code put registers elsewhere. Patches are the tokens that depend on the image.
    height, width = tower.patch_embed.patch_size
    black = tower.patch_embed.proj.weight.new_zeros(1, 3, height, 2 * width)
    with undisturbed(tower), torch.no_grad():
        cls = (tower.cls_token + tower.pos_embed[:, :1])[0, 0]
        one, other = (tower.prepare_tokens_with_masks(pixels)[0] for pixels in (black, black + 1))
    patches = (one != other).any(dim=1).nonzero().flatten().tolist()
    orders = {
        1 + registers: {"cls": 1, "registers": registers, "patches": 0},
        1: {"cls": 1, "patches": 0, "registers": registers},
    }
    first, *others = patches or [0]
    known = first in orders and others == [first + 1] and len(one) == 3 + registers
    if not (known and torch.equal(one[0], cls)):
        raise UnsupportedModelError(
            f"{name} makes {len(one)} tokens of an image of two patches, these at {patches}: "
            f"expected [CLS], then {registers} registers before or after the patches"
        )
    return orders[first]


def load_torch_hub(name: str, checkpoint: Path | None = None) -> ViTAdapter:
    """Build a model with its publisher's code and load its weights."""
    if name not in _REPOSITORIES:
        near = describe_near_matches(name, _REPOSITORIES)
        raise UnknownModelError(
            f"torchhub:{name} is not a supported model: expected one of "
            f"{', '.join(_REPOSITORIES)}{near}"
        )
    model_id, repository = f"torchhub:{name}", _REPOSITORIES[name]
    if checkpoint is None:
        if repository == _DINOV3:
            raise UsageError(
                f"DINOv3's weights are handed out on request: download those of {name} from its "
                f"publisher and give the file, {model_id}@checkpoint.pth"
            )
        adapter = make_torch_hub_adapter(
            _build(repository, name, pretrained=True), model_id=model_id
        )
        return adapter.named(model_id, f"torch.hub, {repository}")
    read = read_checkpoint(checkpoint)
    module = _build(repository, name, pretrained=False)
    # A norm for local crops in training: some checkpoints have it, evaluation never uses it.
    load_weights(module, read.weights, checkpoint, optional=("local_cls_norm.",))
    adapter = make_torch_hub_adapter(module, model_id=f"{model_id}@{checkpoint}")
    preprocessing = adapter.preprocessing
    if _SATELLITE_TAG in checkpoint.name:
        preprocessing = replace(preprocessing, mean=_SATELLITE_MEAN, std=_SATELLITE_STD)
    info = adapter.info.noted(*read.notes, source=str(checkpoint))
    return replace(adapter, info=info, preprocessing=preprocessing)


def _build(repository: str, name: str, *, pretrained: bool) -> nn.Module:
    model_id = f"torchhub:{name}"
    advice = "connect to the network once, or take the same model from another library"
    instead = f"give a file of the weights alone, {model_id}@checkpoint.pth"
    with plain_faults_of(model_id, advice, instead=instead), _tamed():
        try:
            load: Callable[..., nn.Module] = torch.hub.load
            # The ref is the repository's own default branch, so it cannot point to a fork.
            return load(
                repository,
                name,
                trust_repo=True,
                verbose=False,
                skip_validation=True,
                pretrained=pretrained,
            )
        except ModuleNotFoundError as error:
            raise VitscopeError(
                f"the code of {repository} needs the package {error.name}, which is not installed: "
                f"pip install {error.name}"
            ) from None


@contextmanager
def _tamed() -> Iterator[None]:
    """Make every `torch.load` refuse code, even if the publisher's code asks for it.

    torch.hub's messages are kept off standard output, and warnings about slower kernels silent.
    """
    # torch.hub unpickles downloaded weights by default. torch.load reads these variables at each
    # call: the first overrides its argument, and setting both is an error.
    wanted = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    before = {name: os.environ[name] for name in wanted if name in os.environ}
    os.environ.update(wanted)
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="xFormers is")
            yield
    finally:
        for name in wanted:
            del os.environ[name]
        os.environ.update(before)


def _list_blocks(tower: Any) -> list[Any]:
    # With chunked blocks, leading identities keep each block's index within the whole stack.
    chunks = [chunk if isinstance(chunk, nn.ModuleList) else [chunk] for chunk in tower.blocks]
    return [block for chunk in chunks for block in chunk if not isinstance(block, nn.Identity)]


def _make_block_parts(block: Any, model: str) -> BlockParts:
    for part, classes, parts in (
        (block, _BLOCKS, _BLOCK_PARTS),
        (block.attn, _ATTENTIONS, _ATTENTION_PARTS),
        (block.ls1, {"LayerScale", "Identity"}, {"gamma"}),
    ):
        kind = type(part).__name__
        require(kind in classes, model, f"a {kind} in its blocks")
        check_parts(part, model, (), optional=parts)
    require(type(block.mlp).__name__ in _MLPS, model, f"an MLP {type(block.mlp).__name__}")
    require_class(block.attn.proj, {nn.Linear}, model, "an attention projection")
    return make_prenorm_parts(
        block, taps={"qkv": block.attn.qkv}, make_heads=partial(_make_heads, block.attn)
    )


def _make_heads(attention: Any, call: AttentionCall, row: int) -> Heads:
    qkv = attention.qkv
    projected: Sequence[Tensor]
    if "qkv" in call.taps:
        queries, *others = call.taps["qkv"].chunk(3, dim=-1)
        projected = (queries[:, row : row + 1], *others)
    elif type(qkv).__name__ == "LinearKMaskedBias":
        # Without a bias there is no mask either.
        bias = None if qkv.bias is None else qkv.bias * qkv.bias_mask.to(qkv.bias.dtype)
        projected = multiply_fused(qkv.weight, bias, call.tokens, row)
    else:
        projected = project_fused(qkv, call.tokens, row)
    queries, keys, values = (split_heads(part, attention.num_heads) for part in projected)
    query = queries[:, :, 0]
    if (rope := call.kwargs.get("rope")) is not None:
        # [CLS] precedes the rotated patches: its query is only cast, as the rest are.
        sin, cos = rope
        query = query.to(sin.dtype).to(query.dtype)
        # As in DINOv3, in the precision of the sines.
        keys = rotate_patches(keys.to(sin.dtype), cos, sin).to(keys.dtype)
    return Heads(query, keys, values)


def _embed_row(tower: Any, rows: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch out"]:
    # DINOv3 may have a separate norm for [CLS].
    own = getattr(tower, "cls_norm", None)
    norm = tower.norm if own is None else own
    feature: Tensor = tower.head(norm(rows))
    return feature
