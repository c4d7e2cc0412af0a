"""Check whether an input fits in memory, before the system kills the process without a message."""

import os
from pathlib import Path

import torch

from vitscope.errors import MemoryShortageError
from vitscope.models.base import ViTAdapter

_FLOAT_BYTES = 4
_PIXEL_COPIES = 2  # an image's pixels exist twice, alone and in the batch

_WIDTHS_PER_TOKEN = 8
"""Memory that a block holds per token, in widths of the residual stream: the stream, its norm and
the MLP's hidden layer before and after the activation. A lower bound for all models."""

CPU_TOKENS = 3072
"""Most tokens per pass on a CPU. With more, activations leave the caches and their memory is
returned to the system and requested again at every layer, and products in bfloat16 are a third
slower; with much fewer, products are too small. Measured with ViTs from S to L and inputs from 112
to 518 px (docs/benchmarks.md)."""

_MEMORY_INFO = Path("/proc/meminfo")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Memory limit of a container; Linux writes "max" if there is none."""


def check_memory(
    vit: ViTAdapter,
    size: tuple[int, int],
    device: torch.device,
    *,
    decoded: int = 0,  # images that are decoded at a time
    passed: int = 1,  # images that one block holds at a time
    kept: int = 0,  # images that all blocks hold at a time, for a backward pass
) -> None:
    """Raise an error for an input (height, width) that does not fit in memory."""
    needed = decoded * _PIXEL_COPIES * 3 * size[0] * size[1] * _FLOAT_BYTES
    if device.type == "cpu":
        tokens = vit.make_layout(*size).num_tokens
        numbers = _WIDTHS_PER_TOKEN * tokens * vit.info.embed_dim
        if _keeps_attention(vit.module):
            numbers += tokens * tokens * vit.info.num_heads
        needed += (passed + kept * len(vit.encoder_blocks)) * numbers * _FLOAT_BYTES
    available = find_available_memory()
    if available is not None and needed > available:
        count = max(decoded, passed, kept)
        images, smaller = "1 image", "input size"
        if count > 1:
            images, smaller = f"{count} images", "batch size or input size"
        raise MemoryShortageError(
            f"{images} of {size[0]} x {size[1]} px would take {needed / 1e9:.1f} GB of memory or "
            f"more, but only {available / 1e9:.1f} GB are free: use a smaller {smaller}"
        )


def find_available_memory() -> int | None:
    """Memory that is still available to the process, in bytes."""
    try:
        lines = (line.split() for line in _MEMORY_INFO.read_text().splitlines())
        entries = {name: int(kilobytes) for name, kilobytes, *_ in lines}
        available = 1024 * (entries["MemAvailable:"] + entries["SwapFree:"])
    except (OSError, LookupError, ValueError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return None
    try:
        return min(available, int(_MEMORY_LIMIT.read_text()))
    except (OSError, ValueError):
        return available


def _keeps_attention(module: torch.nn.Module) -> bool:
    # Unfused kernels store the attention weights between all pairs of tokens.
    return any(
        getattr(part, "fused_attn", True) is False
        or getattr(getattr(part, "config", None), "_attn_implementation", None) == "eager"
        for part in module.modules()
    )
