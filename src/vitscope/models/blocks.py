"""One block of any library's ViT: its parts, and how a trace is recorded from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitscope.errors import UnsupportedModelError
from vitscope.layout import TokenLayout
from vitscope.models.running import Hooks
from vitscope.models.stream import TokenPicker, take_input, take_stream
from vitscope.trace import AttentionTail, ClsTrace

if TYPE_CHECKING:
    from vitscope.models.base import ViTAdapter


class StopForward(Exception):  # noqa: N818 - it ends a forward as StopIteration ends a loop
    """Raised to stop the forward once the row is complete."""


class Heads(NamedTuple):
    """One query row, and the keys and values of all tokens, in heads, normed and rotated.

    `bias` is added to the scaled products of the row, as relative positions are.
    """

    query: Float[Tensor, "batch head head_dim"]
    keys: Float[Tensor, "batch head token head_dim"]
    values: Float[Tensor, "batch head token head_dim"]
    bias: Float[Tensor, "#batch head token"] | None = None


@dataclass(eq=False)
class AttentionCall:
    """Inputs and recorded tensors of one attention module in one forward."""

    args: tuple[Any, ...] = ()  # positional arguments of the attention module
    kwargs: dict[str, Any] = field(default_factory=dict)  # its keyword arguments
    # outputs of the modules in `BlockParts.taps`
    taps: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> Float[Tensor, "batch token dim"]:
        """The normed tokens: the first argument of the attention module."""
        tokens: Tensor = take_input(self.args, self.kwargs)
        return tokens


def return_rows(rows: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
    """Second half of a block that has none, to be pickled."""
    return rows


HeadsFunction = Callable[[AttentionCall, int], Heads]
"""From a recorded call and the query's position to the query, keys and values."""


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockParts:
    """The parts of one block."""

    # the block; its first argument is the residual stream, its output the next one
    block: nn.Module
    attention: nn.Module  # the attention module; its arguments are recorded
    # modules whose outputs `make_heads` needs, by name
    taps: Mapping[str, nn.Module] = field(default_factory=dict)
    # takes query, keys and values from the taps, exactly as the module computed them
    make_heads: HeadsFunction
    # computes the same from the attention's arguments, before it has run, for the one query row
    # only. None if that is not possible, as for a pooling head: the block then always runs in full
    project_heads: HeadsFunction | None = None
    scale: float  # factor on the query-key products
    tail: AttentionTail  # W_O, b_O and γ
    # module whose output is the attention branch (the first element if it is a tuple)
    branch: nn.Module
    # γ, if it is a bare parameter applied after `branch`
    branch_scale: Float[Tensor, " dim"] | None = None
    # the layer norm before the attention; None for a pooling head
    attention_norm: nn.Module | None = None
    # module whose input is the residual stream after the attention branch; None for a pooling head
    # whose output is that branch
    mlp_norm: nn.Module | None = None
    # what the attention branch is added to on the row, made of the row of the block's input; None
    # if it is that row itself. An edit that sets it changes the model's own row accordingly
    skip: Callable[[Float[Tensor, "batch dim"]], Float[Tensor, "batch dim"]] | None = None
    # the block's MLP half, applied to rows of that stream; by default there is none
    finish: Callable[[Float[Tensor, "batch dim"]], Float[Tensor, "batch dim"]] = return_rows


