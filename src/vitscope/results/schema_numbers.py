"""The numbers of a saved summary, as types: of each image, of each layer, of the whole set."""

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
"""By token group, "skip" and "bias"; there always are patches."""
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
    """Numbers by path as the fields that `PerImage` has."""
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
    """The register that has the highest norm in most images.

    Attributes:
        index: Which one, from 0.
        share: In what part of the images.
        counts: In how many images each register has the highest norm.
        ratio: Its mean norm over that of the other registers; NaN where there are none.
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
        analysed: The token to look at; None where no token stands out.
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
        index: Which layer, from 0.
        verdict: Whether its attention maps may be believed.
        variance_share: Part of the variance of t and of r over images, by total and term.
        cka: CKA with the full output, by readout and part.
        gram_ledger: Shares of pairs of terms in the similarities between images, by total.
        directions: Directions in which the terms of r vary.
        anatomy: None for a layer without a [CLS] row.
        metrics: What metrics of other packages found, by their names.
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
    """What the look of an image has to do with where its output comes from.

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
    """How the registers' and the skip connection's shares go together.

    Attributes:
        shares: Which of an image's shares were compared.
        over_images: In the last audited layer.
        over_layers: Of variance shares; None where one layer was audited.
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
    """Part of the test images that are classified rightly, mean over draws.

    Attributes:
        top1: The true class has the highest score.
        top5: The true class is among the five highest.
    """

    top1: Measured
    top5: Measured


@dataclass(frozen=True, kw_only=True)
class Chance:
    """What guessing reaches.

    Attributes:
        top1: One over the number of classes.
        top5: Five over it, at most 1.
    """

    top1: Finite
    top5: Finite
