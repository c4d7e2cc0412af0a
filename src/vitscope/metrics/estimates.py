"""What is estimated over images, as plain numbers: read and written without torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from vitscope.metrics.jackknife import Estimate


@dataclass(frozen=True)
class CkaEstimate:
    """Linear CKA of a restricted output with the full one.

    Attributes:
        biased: The paper's estimator.
        unbiased: The estimator that does not grow with d / n.
        ci95: 95 % jackknife interval of `unbiased`, which ends at 1; None where it cannot be
            told.
        biased_if_unrelated: What `biased` would be on average if the restricted outputs were dealt
            to the images at random.
    """

    biased: float
    unbiased: float
    ci95: tuple[float, float] | None
    biased_if_unrelated: float


@dataclass(frozen=True)
class GramShare:
    """Share of a pair of terms in the representational geometry of their total.

    Attributes:
        biased: The paper's estimator.
        unbiased: The estimator that does not grow with d / n.
        ci95: 95 % interval of `unbiased`; None where it is undefined.
    """

    biased: float
    unbiased: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class SharedDirections:
    """How the leading directions of two terms lie to one another.

    Attributes:
        principal_angles_deg: Angles between the two leading subspaces, ascending: 0 where they
            share a direction, 90 where one has a direction that the other has nothing of.
        shared_variance: Part of the first term's variance that lies in the second's subspace.
        shared_variance_if_unrelated: What a subspace of that many directions drawn at random would
            hold of it on average: their number over the width of the stream.
    """

    principal_angles_deg: tuple[float, ...]
    shared_variance: float
    shared_variance_if_unrelated: float


@dataclass(frozen=True)
class Directions:
    """The directions in which the terms of the residual stream vary over images.

    Attributes:
        num_directions: Leading directions per term; fewer where a term varies in fewer.
        effective_rank: Per term (tr Σ)² / tr Σ², the number of directions it varies in.
        pairs: By the names of two terms that vary.
    """

    num_directions: int
    effective_rank: Mapping[str, float]
    pairs: Mapping[str, Mapping[str, SharedDirections]]


@dataclass(frozen=True)
class HighNormTokens:
    """The outliers among the patch tokens of one depth.

    Attributes:
        num_images: Images whose norms are known there.
        threshold: Norm from which on a token is an outlier; None where the norms have no second
            mode. This and what follows from it are None where not all images are known.
        fraction: Part of all patch tokens at or above it.
        images_fraction: Part of the images that have such a token.
        position_share: Part of the outliers' variance (of being one or not, over all tokens) that
            their place on the grid accounts for: 1 where the same places are outliers in every
            image, about 0 where places are left to the images (chance, 1 / n, is taken off). None
            for one image.
        median: Median norm, to within a bin (4.4 %).
        p99: 99 % quantile, likewise.
        max: The largest norm.
        doubtful_from: Without a threshold: norm from which on tokens may be outliers that are too
            few, or too much of one place or image, to be told from a tail. None where there is no
            such norm.
        fraction_at_most: Without a threshold: the largest part of the tokens that may be outliers.
        images_fraction_at_most: Likewise, of the images that may have one.
    """

    num_images: int
    threshold: float | None = None
    fraction: float | None = None
    images_fraction: float | None = None
    position_share: float | None = None
    median: float | None = None
    p99: float | None = None
    max: float | None = None
    doubtful_from: float | None = None
    fraction_at_most: float | None = None
    images_fraction_at_most: float | None = None


@dataclass(frozen=True)
class TopDimensions:
    """The dimensions in which a token's hidden state is largest on average.

    Attributes:
        indices: The dimensions, by falling mean activation; at most `NUM_TOP_DIMENSIONS`.
        before: Mean activation of each at the block's input.
        after: Mean activation of each after the block's first layer norm.
        median_before: Median over all dimensions of the mean activation before.
        median_after: The same after the norm.
    """

    indices: tuple[int, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    median_before: float
    median_after: float


@dataclass(frozen=True, kw_only=True)
class StateSummary:
    """How a token's state varies over images.

    Attributes:
        pairwise_cosine: Mean cosine over all pairs of images.
        variance_share: Part of the mean squared norm that varies over images.
    """

    pairwise_cosine: Estimate
    variance_share: Estimate


@dataclass(frozen=True, kw_only=True)
class TokenSummary:
    """One special token at the input of a block.

    Attributes:
        states: By state: "hidden", "normed", "keys", "values".
        top_dimensions: The dimensions in which it is largest.
    """

    states: Mapping[str, StateSummary]
    top_dimensions: TopDimensions
