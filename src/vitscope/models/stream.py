"""Recording of the [CLS] row and patch norms at every depth during the model's own forward."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitscope.layout import TokenLayout
from vitscope.models.running import Hooks
from vitscope.trace import StreamTrace, TokenStates

HIGHEST_PATCH = "highest_patch"


def take_stream(value: Any) -> Tensor:
    """The residual stream in the input or output of a block."""
    stream: Tensor = value[0] if isinstance(value, tuple | list) else value
    return stream


def take_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first argument of a module, positional or by name."""
    return args[0] if args else next(iter(kwargs.values()))


def replace_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], stream: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A block's arguments with another residual stream."""
    given = take_input(args, kwargs)
    # DINOv3 of torch.hub hands a list of streams from block to block.
    first = type(given)((stream, *given[1:])) if isinstance(given, tuple | list) else stream
    if args:
        return (first, *args[1:]), kwargs
    return (), kwargs | {next(iter(kwargs)): first}


def replace_output(output: Any, stream: Tensor) -> Any:
    """A block's output with another residual stream."""
    if isinstance(output, tuple | list):
        return type(output)((stream, *output[1:]))
    return stream


def compute_norms(tokens: Tensor) -> Tensor:
    """Norm of each token, in at least float32."""
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(tokens, dim=-1, dtype=dtype)
    return norms


class StreamRecorder:
    """Records rows and norms at every depth during one forward."""

    def __init__(self, blocks: Sequence[nn.Module], layout: TokenLayout) -> None:
        self._blocks = blocks
        self._layout = layout
        self.num_passed = 0
        self._rows: Tensor | None = None
        self._patch_norms: Tensor | None = None

    def attach(self, hooks: Hooks) -> None:
        """Hook into the blocks."""
        for block in self._blocks:
            hooks.before(block, lambda _, args, kwargs: self._keep(take_input(args, kwargs)))
        hooks.after(self._blocks[-1], lambda _, __, output: self._keep(output))

    def finish(self) -> StreamTrace:
        """Return the recorded stream after the forward."""
        assert self._patch_norms is not None
        return StreamTrace(rows=self._rows, patch_norms=self._patch_norms)

    def _keep(self, value: object) -> None:
        depth, self.num_passed = self.num_passed, self.num_passed + 1
        if depth > len(self._blocks):
            return
        stream = take_stream(value)
        if self._patch_norms is None:
            self._rows, self._patch_norms = self._allocate(stream)
        if self._rows is not None:
            self._rows[:, depth] = stream[:, self._layout.query]
        self._patch_norms[:, depth] = compute_norms(self._layout.take_patches(stream))

    def _allocate(self, stream: Float[Tensor, "batch token dim"]) -> tuple[Tensor | None, Tensor]:
        batch, _, dim = stream.shape
        depths, patches = len(self._blocks) + 1, len(self._layout.groups["patches"])
        dtype = torch.promote_types(stream.dtype, torch.float32)
        make = partial(stream.new_full, fill_value=math.nan, dtype=dtype)
        rows = None if self._layout.query is None else make((batch, depths, dim))
        return rows, make((batch, depths, patches))


def name_tokens(layout: TokenLayout) -> tuple[str, ...]:
    """Names of the tokens whose states are recorded."""
    groups = ((group, range(len(at))) for group, at in layout.groups.items() if group != "patches")
    named = (f"register_{i}" if group == "registers" else group for group, at in groups for i in at)
    return (*named, HIGHEST_PATCH)


class TokenPicker:
    """Records the states of the special tokens of one block."""

    def __init__(self, layout: TokenLayout) -> None:
        self._layout = layout
        self._fixed = [i for g, p in layout.groups.items() if g != "patches" for i in p]
        self._states: dict[str, Tensor] = {}

    def pick(self, stream: Float[Tensor, "batch token dim"]) -> None:
        """Choose the tokens by the block's input stream."""
        norms = compute_norms(stream)
        patches = self._layout.groups["patches"]
        of_patches = norms[:, patches.start : patches.stop]
        highest = of_patches.argmax(dim=1, keepdim=True) + patches.start
        fixed = torch.tensor(self._fixed, device=stream.device).expand(len(stream), -1)
        self._positions = torch.cat([fixed, highest], dim=1)
        self._norms = norms.gather(1, self._positions)
        self._mean_patch_norm = of_patches.mean(dim=1)
        self._states = {"hidden": self._take(stream)}

    def keep(
        self,
        name: str,
        tokens: Float[Tensor, "batch token dim"] | Float[Tensor, "batch head token head_dim"],
    ) -> None:
        """Record the vectors of the chosen tokens."""
        self._states[name] = self._take(tokens)

    def finish(self) -> TokenStates:
        """Return the recorded states when the block is done."""
        states, self._states = self._states, {}
        return TokenStates(
            names=name_tokens(self._layout),
            norms=self._norms.cpu(),
            mean_patch_norm=self._mean_patch_norm.cpu(),
            states={name: rows.to(self._norms.dtype).cpu() for name, rows in states.items()},
        )

    def _take(self, tokens: Tensor) -> Tensor:
        images = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
        if tokens.ndim == 3:
            return tokens[images, self._positions]
        return tokens[images, :, self._positions].flatten(2)
