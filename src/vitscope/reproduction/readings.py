"""Numbers with 95 % intervals, made of what a summary holds."""

import math
from collections.abc import Sequence

from scipy.special import stdtrit

from vitscope.figures.numbers import Interval
from vitscope.metrics.distribution import Distribution
from vitscope.metrics.jackknife import Estimate
from vitscope.reproduction.evidence import Reading, UntoldError

MISSING = "is missing or undefined"
_Z_975 = 1.959963984540054


def read_mean(found: Distribution | None, *, at_most: float = math.inf) -> Reading:
    """A mean over images with its 95 % interval."""
    if found is None or not math.isfinite(found.mean):
        raise UntoldError(MISSING)
    mean = found.mean
    if not math.isfinite(found.std) or found.n < 2:
        return Reading(mean)
    half = float(stdtrit(found.n - 1, 0.975)) * found.std / math.sqrt(found.n - 1)
    return Reading(mean, mean - half, min(mean + half, max(mean, at_most)))


def read_proportion(part: float, count: int) -> Reading:
    """A part of the images with its 95 % interval."""
    if not 0 <= part <= 1:
        raise UntoldError("is not between 0 and 1")
    if count < 1:
        return Reading(part)
    square = _Z_975**2
    centre = (part + square / (2 * count)) / (1 + square / count)
    half = math.sqrt(part * (1 - part) / count + square / (4 * count**2))
    half *= _Z_975 / (1 + square / count)
    # Where no image or every one counts, the end is exact but for rounding.
    low = 0.0 if part == 0 else centre - half
    return Reading(part, low, 1.0 if part == 1 else centre + half)


def divide(above: Interval, below: Interval) -> Reading:
    """A ratio of two numbers that are not negative."""
    if below.value <= 0:
        raise UntoldError("would divide by zero")
    value = above.value / below.value
    if above.low is None or above.high is None or below.low is None or below.high is None:
        return Reading(value)
    high = above.high / below.low if below.low > 0 else math.inf
    return Reading(value, max(0.0, above.low) / below.high, high)


def read_estimate(found: Estimate | None) -> Reading:
    """An estimate with the interval that it comes with."""
    if found is None or not math.isfinite(found.value):
        raise UntoldError(MISSING)
    return Reading(found.value, *(found.ci95 or (None, None)))


def take_as_it_is(value: float | None, note: str = "") -> Reading:
    """A number that comes without an interval, to be held against a line as it is."""
    if value is None or not math.isfinite(value):
        raise UntoldError(MISSING)
    return Reading(value, value, value, note)


def average(readings: Sequence[Interval]) -> Interval:
    """Mean of several numbers."""

    def mean(ends: Sequence[float | None]) -> float | None:
        known = [end for end in ends if end is not None]
        return sum(known) / len(known) if len(known) == len(ends) else None

    value = sum(reading.value for reading in readings) / len(readings)
    return Interval(value, mean([r.low for r in readings]), mean([r.high for r in readings]))
