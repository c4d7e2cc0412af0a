"""Whether memory can hold what a model makes of an image, told before it is tried.

A system that is short of memory ends the process without a word: what cannot fit is refused first.
"""

import os
from pathlib import Path

import torch

from vitscope.errors import MemoryShortageError
from vitscope.models.base import ViTAdapter

_FLOAT_BYTES = 4
_PIXEL_COPIES = 2  # an image's pixels are there twice, alone and in the batch

_WIDTHS_PER_TOKEN = 8
"""What a block holds of each token at once, in widths of the residual stream: the stream, its norm
and the hidden layer of the MLP before and after its activation. No less in any model."""

_MEMORY_INFO = Path("/proc/meminfo")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Of a container; Linux writes "max" where there is none."""


def check_memory(
    vit: ViTAdapter,
    size: tuple[int, int],
    device: torch.device,
    *,
    decoded: int = 0,
    passed: int = 1,
) -> None:
    """Refuse an input that memory cannot hold."""
    needed = decoded * _PIXEL_COPIES * 3 * size[0] * size[1] * _FLOAT_BYTES
    if device.type == "cpu":
        needed += passed * _count_token_bytes(vit, vit.make_layout(*size).num_tokens)
    available = find_available_memory()
    if available is not None and needed > available:
        count = max(decoded, passed)
        images, smaller = (
            ("1 image", "input size")
            if count == 1
            else (f"{count} images", "batch size or input size")
        )
        raise MemoryShortageError(
            f"{images} of {size[0]} x {size[1]} px would take {needed / 1e9:.1f} GB of memory or "
            f"more, of which {available / 1e9:.1f} GB are free: use a smaller {smaller}"
        )


def find_available_memory() -> int | None:
    """Memory that a process can still be given."""
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


def _count_token_bytes(vit: ViTAdapter, tokens: int) -> int:
    kept = _WIDTHS_PER_TOKEN * tokens * vit.info.embed_dim
    if _keeps_attention(vit.module):
        kept += tokens * tokens * vit.info.num_heads
    return kept * _FLOAT_BYTES


def _keeps_attention(module: torch.nn.Module) -> bool:
    # Kernels that are not fused hold the weights of all tokens on all tokens.
    return any(
        getattr(part, "fused_attn", True) is False
        or getattr(getattr(part, "config", None), "_attn_implementation", None) == "eager"
        for part in module.modules()
    )
