"""What is chosen where a run is left to choose."""

from contextlib import nullcontext
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from vitscope.config import AuditConfig
from vitscope.errors import MemoryShortageError
from vitscope.layout import TokenLayout
from vitscope.models.base import ViTAdapter
from vitscope.runs import resources
from vitscope.runs.resources import choose_batch_size, choose_pass_size, plain_memory_errors

MIB = 2**20
WEIGHTS, KEPT, FIXED, EACH = 100 * MIB, 30 * MIB, 8 * MIB, 10 * MIB


class _Card:
    """A GPU of a given free memory and a model that takes so much of it an image."""

    def __init__(self, free: int) -> None:
        self.free, self.allocated, self.peak, self.times_freed = free, WEIGHTS, 10**15, 0

    def trace(self, pixels: torch.Tensor, *_: Any) -> None:
        self.allocated = WEIGHTS + KEPT  # such as the workspaces of its libraries
        needed = FIXED + EACH * len(pixels)
        if KEPT + needed > self.free:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.peak = max(self.peak, self.allocated + needed)

    @property
    def left(self) -> int:
        return self.free - (self.allocated - WEIGHTS)

    def reset(self) -> None:
        self.peak = self.allocated

    def release(self) -> None:
        self.times_freed += 1


def _choose(monkeypatch: pytest.MonkeyPatch, card: _Card) -> int:
    zeros = torch.zeros
    monkeypatch.setattr(resources, "free_cached_memory", card.release)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (card.left, card.free))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: card.allocated)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: card.reset())
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: card.peak)
    monkeypatch.setattr(torch, "zeros", lambda *shape, **_: zeros(*shape))
    vit = MagicMock(spec=ViTAdapter)
    vit.placed.return_value = nullcontext()
    vit.trace = card.trace
    return choose_batch_size(vit, (8, 8), AuditConfig(batch_size="auto"), torch.device("cuda"))


@pytest.mark.parametrize(
    ("free", "expected", "times_freed"),
    [
        (1000 * MIB, 32, 1),  # 0.6 of what is left are 58 images
        (128 * MIB, 4, 1),  # the second probe fits just so: 5 images
        (127 * MIB, 2, 2),  # it does not: 18 MiB is all that is known of one image
        (110 * MIB, 2, 2),  # 0.6 of what is left is 48 MiB
        (85 * MIB, 1, 2),  # of what there was at first it would be 51 MiB and 2 images
        (10**6 * MIB, 512, 1),
    ],
)
def test_a_batch_takes_a_part_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, expected: int, times_freed: int
) -> None:
    card = _Card(free)
    assert _choose(monkeypatch, card) == expected
    assert card.times_freed == times_freed


def test_memory_too_short_for_one_image_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MemoryShortageError, match="1 image at a time: use a smaller input size"):
        _choose(monkeypatch, _Card(10 * MIB))


@pytest.mark.parametrize(
    ("num_tokens", "expected"), [(65, 32), (197, 8), (257, 8), (1370, 2), (1537, 1), (10_000, 1)]
)
def test_a_pass_on_a_cpu_is_what_its_caches_hold(num_tokens: int, expected: int) -> None:
    layout = MagicMock(spec=TokenLayout, num_tokens=num_tokens)
    vit = MagicMock(spec=ViTAdapter, make_layout=lambda *_: layout)
    assert choose_pass_size(vit, (8, 8), torch.device("cpu")) == expected
    assert choose_pass_size(vit, (8, 8), torch.device("cuda")) is None


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_what_is_short_of_memory_is_told_from_other_errors(error: Exception, short: bool) -> None:
    expected = MemoryShortageError if short else RuntimeError
    with pytest.raises(expected) as raised, plain_memory_errors(torch.device("cpu"), 3):
        raise error
    assert (raised.value is error) is not short
