"""Where new tokens go, and what must know of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from vitscope.layout import GROUPS, TokenLayout
from vitscope.models.base import ViTAdapter

_PRENORMS = ("norm_pre", "ln_pre", "pre_layrnorm")
"""Norms before the first block, by the names of timm, open_clip and transformers."""


def lay_out_more(
    lay_out: Callable[[int, int], TokenLayout], count: int, height: int, width: int
) -> TokenLayout:
    """The layout of an input size, with new tokens after the registers or before the patches."""
    own = lay_out(height, width)
    at = own.groups["patches"].start  # rotary positions count from here
    registers = own.groups.get("registers", range(at, at))
    at = registers.stop
    groups = {
        name: range(p.start + count, p.stop + count) if p.start >= at else p
        for name, p in own.groups.items()
    }
    groups["registers"] = range(registers.start, at + count)
    query = own.query
    if query is not None and query >= at:
        query += count
    return replace(own, groups={k: groups[k] for k in GROUPS if k in groups}, query=query)


def find_prenorm(module: nn.Module) -> nn.Module | None:
    """CLIP's norm of the embeddings, which a zero vector would also have passed."""
    parts = module.named_modules()
    named = (part for name, part in parts if name.rpartition(".")[2] in _PRENORMS)
    return next((part for part in named if not isinstance(part, nn.Identity)), None)


@contextmanager
def prefix_raised(vit: ViTAdapter, count: int) -> Iterator[None]:
    """More tokens that are not rotated: timm's rotary attention rotates all after so many."""
    parts = [
        vars(part)
        for block in vit.encoder_blocks
        for part in block.modules()
        if "num_prefix_tokens" in vars(part)
    ]
    try:
        for own in parts:
            own["num_prefix_tokens"] += count
        yield
    finally:
        for own in parts:
            own["num_prefix_tokens"] -= count
