"""Estimates over images, as plain numbers that are read and written without torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from vitscope.metrics.jackknife import Estimate


@dataclass(frozen=True)
class CkaEstimate:
    """Linear CKA of a restricted output with the full one."""

    biased: float  # the paper's estimator
    unbiased: float  # the estimator that does not grow with d / n
    # 95 % jackknife interval of `unbiased`, capped at 1; None where it is undefined
    ci95: tuple[float, float] | None
    # mean of `biased` if the restricted outputs were assigned to the images at random
    biased_if_unrelated: float


@dataclass(frozen=True)
class GramShare:
    """Share of a pair of terms in the representational geometry of their total."""

    biased: float  # the paper's estimator
    unbiased: float  # the estimator that does not grow with d / n
    ci95: tuple[float, float] | None  # 95 % interval of `unbiased`; None where it is undefined


@dataclass(frozen=True)
class SharedDirections:
    """How the leading directions of two terms are aligned."""

    # angles between the two leading subspaces, ascending: 0 for a shared direction, 90 for a
    # direction orthogonal to the other subspace
    principal_angles_deg: tuple[float, ...]
    shared_variance: float  # fraction of the first term's variance inside the second's subspace
    # the same for a random subspace with as many directions, on average: their number over the
    # width of the stream
    shared_variance_if_unrelated: float


@dataclass(frozen=True)
class Directions:
    """The directions in which the terms of the residual stream vary over images."""

    num_directions: int  # leading directions per term; fewer where a term varies in fewer
    # per term (tr Σ)² / tr Σ², the effective number of directions it varies in
    effective_rank: Mapping[str, float]
    # by the names of two terms, constant ones left out
    pairs: Mapping[str, Mapping[str, SharedDirections]]


@dataclass(frozen=True)
class HighNormTokens:
    """The outliers among the patch tokens of one depth."""

    num_images: int  # images whose norms are known at this depth
    # least norm of an outlier; None where the norms have no second mode. None, with all that
    # depends on it, where norms of some images are missing
    threshold: float | None = None
    fraction: float | None = None  # fraction of all patch tokens at or above the threshold
    images_fraction: float | None = None  # fraction of the images with such a token
    # fraction of the variance of "is an outlier", over all tokens, explained by the place on the
    # grid, less what chance explains (1 / n): 1 if the same places are outliers in every image,
    # about 0 if places vary freely. None for one image
    position_share: float | None = None
    median: float | None = None  # median norm, to within a bin (4.4 %)
    p99: float | None = None  # 99 % quantile, likewise
    max: float | None = None  # the largest norm
    # without a threshold: norm above which tokens may be outliers, but are too few, or too
    # concentrated in one place or image, to be distinguished from a tail. None where there is no
    # such norm
    doubtful_from: float | None = None
    # without a threshold: upper bound on the fraction of outliers
    fraction_at_most: float | None = None
    # likewise, on the fraction of images with an outlier
    images_fraction_at_most: float | None = None


@dataclass(frozen=True)
class TopDimensions:
    """The dimensions in which a token's hidden state is largest on average."""

    # the dimensions, by descending mean activation; at most `NUM_TOP_DIMENSIONS`
    indices: tuple[int, ...]
    before: tuple[float, ...]  # mean activation of each at the block's input
    after: tuple[float, ...]  # mean activation of each after the block's first layer norm
    median_before: float  # median over all dimensions of the mean activation before
    median_after: float  # the same after the norm


@dataclass(frozen=True, kw_only=True)
class StateSummary:
    """How a token's state varies over images."""

    pairwise_cosine: Estimate  # mean cosine over all pairs of images
    variance_share: Estimate  # fraction of the mean squared norm that varies over images


@dataclass(frozen=True, kw_only=True)
class TokenSummary:
    """One special token at the input of a block."""

    states: Mapping[str, StateSummary]  # by state: "hidden", "normed", "keys", "values"
    top_dimensions: TopDimensions  # the dimensions where its hidden state is largest
