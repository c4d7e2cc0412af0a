"""Jackknife intervals, leaving out one block of images at a time.

Images are assigned to blocks by a hash of their identity, so an interval depends on which images
were seen, not on their order, the batch size or the number of workers. Blocks have unequal sizes,
hence the delete-m_j form.

Source: Busing, Meijer & van der Leeden, "Delete-m jackknife for unequal m" (Stat. Comput. 1999).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float64, Integer

NUM_BLOCKS = 10


@dataclass(frozen=True)
class Estimate:
    """A number estimated over a set of images."""

    value: float  # the estimate; NaN where it is undefined
    ci95: tuple[float, float] | None  # 95 % interval; None where it is undefined


def make_estimate(
    value: float, left_out: Sequence[float], sizes: Sequence[int], *, at_most: float = math.inf
) -> Estimate:
    """An estimate θ with its interval, from its values θ_(j) without each nonempty block j.

    With n images, m_j in block j, h_j = n / m_j and pseudo-values h_j θ − (h_j − 1) θ_(j), the
    variance is the mean over blocks of (pseudo-value_j − θ_J)² / (h_j − 1), θ_J their jackknife
    mean. Cutting the interval at an upper bound of θ does not change its coverage.

    Args:
        value: The estimate over all images.
        left_out: The same with one block of images left out, for each nonempty block.
        sizes: Number of images in each of those blocks.
        at_most: Upper bound of the quantity, and of the interval.

    Returns:
        The value and its interval, which is undefined with fewer than two blocks, an undefined
        value, or at most one image outside the largest block.
    """
    blocks, total = len(sizes), sum(sizes)
    defined = all(math.isfinite(one) for one in (value, *left_out))
    # An estimate from one image is rounding: it has no variance.
    if blocks < 2 or not defined or total - max(sizes) < 2:
        return Estimate(value, None)
    ratios = [total / size for size in sizes]
    centre = blocks * value - sum(
        (1 - size / total) * one for size, one in zip(sizes, left_out, strict=True)
    )
    variance = (
        sum(
            (h * value - (h - 1) * one - centre) ** 2 / (h - 1)
            for h, one in zip(ratios, left_out, strict=True)
        )
        / blocks
    )
    half = student_975(float(blocks - 1)) * math.sqrt(variance)
    # Rounding may put the estimate above the bound; the interval still contains it.
    return Estimate(value, (value - half, min(value + half, max(value, at_most))))


@dataclass(frozen=True)
class Replicates:
    """A number over images, and without each block of them."""

    value: float
    left_out: tuple[float, ...]  # the same with one block left out, for each nonempty block
    sizes: tuple[int, ...]  # images in each of those blocks

    def estimate(self, *, at_most: float = math.inf) -> Estimate:
        """The number with its interval."""
        return make_estimate(self.value, self.left_out, self.sizes, at_most=at_most)

    def __sub__(self, other: "Replicates") -> "Replicates":
        """The paired difference: both numbers without the same images."""
        if self.sizes != other.sizes:
            raise ValueError(f"blocks of {self.sizes} and {other.sizes} images are not paired")
        pairs = zip(self.left_out, other.left_out, strict=True)
        return Replicates(self.value - other.value, tuple(a - b for a, b in pairs), self.sizes)


def replicate(
    estimate: Callable[[Bool[np.ndarray, " image"]], float], blocks: Sequence[int]
) -> Replicates:
    """Any number of the images that are kept, over all and without each of their blocks."""
    of_image = np.asarray(blocks)
    used, sizes = np.unique(of_image, return_counts=True)
    left_out = tuple(estimate(of_image != block) for block in used)
    return Replicates(estimate(of_image >= 0), left_out, tuple(sizes.tolist()))


def replicate_mean(values: Float64[np.ndarray, " image"], blocks: Sequence[int]) -> Replicates:
    """Mean of a number that every image has; `blocks` are the images' blocks."""
    sums = np.bincount(blocks, weights=values, minlength=NUM_BLOCKS)
    found = replicate_sums(sums, np.bincount(blocks, minlength=NUM_BLOCKS))
    return replace(found, value=float(values.mean()))


def replicate_sums(
    sums: Float64[np.ndarray, " block"], counts: Integer[np.ndarray, " block"]
) -> Replicates:
    """Mean over images of a number, from its sum in each block and the images there."""
    used, total = counts > 0, counts.sum()
    others = total - counts[used]
    left_out = np.divide(
        sums.sum() - sums[used], others, out=np.full(len(others), np.nan), where=others > 0
    )
    value = float(sums.sum() / total)
    return Replicates(value, tuple(left_out.tolist()), tuple(counts[used].tolist()))


def block_of(image_id: str) -> int:
    """Block of an image, from 0 to `NUM_BLOCKS` − 1, by the hexadecimal digest of the image."""
    return int(image_id[:15], 16) % NUM_BLOCKS


def leave_out(sizes: Sequence[int]) -> Float64[np.ndarray, "union block"]:
    """Membership, 0 or 1, of the nonempty blocks in: all of them, all but one, all but two."""
    used = [block for block, size in enumerate(sizes) if size]
    left_out = [(), *((block,) for block in used), *combinations(used, 2)]
    kept = np.zeros((len(left_out), len(sizes)))
    kept[:, used] = 1
    for row, blocks in zip(kept, left_out, strict=True):
        row[list(blocks)] = 0
    return kept


def student_975(degrees: float) -> float:
    """Student's t, 97.5 %."""
    from scipy.special import stdtrit  # slow to import

    return float(stdtrit(degrees, 0.975))
