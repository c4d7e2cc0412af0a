"""Reading numbers out of a summary, where any may be missing."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitscope.files.json_files import find as find

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


def write_number(value: float, digits: int = 2) -> str:
    """A number as it is printed: what rounds to zero has no sign, and minus is a minus."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def read_estimate(tree: Any, key: str = "value") -> Interval | None:
    """An estimate with its 95 % interval."""
    value = number(find(tree, key))
    if value is None:
        return None
    ends = numbers(find(tree, "ci95"))
    if ends is None or len(ends) != 2:
        return Interval(value)
    return Interval(value, min(ends), max(ends))


def read_cka(tree: Any) -> CkaInterval | None:
    """A CKA with its 95 % interval."""
    found = read_estimate(tree, "unbiased")
    if found is None:
        return None
    biased, floor = number(find(tree, "biased")), number(find(tree, "biased_if_unrelated"))
    return CkaInterval(found.value, found.low, found.high, biased, floor)


def tell_undefined_cka(summary: Mapping[str, Any], readout: str, parts: Sequence[str]) -> str:
    """Why an audit has no unbiased CKA."""
    found = find_terms(summary, "cka", readout)
    if not any(part in found for part in parts):
        return f"is missing in the readout {readout}"
    if (number(find(summary, "data", "num_images")) or 0) < _FEWEST_FOR_CKA:
        return f"is undefined with fewer than {_FEWEST_FOR_CKA} images"
    if any(number(find(found.get(part), "biased")) is not None for part in parts):
        return "is undefined without bias: too few images for how they differ"
    shares = find_terms(summary, "variance_share", readout)
    if not shares:
        constant = "its output, or what is kept of it,"
    elif all(read_estimate(share) is None for share in shares.values()):
        constant = "its output"
    else:
        constant = "what is kept of its output"
    return f"is undefined: {constant} is the same for every image"


def read_spread(tree: Any) -> Interval | None:
    """The mean of a distribution with its 5 and 95 % quantiles."""
    mean = number(find(tree, "mean"))
    low, high = number(find(tree, "p05")), number(find(tree, "p95"))
    if mean is None:
        return None
    return Interval(mean, low, high)


def read_high_norm(row: Any) -> Interval | None:
    """The fraction of high-norm patch tokens at a depth."""
    fraction = number(find(row, "fraction"))
    if fraction is not None:
        return Interval(fraction)
    bound = number(find(row, "fraction_at_most"))
    return None if bound is None else Interval(bound, 0.0, bound)


def tell_bounds(rows: Iterable[Any]) -> str:
    """What a result without high-norm tokens leaves open."""
    rows = list(rows)
    tokens, images = (
        max((part for row in rows if (part := number(find(row, key))) is not None), default=None)
        for key in ("fraction_at_most", "images_fraction_at_most")
    )
    if tokens is None or images is None:
        return "any number"
    return (
        f"up to {100 * tokens:.3g} % of the patch tokens, in up to {100 * images:.3g} % of the "
        "images"
    )
