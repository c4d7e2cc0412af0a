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


def make_batches(
    count: int, width: int, *, batch_size: int = 32, offset: float = 2.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random features, batch by batch.

    Args:
        count: Images.
        width: Dimensions of both.
        batch_size: Images a batch.
        offset: Size of what is the same for every image, per dimension, where the images'
            own part has a standard deviation of about 1.

    Yields:
        x and y in float32: each half what the two share (16 directions), half its own.
    """
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(2, 16, width, generator=generator) / 4
    constant = offset * torch.randn(2, width, generator=generator)
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        shared = torch.randn(size, 16, generator=generator)
        own = torch.randn(2, size, width, generator=generator)
        x, y = (shared @ mix + own) / 2**0.5 + constant[:, None]
        yield x, y


def stream_cka(batches: Iterable[tuple[Tensor, Tensor]]) -> CkaEstimate:
    """CKA with its interval, as the audit estimates it: sums, no matrix over images.

    Args:
        batches: The features.

    Returns:
        Both estimates.
    """
    sums = FeatureSums(_PLAN)
    for x, y in batches:
        start = sums.num_images
        blocks = [(start + i) % NUM_BLOCKS for i in range(len(x))]
        sums.update(Batch({"x": x, "y": y}, blocks))
    return sums.estimate_cka("features", "y")
