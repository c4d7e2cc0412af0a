"""Reading numbers out of a summary, where any may be missing."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vitscope.metrics.distribution import Distribution
from vitscope.metrics.jackknife import Estimate
from vitscope.results.schema import AuditSummary
from vitscope.results.schema_numbers import Cka, HighNormDepth

_FEWEST_FOR_CKA = 4
"""With three images the unbiased estimator divides by zero."""


@dataclass(frozen=True)
class Interval:
    """A number with the ends of its interval, all finite.

    Attributes:
        value: The estimate, or the mean of a distribution.
        low: Lower end; None where there is no interval.
        high: Upper end; None where there is no interval.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def errors(self) -> tuple[float, float]:
        """Distances from the value to the two ends, zero where there is no interval.

        A mean may lie outside its own quantiles. The distance to the end that lies on the other
        side is zero then; `panels.plot_intervals` draws both ends where they are.
        """
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        return max(0.0, self.value - low), max(0.0, high - self.value)


@dataclass(frozen=True)
class CkaInterval(Interval):
    """An unbiased CKA with its interval, and the paper's estimator beside it.

    Attributes:
        biased: The biased CKA; None where it is missing.
        biased_if_unrelated: What it would be on average for outputs dealt at random.
    """

    biased: float | None = None
    biased_if_unrelated: float | None = None


def write_number(value: float, digits: int = 2) -> str:
    """A number as it is printed: what rounds to zero has no sign, and minus is a minus."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def read_estimate(found: Estimate | None) -> Interval | None:
    """An estimate with its 95 % interval; None where it is undefined."""
    if found is None or math.isnan(found.value):
        return None
    return Interval(found.value, *(found.ci95 or (None, None)))


def read_cka(found: Cka | None) -> CkaInterval | None:
    """A CKA with its 95 % interval; None where it is undefined."""
    if found is None or math.isnan(found.unbiased):
        return None
    low, high = found.ci95 or (None, None)
    biased, floor = (
        None if math.isnan(value) else value for value in (found.biased, found.biased_if_unrelated)
    )
    return CkaInterval(found.unbiased, low, high, biased, floor)


def tell_undefined_cka(summary: AuditSummary, readout: str, parts: Sequence[str]) -> str:
    """Why an audit has no unbiased CKA."""
    found = summary.last.cka.get(readout, {})
    if not any(part in found for part in parts):
        return f"is missing in the readout {readout}"
    if summary.data.num_images < _FEWEST_FOR_CKA:
        return f"is undefined with fewer than {_FEWEST_FOR_CKA} images"
    if any(part in found and not math.isnan(found[part].biased) for part in parts):
        return "is undefined without bias: too few images for how they differ"
    shares = summary.last.variance_share.get(readout)
    if not shares:
        constant = "its output, or what is kept of it,"
    elif all(math.isnan(share.value) for share in shares.values()):
        constant = "its output"
    else:
        constant = "what is kept of its output"
    return f"is undefined: {constant} is the same for every image"


def read_spread(found: Distribution | None) -> Interval | None:
    """The mean of a distribution with its 5 and 95 % quantiles; None where it is undefined."""
    if found is None or math.isnan(found.mean):
        return None
    return Interval(found.mean, found.p05, found.p95)


def read_high_norm(found: HighNormDepth) -> Interval | None:
    """The fraction of high-norm patch tokens at a depth."""
    if found.fraction is not None:
        return Interval(found.fraction)
    bound = found.fraction_at_most
    return None if bound is None else Interval(bound, 0.0, bound)


def tell_bounds(depths: Iterable[HighNormDepth]) -> str:
    """What a result without high-norm tokens leaves open."""
    depths = list(depths)
    tokens = [d.fraction_at_most for d in depths if d.fraction_at_most is not None]
    images = [d.images_fraction_at_most for d in depths if d.images_fraction_at_most is not None]
    if not tokens or not images:
        return "any number"
    return (
        f"up to {100 * max(tokens):.3g} % of the patch tokens, in up to {100 * max(images):.3g} % "
        "of the images"
    )


# OLD: until figures are converted
from collections.abc import Mapping
from typing import Any

from vitscope.files.json_files import find as find


def find_terms(tree: Any, *path: str) -> dict[str, Any]:
    """A part of a summary that is keyed by names."""
    found = find(tree, *path)
    return dict(found) if isinstance(found, Mapping) else {}


def number(value: Any) -> float | None:
    """A finite number, or nothing."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def numbers(values: Any) -> list[float] | None:
    """A list of finite numbers, or nothing."""
    if not isinstance(values, (list, tuple)) or not values:
        return None
    found = [number(value) for value in values]
    complete = [value for value in found if value is not None]
    return complete if len(complete) == len(found) else None
