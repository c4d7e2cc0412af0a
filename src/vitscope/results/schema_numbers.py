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
    """The numbers that every image has (docs/method.md), by term.

    Attributes:
        attention_mass: Σ a_h[i] over a group's tokens, mean over heads.
        patch_share: Attention on patches over that on patches and registers.
        contribution_norm: ‖c_g‖, ‖skip‖, ‖bias‖, ‖t‖ ("attention_total"), ‖r‖ ("residual_total").
        cosine: cos(c_g, t) and cos(c_g, r), by total.
        centred_cosine: cos(c_g − mean c_g, t − mean t), and with r; empty without means.
        restricted_cosine: cos(c_g + bias, t), under "attention".
        share: ⟨c_g, r⟩ / ‖r‖².
        centred_share: ⟨c_g − mean c_g, r − mean r⟩ / ‖r − mean r‖²; empty without means.
    """

    attention_mass: ByTerm[T]
    patch_share: T
    contribution_norm: ByTerm[T]
    cosine: ByTotal[T]
    centred_cosine: Mapping[str, Mapping[str, T]] = field(default_factory=dict)
    restricted_cosine: Mapping[str, Mapping[str, T]]
    share: ByTerm[T]
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
    """The numbers of one image.

    Attributes:
        share_without_bias: ⟨c_g, r − bias⟩ / ‖r − bias‖².
        balance_error: ‖t − model's t‖ / ‖model's t‖.
    """

    share_without_bias: ByTerm[float]
    balance_error: float


@dataclass(frozen=True, kw_only=True)
class DominantRegister:
    """The register with the highest norm in most images.

    Attributes:
        index: Index of the register, from 0.
        share: Fraction of the images where it has the highest norm.
        counts: Number of images where each register has the highest norm.
        ratio: Its mean norm over that of the other registers; NaN if there are none.
    """

    index: int
    share: Finite
    counts: tuple[int, ...]
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """[CLS], registers and the highest-norm patch at the input of a block.

    Attributes:
        norms: By token, and the mean over "patches".
        dominant_register: None for a model without registers.
        analysed: The analysed token: a register, or a patch of outlying norm; None if there is
            neither.
        tokens: By token.
    """

    norms: ByTerm[Distribution]
    dominant_register: DominantRegister | None
    analysed: str | None
    tokens: Mapping[str, TokenSummary]


@dataclass(frozen=True, kw_only=True, repr=False)
class LayerSummary(PerImage[Distribution]):
    """All numbers of one audited layer.

    Attributes:
        index: Index of the layer, from 0.
        verdict: Whether its attention maps may be believed.
        variance_share: Share of the variance of t and of r over images, by total and term.
        cka: CKA with the full output, by readout and part.
        gram_ledger: Shares of pairs of terms in the similarities between images, by total.
        directions: Directions in which the terms of r vary.
        anatomy: None for a layer without a [CLS] row.
        metrics: Estimates of metrics of other packages, by metric.
    """

    index: int
    verdict: Verdict
    variance_share: Annotated[Mapping[str, ByTerm[Estimate]], Keys(("attention", "residual"))]
    cka: Annotated[Mapping[str, ByTerm[Cka]], Keys(("attention", "residual"))]
    gram_ledger: Mapping[str, Mapping[str, Mapping[str, GramShare]]]
    directions: Directions
    anatomy: Anatomy | None = None
    metrics: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"LayerSummary({self.index}, {self.verdict.status!r})"


@dataclass(frozen=True, kw_only=True)
class CovariateSummary:
    """How image properties relate to where the output comes from.

    Attributes:
        distributions: By covariate.
        correlations: By target and covariate.
        regressions: On all covariates, by target.
    """

    distributions: Mapping[str, Distribution]
    correlations: Mapping[str, Mapping[str, AdjustedCorrelation]]
    regressions: Mapping[str, Regression]


@dataclass(frozen=True, kw_only=True)
class Interdependence:
    """Correlation between the registers' and the skip connection's shares.

    Attributes:
        shares: Which per-image shares were compared.
        over_images: Over images, in the last audited layer.
        over_layers: Over layers, of variance shares; None if only one layer was audited.
    """

    shares: Literal["share", "centred_share"]
    over_images: RankCorrelation
    over_layers: RankCorrelation | None


@dataclass(frozen=True)
class Measured(Estimate):
    """An estimate that is always defined.

    Attributes:
        value: The estimate.
        ci95: Its 95 % interval.
    """

    value: Finite
    ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class TopAccuracy:
    """Fraction of test images classified correctly, mean over draws.

    Attributes:
        top1: The true class has the highest score.
        top5: The true class is among the five highest.
    """

    top1: Measured
    top5: Measured


@dataclass(frozen=True, kw_only=True)
class Chance:
    """Accuracy of guessing.

    Attributes:
        top1: One over the number of classes.
        top5: Five over it, at most 1.
    """

    top1: Finite
    top5: Finite
