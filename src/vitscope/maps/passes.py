"""Running a model's blocks on given tokens, with gradients where they are asked for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.maps.functions import CaughtFunctions
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.blocks import make_changed
from vitscope.models.running import HALF_PRECISIONS, Hooks, one_forward
from vitscope.models.stream import replace_input, take_input, take_stream

Tokens = Float[Tensor, "batch token dim"]
Kept = Int[Tensor, "batch kept"]
"""Patches that stay in the sequence, by their index among the patches."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass."""

    feature: Float[Tensor, "batch out"]  # the global feature
    # the residual stream at every depth: the input of every block, and the output of the last. At
    # depth 0 each patch holds its own pixels and position alone
    streams: tuple[Tokens, ...]
    # the tokens that the analysed attention reads, after the norm before it; None if no row is
    # analysed
    normed: Float[Tensor, "batch key dim"] | None

    def detach(self) -> "Pass":
        """The same numbers without their graph."""
        streams = tuple(stream.detach() for stream in self.streams)
        normed = None if self.normed is None else self.normed.detach()
        return Pass(self.feature.detach(), streams, normed)


def run_blocks(
    vit: ViTAdapter,
    pixels: Pixels,
    tokens: Tokens | None = None,
    *,
    kept: Kept | None = None,
    functions: CaughtFunctions | None = None,
    watch: Callable[["RunningPass"], None] | None = None,
) -> Pass:
    """Run the model on images, or on tokens that take the place of theirs at depth 0.

    With `kept`, only these patches (and all other tokens) stay in the sequence, each with its own
    position. With `functions`, the pass has gradients with respect to the tokens at every depth.
    `watch` may make more hooks.
    """
    if functions is not None and vit.dtype in HALF_PRECISIONS:
        raise UsageError(
            "the model runs in half precision, which rounds away the differences that gradients "
            "need: use float32"
        )
    if kept is not None:
        _check_row_edits(vit, pixels)
    running = RunningPass(vit, pixels, tokens, kept, functions)
    with gradients_set(vit, functions is not None), one_forward(), running:
        running.attach()
        if watch is not None:
            watch(running)
        running.enter_context(vit.autocast.applied(pixels.device))
        if functions is not None:
            running.enter_context(functions)
        feature = vit.run(pixels.to(vit.parameter.dtype))
    return running.finish(feature)


def _check_row_edits(vit: ViTAdapter, pixels: Pixels) -> None:
    # An edit of [CLS] knows its place, which is the same only before the patches.
    layout = vit.make_layout(*pixels.shape[-2:])
    is_first = layout.query is not None and layout.query < layout.groups["patches"].start
    if moved := [edit.words for edit in vit.edits if not (edit.is_of_row and is_first)]:
        raise UnsupportedModelError(
            f"{vit.info.id} is edited ({moved[-1]}) at places that are others once patches are "
            "dropped: use another removal than 'drop'"
        )


@contextmanager
def gradients_set(vit: ViTAdapter, enabled: bool) -> Iterator[None]:
    """Hold the model undisturbed, with or without gradients, which flow to tokens alone."""
    with vit.undisturbed(), torch.set_grad_enabled(enabled):
        weights = list(vit.module.parameters()) if enabled else []
        if any(weight.is_inference() for weight in weights):
            raise UsageError(
                f"the weights of {vit.info.id} were made in torch.inference_mode, which allows no "
                "gradients: load the model outside of it"
            )
        trained = [weight for weight in weights if weight.requires_grad]
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


