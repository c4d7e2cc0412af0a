"""Two features that depend on each other in part, and their CKA as an audit has it."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from vitscope.metrics.feature_plan import FeaturePlan
from vitscope.metrics.feature_sums import CkaEstimate, FeatureSums
from vitscope.metrics.jackknife import NUM_BLOCKS
from vitscope.metrics.sums import Batch

_PLAN = FeaturePlan(
    kept=("x", "y"),
    sums={"x": ("x",), "y": ("y",)},
    comparisons={"features": {"y": ("x", "y")}},
    shares={},
    gram={},
)
_BATCH = 32


def make_batches(count: int, width: int, *, offset: float = 2.0) -> Iterator[tuple[Tensor, Tensor]]:
    """Random x and y in float32, batch by batch: half what the two share, half their own.

    `offset` is the size of what is the same for every image; their own spread is about 1.
    """
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(2, 16, width, generator=generator) / 4
    constant = offset * torch.randn(2, width, generator=generator)
    for start in range(0, count, _BATCH):
        size = min(_BATCH, count - start)
        shared = torch.randn(size, 16, generator=generator)
        own = torch.randn(2, size, width, generator=generator)
        x, y = (shared @ mix + own) / 2**0.5 + constant[:, None]
        yield x, y


def stream_cka(batches: Iterable[tuple[Tensor, Tensor]]) -> CkaEstimate:
    """CKA with its interval, as the audit estimates it: sums, no matrix over images."""
    sums = FeatureSums(_PLAN)
    for x, y in batches:
        start = sums.num_images
        blocks = [(start + i) % NUM_BLOCKS for i in range(len(x))]
        sums.update(Batch({"x": x, "y": y}, blocks))
    return sums.estimate_cka("features", "y")
