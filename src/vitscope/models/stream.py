"""The residual stream of a whole model, read at every depth while its own forward runs.

Requirements met here:

- Kept are one row and one norm per patch and depth; the stream itself is let go at once.
- Hooks are gone when the forward is over, whatever happened in it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitscope.layout import TokenLayout
from vitscope.trace import StreamTrace


def take_stream(value: Any) -> Tensor:
    """The residual stream that a block was given, or hands over.

    Args:
        value: A tensor, or a tuple or list that begins with it: some blocks hand their stream over
            in a tuple, DINOv3's in a list of one.

    Returns:
        The tensor.
    """
    stream: Tensor = value[0] if isinstance(value, tuple | list) else value
    return stream


def take_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a module was called with first, by position or by name.

    Args:
        args: Its positional arguments.
        kwargs: Its keyword arguments, in the order of the call.

    Returns:
        The first of them.
    """
    return args[0] if args else next(iter(kwargs.values()))


def compute_norms(tokens: Tensor) -> Tensor:
    """Norm of each token, in float32 or better.

    Args:
        tokens: Vectors in the last axis.

    Returns:
        ‖x‖₂ of each.
    """
    dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    norms: Tensor = torch.linalg.vector_norm(tokens, dim=-1, dtype=dtype)
    return norms


class StreamRecorder:
    """Collects rows and norms at every depth during one forward."""

    def __init__(self, blocks: Sequence[nn.Module], layout: TokenLayout) -> None:
        """Prepare to record.

        Args:
            blocks: All blocks, in order.
            layout: Which token is what, for the input that is to come.
        """
        self._blocks = blocks
        self._layout = layout
        self._rows: list[Tensor] = []
        self._patch_norms: list[Tensor] = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Listen to the blocks for as long as the context lasts.

        Yields:
            Nothing; the hooks are removed when the context ends.
        """
        handles: list[RemovableHandle] = [
            block.register_forward_pre_hook(self._enter_block, with_kwargs=True)
            for block in self._blocks
        ]
        handles.append(self._blocks[-1].register_forward_hook(self._leave_last))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def finish(self) -> StreamTrace:
        """What was recorded, when the forward is over.

        Returns:
            The trace; without the last depth, where the forward was left before it.
        """
        return StreamTrace(
            rows=torch.stack(self._rows, dim=1) if self._rows else None,
            patch_norms=torch.stack(self._patch_norms, dim=1),
        )

    def _enter_block(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keep(take_input(args, kwargs))

    def _leave_last(self, _: nn.Module, __: Any, output: Any) -> None:
        self._keep(output)

    def _keep(self, value: Any) -> None:
        stream = take_stream(value)
        if self._layout.query is not None:
            # A clone: a block may add to its input in place.
            self._rows.append(stream[:, self._layout.query].clone())
        # A pooling head's layout may leave out tokens that come before those it pools over.
        patches = self._layout.groups["patches"]
        left_out = stream.shape[1] - self._layout.num_tokens
        self._patch_norms.append(
            compute_norms(stream[:, left_out + patches.start : left_out + patches.stop])
        )