@dataclass(eq=False)
class RunningPass(Hooks):
    """A forward that replaces the tokens at depth 0 and records the stream at every depth."""

    vit: ViTAdapter
    pixels: Pixels
    tokens: Tokens | None
    kept: Kept | None
    functions: CaughtFunctions | None
    block: int | None = None  # index of the block that is running; None outside the blocks
    streams: list[Tensor] = field(default_factory=list)  # the residual stream, so far
    normed: Tensor | None = None
    _num_left: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self._blocks = self.vit.encoder_blocks
        self._layout = self.vit.make_layout(self.pixels.shape[-2], self.pixels.shape[-1])

    def attach(self) -> None:
        """Hook into the blocks."""
        if self.vit.blocks:
            self.before(self.vit.blocks[self.vit.last_layer].attention, self._keep_normed)
        for index, block in enumerate(self._blocks):
            self.before(block, partial(self._enter, index))
            self.after(block, self._leave)
        for module in () if self.kept is None else self.vit.position_biases:
            self.after(module, self._keep_pairs)

    def finish(self, feature: Tensor) -> Pass:
        """What was recorded."""
        row_was_read = self.normed is not None or not self.vit.blocks
        if len(self.streams) != len(self._blocks) + 1 or not row_was_read:
            words = f"not all of the {len(self._blocks)} blocks of {self.vit.info.id}"
            raise make_changed(f"{words} were run once")
        return Pass(feature, tuple(self.streams), self.normed)

    def _enter(
        self, index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        stream = take_stream(take_input(args, kwargs))
        if index == 0:
            stream = self._start(stream)
        self._set_block(index)
        self.streams.append(stream)
        args, kwargs = replace_input(args, kwargs, stream)
        others = list(kwargs)[0 if args else 1 :]
        args = (*args[:1], *map(self._keep_positions, args[1:]))
        return args, kwargs | {name: self._keep_positions(kwargs[name]) for name in others}

    def _start(self, stream: Tokens) -> Float[Tensor, "batch left dim"]:
        tokens = (stream if self.tokens is None else self.tokens).detach()
        if self.kept is not None:
            left = self._choose_tokens(self.kept, stream.shape[1])
            tokens = tokens.gather(1, left.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        return tokens.requires_grad_(self.functions is not None)

    def _choose_tokens(self, kept: Kept, num_tokens: int) -> Int[Tensor, "batch left"]:
        patches = self._layout.find_patches(num_tokens)
        others = [i for i in range(num_tokens) if i not in patches]
        fixed = torch.tensor(others, dtype=torch.long, device=kept.device).expand(len(kept), -1)
        return torch.cat([fixed, kept + patches.start], dim=1).sort(dim=1).values

    def _keep_pairs(
        self, _: nn.Module, __: object, bias: Float[Tensor, "1 head token token"]
    ) -> Float[Tensor, "batch head left left"]:
        assert self.kept is not None
        left = self._choose_tokens(self.kept, bias.shape[-1])
        self._num_left = left.shape[1]
        return bias[0][:, left.unsqueeze(2), left.unsqueeze(1)].transpose(0, 1)

    def _keep_positions(self, value: Any) -> Any:
        # Rotary positions come as one row for each patch.
        if self.kept is None or not isinstance(value, Tensor | tuple | list):
            return value
        if isinstance(value, tuple | list):
            return type(value)(map(self._keep_positions, value))
        num_patches = len(self._layout.groups["patches"])
        if value.shape[-2:] == (self._num_left, self._num_left):  # of `_keep_pairs`
            return value
        if value.ndim > 3 or value.ndim < 2 or value.shape[-2] != num_patches:
            raise UnsupportedModelError(
                f"{self.vit.info.id} hands a tensor of shape {tuple(value.shape)} to its blocks, "
                "of which vitscope does not know what to leave out when tokens are dropped: use "
                "another removal than 'drop'"
            )
        per_head = value if value.ndim == 3 else value.unsqueeze(0)
        return per_head[:, self.kept].transpose(0, 1)

    def _leave(self, block: nn.Module, _: object, output: object) -> None:
        self._set_block(None)
        if block is self._blocks[-1]:
            self.streams.append(take_stream(output))

    def _set_block(self, index: int | None) -> None:
        self.block = index
        if self.functions is not None:
            self.functions.block = index

    def _keep_normed(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given: Sequence[Any] = [*args, *kwargs.values()]
        # A pooling head's first argument is its learned query; its keys are the tokens.
        query_is_probe = self._layout.query is None and len(given) > 1
        self.normed = given[1 if query_is_probe else 0]
