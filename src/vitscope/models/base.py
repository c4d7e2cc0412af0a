"""The adapter: how any library's ViT hands over one attention row while it runs its own forward.

Requirements met here:

- The model runs unchanged, with its own kernels; nothing of size tokens x tokens is made.
- Queries, keys and values are the module's own tensors wherever they pass through a module.
- Everything a trace holds for the proof (t, r, the block's output) is read off the model.
- Hooks are gone when the forward is over, whatever happened in it.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitscope.errors import UsageError
from vitscope.layout import TokenLayout
from vitscope.preprocessing import Preprocessing
from vitscope.trace import AttentionTail, ClsTrace

Pixels = Float[Tensor, "batch channel height width"]


class Heads(NamedTuple):
    """One query row and the keys and values of all tokens, split into heads.

    Norms and rotary positions are applied.
    """

    query: Float[Tensor, "batch head head_dim"]
    keys: Float[Tensor, "batch head token head_dim"]
    values: Float[Tensor, "batch head token head_dim"]


@dataclass(eq=False)
class AttentionCall:
    """What passed through one attention module in one forward.

    Attributes:
        args: Positional arguments of the attention module.
        kwargs: Its keyword arguments.
        taps: Outputs of the modules that `BlockParts.taps` names.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    taps: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockParts:
    """One block taken apart: where its tensors are found, and its second half as a function.

    Attributes:
        block: The block; its first argument is the residual stream, its output the next one.
        attention: The attention module; its arguments are recorded.
        taps: Modules whose outputs `make_heads` needs, by name.
        make_heads: From the recorded call and the query's position to queries, keys and values,
            exactly as the module makes them.
        scale: Factor on the query-key products.
        tail: W_O, b_O and γ.
        branch: Module whose output is the attention branch (the first element, of a tuple).
        branch_scale: γ where `branch` comes before it (layer scale kept as a bare parameter).
        mlp_norm: Module whose input is the residual stream after the attention branch.
        finish: The block's MLP half on rows of that stream.
    """

    block: nn.Module
    attention: nn.Module
    taps: Mapping[str, nn.Module]
    make_heads: Callable[[AttentionCall, int], Heads]
    scale: float
    tail: AttentionTail
    branch: nn.Module
    branch_scale: Float[Tensor, " dim"] | None = None
    mlp_norm: nn.Module
    finish: Callable[[Float[Tensor, "batch dim"]], Float[Tensor, "batch dim"]]


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a result says about the model it came from.

    Attributes:
        id: The id it was loaded by, or the class name of a wrapped module.
        family: Library and architecture, such as "transformers/dinov2".
        num_params: Parameters of the vision tower.
        depth: Number of blocks.
        embed_dim: Width of the residual stream.
        num_heads: Attention heads of the analysed block.
        patch_size: Patch (height, width) in pixels.
        num_registers: Register tokens.
        global_feature: "cls" or "attention pooling".
        source: Where the weights came from.
        notes: What a reader of the numbers should know about this model.
    """

    id: str
    family: str
    num_params: int
    depth: int
    embed_dim: int
    num_heads: int
    patch_size: tuple[int, int]
    num_registers: int
    global_feature: str = "cls"
    source: str = "given by the caller"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class ViTAdapter:
    """Any library's Vision Transformer behind one face.

    Attributes:
        module: The vision tower, in evaluation mode.
        info: What it is.
        preprocessing: How it wants its pictures.
        blocks: The analysable blocks by layer index: every block of a model with a [CLS] token,
            the pooling head alone (index = depth) of one with attention pooling.
        make_layout: From input height and width in pixels to the token layout.
        run: The model's own forward, from pixels to the global feature it hands its users.
        embed_row: Final norm and projection on rows of the last block's output.
    """

    module: nn.Module
    info: ModelInfo
    preprocessing: Preprocessing
    blocks: Mapping[int, BlockParts]
    make_layout: Callable[[int, int], TokenLayout]
    run: Callable[[Pixels], Float[Tensor, "batch out"]]
    embed_row: Callable[[Float[Tensor, "batch dim"]], Float[Tensor, "batch out"]]

    @property
    def last_layer(self) -> int:
        """Index of the layer that the global feature comes out of."""
        return max(self.blocks)

    @property
    def parameter(self) -> Tensor:
        """A floating-point parameter; its device and dtype stand for the model's."""
        return next(p for p in self.module.parameters() if p.is_floating_point())

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "ViTAdapter":
        """Move the model, in place and for good.

        Args:
            device: Where to run.
            dtype: Precision to run in; weights are cast.

        Returns:
            This adapter.
        """
        self.module.to(device=device, dtype=dtype)
        return self

    @contextmanager
    def placed(self, device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
        """Run the model on a device and in a precision, and leave it as it was found.

        Args:
            device: Where to run.
            dtype: Precision to run in; weights are cast.

        Yields:
            Nothing; the model is back where it was, with its own weights, when the context ends.
        """
        parameters = [(p, p.data, p.grad) for p in self.module.parameters()]
        buffers = [(m, name, b) for m in self.module.modules() for name, b in m._buffers.items()]
        try:
            for parameter, _, _ in parameters:
                parameter.grad = None  # it would be cast and moved too
            self.module.to(device=device, dtype=dtype)
            yield
        finally:
            for parameter, data, gradient in parameters:
                parameter.data, parameter.grad = data, gradient
            for module, name, buffer in buffers:
                module._buffers[name] = buffer

    def named(self, model_id: str, source: str) -> "ViTAdapter":
        """The same model under another id.

        Args:
            model_id: The id a result shall carry.
            source: Where the weights came from.

        Returns:
            A copy that shares the module.
        """
        return replace(self, info=replace(self.info, id=model_id, source=source))

    def select_layers(self, layers: Literal["last", "all"] | Collection[int]) -> tuple[int, ...]:
        """Turn a choice of layers into indices.

        Args:
            layers: "last", "all", or a collection of indices.

        Returns:
            Sorted indices; the last layer is always among them, for the headline comes from it.

        Raises:
            UsageError: If an index is not a layer with an analysable row.
        """
        if layers == "last":
            return (self.last_layer,)
        chosen = set(self.blocks) if layers == "all" else {int(layer) for layer in layers}
        if unknown := sorted(chosen - set(self.blocks)):
            raise UsageError(
                f"layer {unknown[0]} of {self.info.id} has no row to analyse: choose from "
                f"{min(self.blocks)} to {max(self.blocks)} ({self.info.global_feature})"
            )
        return tuple(sorted(chosen | {self.last_layer}))

    def trace(
        self,
        pixels: Pixels,
        layers: Collection[int],
        on_trace: Callable[[ClsTrace], None],
    ) -> Float[Tensor, "batch out"]:
        """Run the model on a batch and hand over the row of each chosen layer as it is passed.

        Args:
            pixels: Preprocessed images, on the model's device.
            layers: Indices into `blocks`.
            on_trace: Called once per layer while the forward goes on, so that one layer's values
                are alive at a time.

        Returns:
            The model's own global feature.
        """
        layout = self.make_layout(pixels.shape[-2], pixels.shape[-1])
        with torch.inference_mode(), ExitStack() as stack:
            for layer in layers:
                recorder = _BlockRecorder(layer, self.blocks[layer], layout, on_trace)
                stack.enter_context(recorder.attached())
            return self.run(pixels.to(self.parameter.dtype))

    def finish_block(
        self, layer: int, rows: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch dim"]:
        """A block's MLP half on rows of the residual stream, in the model's own precision.

        Args:
            layer: Index of the block.
            rows: Residual stream after the attention branch.

        Returns:
            The block's output, where and in the precision that `rows` are.
        """
        with torch.inference_mode():
            return self.blocks[layer].finish(rows.to(self.parameter)).to(rows)

    def embed(self, rows: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch out"]:
        """Final norm and projection of rows of the last block's output.

        Args:
            rows: The last block's output on the row.

        Returns:
            The global feature, where and in the precision that `rows` are.
        """
        with torch.inference_mode():
            return self.embed_row(rows.to(self.parameter)).to(rows)

    def find_non_finite(self, pixels: Pixels) -> tuple[int, int] | None:
        """Where NaN or infinity first enters the analysed row.

        Args:
            pixels: The batch in which it was noticed.

        Returns:
            (layer, image within the batch) of the first layer whose output row is not finite,
            or None where every layer's is.
        """
        found: list[tuple[int, int]] = []

        def look(trace: ClsTrace) -> None:
            bad = ~trace.output.isfinite().all(dim=-1)
            if bad.any() and not found:
                found.append((trace.layer, int(bad.nonzero()[0, 0])))

        self.trace(pixels, sorted(self.blocks), look)
        return found[0] if found else None


class _BlockRecorder:
    """Collects one block's tensors during one forward; emits the trace when the block is done."""

    def __init__(
        self,
        layer: int,
        parts: BlockParts,
        layout: TokenLayout,
        on_trace: Callable[[ClsTrace], None],
    ) -> None:
        self._layer = layer
        self._parts = parts
        self._layout = layout
        self._on_trace = on_trace
        self._row = 0 if layout.query is None else layout.query
        self._call = AttentionCall()
        self._rows: dict[str, Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        parts = self._parts
        handles: list[RemovableHandle] = [
            parts.block.register_forward_pre_hook(self._enter_block, with_kwargs=True),
            parts.attention.register_forward_pre_hook(self._enter_attention, with_kwargs=True),
            parts.branch.register_forward_hook(self._keep_branch),
            parts.mlp_norm.register_forward_pre_hook(self._keep_residual),
            parts.block.register_forward_hook(self._leave_block),
        ]
        handles += [
            module.register_forward_hook(self._make_tap(name))
            for name, module in parts.taps.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter_block(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = args[0] if args else next(iter(kwargs.values()))
        if self._layout.query is not None:
            # A clone: a block may add to its input in place.
            self._rows["skip"] = _take_row(stream, self._row).clone()

    def _enter_attention(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._call.args, self._call.kwargs = args, kwargs

    def _make_tap(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            self._call.taps[name] = output

        return keep

    def _keep_branch(self, _: nn.Module, __: Any, output: Any) -> None:
        branch = _take_row(output, self._row)
        scale = self._parts.branch_scale
        self._rows["branch"] = branch.clone() if scale is None else branch * scale

    def _keep_residual(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self._rows["residual"] = _take_row(args[0], self._row).clone()

    def _leave_block(self, _: nn.Module, __: Any, output: Any) -> None:
        query, keys, values = self._parts.make_heads(self._call, self._row)
        self._layout.check_num_tokens(keys.shape[2])
        dtype = torch.float64 if keys.dtype == torch.float64 else torch.float32
        products = keys.to(dtype) @ query.to(dtype).unsqueeze(-1)
        trace = ClsTrace(
            layer=self._layer,
            layout=self._layout,
            logits=products.squeeze(-1) * self._parts.scale,
            values=values,
            skip=self._rows.get("skip"),
            tail=self._parts.tail,
            branch=self._rows["branch"],
            residual=self._rows["residual"],
            output=_take_row(output, self._row).clone(),
        )
        self._call, self._rows = AttentionCall(), {}
        self._on_trace(trace)


def _take_row(value: Any, row: int) -> Tensor:
    # Some blocks hand their stream over in a tuple, DINOv3's in a list of one.
    stream: Tensor = value[0] if isinstance(value, tuple | list) else value
    return stream if stream.ndim == 2 else stream[:, row]


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a module.

    Args:
        module: Any module.

    Returns:
        The sum of the sizes of its parameters.
    """
    return sum(parameter.numel() for parameter in module.parameters())


def hash_weights(module: nn.Module) -> str:
    """Digest of a model's weights: of names, precisions, shapes and bytes.

    Args:
        module: Any module.

    Returns:
        BLAKE2b, 128 bits, hexadecimal.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
