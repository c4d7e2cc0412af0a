"""What is chosen where a run is left to choose."""

from contextlib import nullcontext
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from vitscope.config import AuditConfig
from vitscope.errors import MemoryShortageError
from vitscope.models.base import ViTAdapter
from vitscope.runs.resources import choose_batch_size

MIB = 2**20
WEIGHTS, FIXED, EACH = 100 * MIB, 8 * MIB, 10 * MIB


def _choose(monkeypatch: pytest.MonkeyPatch, free: int) -> int:
    """On a GPU of a given free memory, of which a model takes so much a picture."""
    peak, zeros = 0, torch.zeros

    def trace(pixels: torch.Tensor, *_: Any) -> None:
        nonlocal peak
        needed = FIXED + EACH * len(pixels)
        if needed > free:
            raise torch.OutOfMemoryError("CUDA out of memory")
        peak = WEIGHTS + needed

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: WEIGHTS)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peak)
    monkeypatch.setattr(torch, "zeros", lambda *shape, **_: zeros(*shape))
    vit = MagicMock(spec=ViTAdapter)
    vit.placed.return_value = nullcontext()
    vit.trace = trace
    return choose_batch_size(vit, (8, 8), AuditConfig(batch_size="auto"), torch.device("cuda"))


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (1000 * MIB, 32),  # 0.6 of it are 60 pictures
        (100 * MIB, 4),  # the second probe fits just so: 6 pictures
        (90 * MIB, 2),  # it does not: 18 MiB is all that is known of one picture
        (20 * MIB, 1),
        (10**6 * MIB, 512),
    ],
)
def test_a_batch_takes_a_part_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, expected: int
) -> None:
    assert _choose(monkeypatch, free) == expected


def test_memory_too_short_for_one_picture_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MemoryShortageError, match="not enough memory on cuda for 1 picture at"):
        _choose(monkeypatch, 10 * MIB)