class BlockRecorder:
    """Records the tensors of one block during one forward and emits its trace.

    In the last block the row is computed from the attention's arguments, whether the block then
    runs or not. So no ledger depends on which batches are verified.
    """

    def __init__(
        self,
        vit: "ViTAdapter",
        layer: int,
        layout: TokenLayout,
        on_trace: Callable[[ClsTrace], None],
        *,
        leave: bool = False,
    ) -> None:
        """In the last block only the row is needed; with `leave` the forward then stops."""
        self.times_run = 0  # once per forward unless blocks were replaced after wrapping
        self._layer = layer
        self._parts = parts = vit.blocks[layer]
        self._layout = layout
        self._on_trace = on_trace
        self._project_heads = parts.project_heads if layer == vit.last_layer else None
        self._leave = leave
        self._autocast = vit.autocast
        self._heads: Heads | None = None
        self._row = 0 if layout.query is None else layout.query
        self._call = AttentionCall()
        self._rows: dict[str, Tensor] = {}
        self._picker = None if layout.query is None else TokenPicker(layout)

    def attach(self, hooks: Hooks) -> None:
        """Hook into the block."""
        parts = self._parts
        hooks.before(parts.block, self._enter_block)
        hooks.before(parts.attention, self._enter_attention)
        # An edited skip connection is put into the branch's output; t is what it was before.
        hooks.after(parts.branch, self._keep_branch, first=parts.skip is not None)
        hooks.after(parts.block, self._leave_block)
        if parts.mlp_norm is not None:
            hooks.before(parts.mlp_norm, self._keep_residual)
        if (picker := self._picker) is not None and parts.attention_norm is not None:
            hooks.after(parts.attention_norm, lambda _, __, output: picker.keep("normed", output))
        for name, module in parts.taps.items():
            hooks.after(module, partial(self._tap, name))

    def _enter_block(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = take_stream(take_input(args, kwargs))
        if torch.is_autocast_enabled(stream.device.type) and self._autocast.half is None:
            raise UnsupportedModelError(
                "the model's own forward switches autocast on, so it does not compute in the "
                "precision of its weights: take the wrapper off, or give dtype='bfloat16'"
            )
        if self._picker is not None:
            # Clone, because a block may add to its input in place.
            row = _take_row(stream, self._row).clone()
            skip = self._parts.skip
            # Clone, because it may be a view of a parameter, which keeps its gradient.
            self._rows["skip"] = row if skip is None else skip(row).clone()
            self._picker.pick(stream)

    def _enter_attention(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._call.args, self._call.kwargs = args, kwargs
        if self._project_heads is not None:
            self._heads = self._project_heads(self._call, self._row)
            if self._leave:
                self._emit(self._heads)
                raise StopForward

    def _tap(self, name: str, _: nn.Module, __: object, output: Tensor) -> None:
        self._call.taps[name] = output

    def _keep_branch(self, _: nn.Module, __: object, output: object) -> None:
        branch = _take_row(output, self._row)
        scale = self._parts.branch_scale
        self._rows["branch"] = branch.clone() if scale is None else branch * scale
        if self._parts.mlp_norm is None:
            self._rows["residual"] = self._rows["branch"]

    def _keep_residual(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._rows["residual"] = _take_row(take_input(args, kwargs), self._row).clone()

    def _leave_block(self, _: nn.Module, __: object, output: object) -> None:
        if {"branch", "residual"} - self._rows.keys() or self._parts.taps.keys() - self._call.taps:
            raise make_changed(f"parts of layer {self._layer} were not run")
        self._rows["output"] = _take_row(output, self._row).clone()
        self._emit(self._heads or self._parts.make_heads(self._call, self._row))

    def _emit(self, heads: Heads) -> None:
        self.times_run += 1
        # Autocast is for the model's own products, not for those computed from them.
        with torch.autocast(heads.keys.device.type, enabled=False):
            trace = self._make_trace(heads)
            self._call, self._rows, self._heads = AttentionCall(), {}, None
            self._on_trace(trace)

    def _make_trace(self, heads: Heads) -> ClsTrace:
        query, keys, values, bias = heads
        self._layout.check_num_tokens(keys.shape[2])
        dtype = torch.promote_types(keys.dtype, torch.float32)
        if self._picker is not None:
            self._picker.keep("keys", keys)
            self._picker.keep("values", values)
        # vecdot, because a matrix product would first copy each head's keys into contiguous memory.
        products = torch.linalg.vecdot(keys.to(dtype), query.to(dtype).unsqueeze(-2))
        logits = products * self._parts.scale
        return ClsTrace(
            layer=self._layer,
            layout=self._layout,
            logits=logits if bias is None else logits + bias,
            values=values,
            skip=self._rows.pop("skip", None),
            tail=self._parts.tail,
            tokens=None if self._picker is None else self._picker.finish(),
            **self._rows,
        )


def make_changed(what: str) -> UnsupportedModelError:
    """The error of a model that does not run as it was wrapped."""
    return UnsupportedModelError(
        f"{what}: modules were replaced or repeated after the model was wrapped; wrap it as it is "
        "now"
    )


def _take_row(value: object, row: int) -> Tensor:
    stream = take_stream(value)
    return stream if stream.ndim == 2 else stream[:, row]
