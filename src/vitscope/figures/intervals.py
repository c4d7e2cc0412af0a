"""Defined numbers of a summary with their intervals."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vitscope.metrics.distribution import Distribution
from vitscope.metrics.estimates import CkaEstimate, HighNormTokens
from vitscope.metrics.jackknife import Estimate
from vitscope.results.number_text import NumberText, write_number, write_percent
from vitscope.results.schema import AuditSummary

_MARGIN = 0.04
_FEWEST_FOR_CKA = 4
"""With three images the unbiased estimator divides by zero."""


@dataclass(frozen=True)
class Interval:
    """A number with the ends of its interval, all finite."""

    value: float  # the estimate, or the mean of a distribution
    low: float | None = None  # lower end; None if there is no interval
    high: float | None = None  # upper end; None if there is no interval
    n: int | None = None  # number of images behind it; None for the result's number of images
    # of an unbiased CKA the biased one, the paper's estimator; None where it is undefined
    biased: float | None = None
    biased_if_unrelated: float | None = None  # its mean for outputs paired at random

    @property
    def ends(self) -> tuple[float, float]:
        """The two ends, or the number itself without one."""
        low = self.value if self.low is None else self.low
        return low, self.value if self.high is None else self.high

    @property
    def errors(self) -> tuple[float, float]:
        """Distances to the two ends; zero without one, or where a mean is beyond an end."""
        low, high = self.ends
        return max(0.0, self.value - low), max(0.0, high - self.value)

    @property
    def is_bound(self) -> bool:
        """Whether nothing was found and the value is an upper bound."""
        return self.low == 0 < self.value == self.high

    def change(self, change: Callable[[float], float]) -> "Interval":
        """The interval of a number that grows with this one."""
        low, high = (None if end is None else change(end) for end in (self.low, self.high))
        return Interval(change(self.value), low, high, self.n)


def make_interval(
    value: float, ends: tuple[float, float] | None = None, n: int | None = None, **biased: float
) -> Interval | None:
    """A number with its interval; None if it is undefined."""
    low, high = ends if ends and not any(map(math.isnan, ends)) else (None, None)
    known = {name: other for name, other in biased.items() if not math.isnan(other)}
    return None if math.isnan(value) else Interval(value, low, high, n, **known)


def write_interval(number: Interval | None, *, percent: bool = False) -> NumberText:
    """A number with its interval."""
    if number is None:
        return NumberText("–", math.nan)
    write = write_percent if percent else write_number
    told = write(number.value)
    if number.is_bound:
        told = f"at most {told}"
    elif number.low is not None and number.high is not None:
        told = f"{told} ({write(number.low)} to {write(number.high)})"
    return NumberText(told, number.value, number.low, number.high)


def span(numbers: Sequence[Interval], *marks: float) -> tuple[float, float]:
    """Limits of an axis that has room for every interval and for some marks."""
    ends = [*marks, *(end for number in numbers for end in (number.value, *number.ends))]
    return min(ends) - _MARGIN, max(ends) + _MARGIN


def read_estimate(estimate: Estimate, n: int | None = None) -> Interval | None:
    """An estimate with its 95 % interval."""
    return make_interval(estimate.value, estimate.ci95, n)


def read_cka(cka: CkaEstimate) -> Interval | None:
    """A CKA with its 95 % interval."""
    floor = cka.biased_if_unrelated
    return make_interval(cka.unbiased, cka.ci95, biased=cka.biased, biased_if_unrelated=floor)


def tell_undefined_cka(summary: AuditSummary, readout: str, parts: Sequence[str]) -> str:
    """Why an audit has no unbiased CKA."""
    found = summary.last.cka.get(readout, {})
    ckas = [found[part] for part in parts if part in found]
    if not ckas:
        return f"is missing in the readout {readout}"
    if summary.data.num_images < _FEWEST_FOR_CKA:
        return f"is undefined with fewer than {_FEWEST_FOR_CKA} images"
    if any(not math.isnan(cka.biased) for cka in ckas):
        return "is undefined without bias: too few images for how they differ"
    shares = summary.last.variance_share.get(readout)
    if not shares:
        constant = "its output, or what is kept of it,"
    elif all(math.isnan(share.value) for share in shares.values()):
        constant = "its output"
    else:
        constant = "what is kept of its output"
    return f"is undefined: {constant} is the same for every image"


def read_spread(spread: Distribution) -> Interval | None:
    """The mean of a distribution with its 5 and 95 % quantiles."""
    return make_interval(spread.mean, (spread.p05, spread.p95), spread.n)


def read_high_norm(depth: HighNormTokens) -> Interval | None:
    """The fraction of high-norm patch tokens at a depth."""
    n, bound = depth.num_images, depth.fraction_at_most
    if depth.fraction is not None:
        return Interval(depth.fraction, n=n)
    return None if bound is None else Interval(bound, 0.0, bound, n)


def tell_bounds(depths: Iterable[HighNormTokens]) -> str:
    """Upper bounds for a result without high-norm tokens, in words."""
    bounds = [(one.fraction_at_most, one.images_fraction_at_most) for one in depths]
    tokens, images = (
        max((bound for bound in column if bound is not None), default=None)
        for column in zip(*bounds, strict=True)
    )
    if tokens is None or images is None:
        return "any number"
    return (
        f"up to {100 * tokens:.3g} % of the patch tokens, in up to {100 * images:.3g} % of the "
        "images"
    )
