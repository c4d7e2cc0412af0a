"""Estimates over images, as plain numbers that are read and written without torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from vitscope.metrics.jackknife import Estimate


@dataclass(frozen=True)
class CkaEstimate:
    """Linear CKA of a restricted output with the full one.

    Attributes:
        biased: The paper's estimator.
        unbiased: The estimator that does not grow with d / n.
        ci95: 95 % jackknife interval of `unbiased`, capped at 1; None where it is undefined.
        biased_if_unrelated: Mean of `biased` if the restricted outputs were assigned to the images
            at random.
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
    """How the leading directions of two terms are aligned.

    Attributes:
        principal_angles_deg: Angles between the two leading subspaces, ascending: 0 for a shared
            direction, 90 for a direction orthogonal to the other subspace.
        shared_variance: Fraction of the first term's variance inside the second's subspace.
        shared_variance_if_unrelated: The same for a random subspace with as many directions, on
            average: their number over the width of the stream.
    """

    principal_angles_deg: tuple[float, ...]
    shared_variance: float
    shared_variance_if_unrelated: float


@dataclass(frozen=True)
class Directions:
    """The directions in which the terms of the residual stream vary over images.

    Attributes:
        num_directions: Leading directions per term; fewer where a term varies in fewer.
        effective_rank: Per term (tr Σ)² / tr Σ², the effective number of directions it varies in.
        pairs: By the names of two terms, constant ones left out.
    """

    num_directions: int
    effective_rank: Mapping[str, float]
    pairs: Mapping[str, Mapping[str, SharedDirections]]


@dataclass(frozen=True)
class HighNormTokens:
    """The outliers among the patch tokens of one depth.

    Attributes:
        num_images: Images whose norms are known at this depth.
        threshold: Least norm of an outlier; None where the norms have no second mode. None, with
            all that depends on it, where norms of some images are missing.
        fraction: Fraction of all patch tokens at or above the threshold.
        images_fraction: Fraction of the images with such a token.
        position_share: Fraction of the variance of "is an outlier", over all tokens, explained by
            the place on the grid, less what chance explains (1 / n): 1 if the same places are
            outliers in every image, about 0 if places vary freely. None for one image.
        median: Median norm, to within a bin (4.4 %).
        p99: 99 % quantile, likewise.
        max: The largest norm.
        doubtful_from: Without a threshold: norm above which tokens may be outliers, but are too
            few, or too concentrated in one place or image, to be distinguished from a tail. None
            where there is no such norm.
        fraction_at_most: Without a threshold: upper bound on the fraction of outliers.
        images_fraction_at_most: Likewise, on the fraction of images with an outlier.
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
        indices: The dimensions, by descending mean activation; at most `NUM_TOP_DIMENSIONS`.
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
        variance_share: Fraction of the mean squared norm that varies over images.
    """

    pairwise_cosine: Estimate
    variance_share: Estimate


@dataclass(frozen=True, kw_only=True)
class TokenSummary:
    """One special token at the input of a block.

    Attributes:
        states: By state: "hidden", "normed", "keys", "values".
        top_dimensions: The dimensions where its hidden state is largest.
    """

    states: Mapping[str, StateSummary]
    top_dimensions: TopDimensions
