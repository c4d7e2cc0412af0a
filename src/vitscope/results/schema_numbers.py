"""Types of the numbers of a saved summary: per image, per layer, over the whole set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

from vitscope.files.typed_json import Finite, Keys
from vitscope.metrics.distribution import Distribution
from vitscope.metrics.estimates import CkaEstimate as Cka
from vitscope.metrics.estimates import Directions, GramShare, TokenSummary
from vitscope.metrics.jackknife import Estimate
from vitscope.metrics.rank_correlation import AdjustedCorrelation, RankCorrelation
from vitscope.metrics.regression import Regression
from vitscope.results.verdict import Verdict

T = TypeVar("T")
ByTerm = Annotated[Mapping[str, T], Keys(("patches",))]
"""By token group, "skip" and "bias"; "patches" is always there."""
ByTotal = Annotated[Mapping[str, Mapping[str, T]], Keys(("attention", "residual"))]
"""By total ("attention": t, "residual": r), then by term."""


@dataclass(frozen=True, kw_only=True)
class PerImage(Generic[T]):
    """The numbers that every image has (docs/method.md), by term."""

    attention_mass: ByTerm[T]  # Σ a_h[i] over a group's tokens, mean over heads
    patch_share: T  # attention on patches over that on patches and registers
    # of a_i, the mean over heads of the attention on patch i: max_i a_i, and with p = a / Σ a over
    # P patches −Σ p_i log p_i / log P. None in results of earlier versions
    largest_patch_attention: T | None = None
    attention_entropy: T | None = None
    # ‖c_g‖, ‖skip‖, ‖bias‖, ‖t‖ ("attention_total"), ‖r‖ ("residual_total")
    contribution_norm: ByTerm[T]
    cosine: ByTotal[T]  # cos(c_g, t) and cos(c_g, r), by total
    # cos(c_g − mean c_g, t − mean t), and with r; empty without means
    centred_cosine: Mapping[str, Mapping[str, T]] = field(default_factory=dict)
    restricted_cosine: Mapping[str, Mapping[str, T]]  # cos(c_g + bias, t), under "attention"
    share: ByTerm[T]  # ⟨c_g, r⟩ / ‖r‖²
    # ⟨c_g − mean c_g, r − mean r⟩ / ‖r − mean r‖²; empty without means
    centred_share: Mapping[str, T] = field(default_factory=dict)


def nest(numbers: Mapping[tuple[str, ...], T]) -> dict[str, Any]:
    """Nest numbers by path into the fields of `PerImage`."""
    tree: dict[str, Any] = {}
    for path, value in numbers.items():
        place = tree
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
    return tree


@dataclass(frozen=True, kw_only=True)
class ImageNumbers(PerImage[float]):
    """The numbers of one image."""

    share_without_bias: ByTerm[float]  # ⟨c_g, r − bias⟩ / ‖r − bias‖²
    balance_error: float  # ‖t − model's t‖ / ‖model's t‖


@dataclass(frozen=True, kw_only=True)
class DominantRegister:
    """The register with the highest norm in most images."""

    index: int  # index of the register, from 0
    share: Finite  # fraction of the images where it has the highest norm
    counts: tuple[int, ...]  # number of images where each register has the highest norm
    ratio: float  # its mean norm over that of the other registers; NaN if there are none


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """[CLS], registers and the highest-norm patch at the input of a block."""

    norms: ByTerm[Distribution]  # by token, and the mean over "patches"
    dominant_register: DominantRegister | None  # None for a model without registers
    # the analysed token: a register, or a patch of outlying norm; None if there is neither
    analysed: str | None
    tokens: Mapping[str, TokenSummary]  # by token


@dataclass(frozen=True, kw_only=True, repr=False)
class LayerSummary(PerImage[Distribution]):
    """All numbers of one audited layer."""

    index: int  # index of the layer, from 0
    verdict: Verdict  # whether its attention maps may be believed
    # share of the variance of t and of r over images, by total and term
    variance_share: Annotated[Mapping[str, ByTerm[Estimate]], Keys(("attention", "residual"))]
    # CKA with the full output, by readout and part
    cka: Annotated[Mapping[str, ByTerm[Cka]], Keys(("attention", "residual"))]
    # shares of pairs of terms in the similarities between images, by total
    gram_ledger: Mapping[str, Mapping[str, Mapping[str, GramShare]]]
    directions: Directions  # directions in which the terms of r vary
    anatomy: Anatomy | None = None  # None for a layer without a [CLS] row
    # estimates of metrics of other packages, by metric
    metrics: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"LayerSummary({self.index}, {self.verdict.status!r})"


@dataclass(frozen=True, kw_only=True)
class TraceSummary:
    """Where what becomes the output lives at each depth, over traced images."""

    num_images: int  # images traced
    max_gap: Finite  # largest distance between the sum of the parts and what they explain
    # by token group and depth: shares of the image's difference from others; at each depth they
    # sum to 1
    shares: ByTerm[tuple[Estimate, ...]]
    through_values: tuple[Estimate, ...]  # by block: the share that came through what was read
    through_routing: tuple[Estimate, ...]  # by block: that came through where it was read
    half_depth: int | None  # first depth at which patches hold less than half; None if at none


@dataclass(frozen=True, kw_only=True)
class CovariateSummary:
    """How image properties relate to where the output comes from."""

    distributions: Mapping[str, Distribution]  # by covariate
    correlations: Mapping[str, Mapping[str, AdjustedCorrelation]]  # by target and covariate
    regressions: Mapping[str, Regression]  # on all covariates, by target


@dataclass(frozen=True, kw_only=True)
class Interdependence:
    """Correlation between the registers' and the skip connection's shares."""

    shares: Literal["share", "centred_share"]  # which per-image shares were compared
    over_images: RankCorrelation  # over images, in the last audited layer
    # over layers, of variance shares; None if only one layer was audited
    over_layers: RankCorrelation | None


@dataclass(frozen=True)
class Measured(Estimate):
    """An estimate that is always defined."""

    value: Finite
    ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class TopAccuracy:
    """Fraction of test images classified correctly, mean over draws."""

    top1: Measured  # the true class has the highest score
    top5: Measured  # the true class is among the five highest


@dataclass(frozen=True, kw_only=True)
class Chance:
    """Accuracy of guessing."""

    top1: Finite  # one over the number of classes
    top5: Finite  # five over it, at most 1
