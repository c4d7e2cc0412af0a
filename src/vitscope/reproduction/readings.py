"""Numbers with 95 % intervals, made of what a summary holds."""

import math
from collections.abc import Sequence
from typing import Any

from scipy.special import stdtrit

from vitscope.figures.numbers import Interval, find, number, read_estimate
from vitscope.reproduction.evidence import Reading, UntoldError

MISSING = "is missing or undefined"
_Z_975 = 1.959963984540054


def read_mean(tree: Any, count: int, *, at_most: float = math.inf) -> Reading:
    """A mean over images with its 95 % interval.

    Args:
        tree: A distribution: `mean`, and `std` with divisor n.
        count: Images, n.
        at_most: What the mean cannot exceed; the interval ends there.

    Returns:
        mean ± t(0.975, n − 1) · std / √(n − 1).

    Raises:
        UntoldError: If there is no mean.
    """
    mean, std = number(find(tree, "mean")), number(find(tree, "std"))
    if mean is None:
        raise UntoldError(MISSING)
    if std is None or count < 2:
        return Reading(mean)
    half = float(stdtrit(count - 1, 0.975)) * std / math.sqrt(count - 1)
    return Reading(mean, mean - half, min(mean + half, max(mean, at_most)))


def read_proportion(part: float, count: int) -> Reading:
    """A part of the images with its 95 % interval.

    Args:
        part: The part, 0 to 1.
        count: Images, n.

    Returns:
        The part and Wilson's interval.

    Raises:
        UntoldError: If it is no part of anything.
    """
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
    """A ratio of two numbers that are not negative.

    Args:
        above: Numerator.
        below: Denominator.

    Returns:
        The ratio, from the lowest that the two intervals allow to the highest; without an upper
        end where the denominator may be zero.

    Raises:
        UntoldError: If the denominator is zero.
    """
    if below.value <= 0:
        raise UntoldError("would divide by zero")
    value = above.value / below.value
    if above.low is None or above.high is None or below.low is None or below.high is None:
        return Reading(value)
    high = above.high / below.low if below.low > 0 else math.inf
    return Reading(value, max(0.0, above.low) / below.high, high)


def read_estimated(tree: Any) -> Reading:
    """An estimate with the interval that it comes with.

    Args:
        tree: A dictionary with `value` and `ci95`.

    Returns:
        The estimate.

    Raises:
        UntoldError: If there is no number.
    """
    found = read_estimate(tree)
    if found is None:
        raise UntoldError(MISSING)
    return Reading(found.value, found.low, found.high)


def take_as_it_is(value: float | None, note: str = "") -> Reading:
    """A number that comes without an interval, to be held against a line as it is.

    Args:
        value: The number.
        note: Another number to show beside it.

    Returns:
        The number with an interval of no width.

    Raises:
        UntoldError: If there is no number.
    """
    if value is None:
        raise UntoldError(MISSING)
    return Reading(value, value, value, note)


def average(readings: Sequence[Interval]) -> Interval:
    """Mean of several numbers.

    Args:
        readings: At least one.

    Returns:
        Their mean, from the mean of the lower ends to that of the upper ones.
    """

    def mean(ends: Sequence[float | None]) -> float | None:
        known = [end for end in ends if end is not None]
        return sum(known) / len(known) if len(known) == len(ends) else None

    value = sum(reading.value for reading in readings) / len(readings)
    return Interval(value, mean([r.low for r in readings]), mean([r.high for r in readings]))
