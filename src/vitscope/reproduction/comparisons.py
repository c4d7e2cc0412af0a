"""Criteria with three answers: met, not met, and undecided.

A criterion is met if the whole 95 % interval of a number is on its side of the threshold, and not
met if the whole interval is on the other side. Criteria combine by Kleene's three-valued logic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, get_args

from vitscope.reproduction.evidence import Measured

Answer = Literal["agrees", "disagrees", "cannot tell"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)


@dataclass(frozen=True)
class Check:
    """A criterion applied to numbers."""

    answer: Answer  # whether it is met
    reasons: tuple[str, ...]  # why it is not met or undecided; empty if it is met
    numbers: tuple[Measured, ...]


def above(number: Measured, line: float) -> Check:
    """Whether a number is above a threshold."""
    return _hold(number, line, 1)


def below(number: Measured, line: float) -> Check:
    """Whether a number is below a threshold."""
    return _hold(number, line, -1)


def between(number: Measured, low: float, high: float) -> Check:
    """Whether a number is between two thresholds."""
    return all_of([above(number, low), below(number, high)])


def in_order(smaller: Measured, larger: Measured) -> Check:
    """Whether one number is smaller than another; conservative for two over the same images."""
    numbers = (smaller, larger)
    if gaps := _gaps(numbers):
        return Check("cannot tell", gaps, numbers)
    sign = _direction(smaller, larger)
    if sign > 0:
        return Check("agrees", (), numbers)
    if sign < 0:
        first, second = _tell_apart(smaller, larger)
        reason = f"{first} is not smaller than {second}"
        return Check("disagrees", (reason,), numbers)
    reason = f"the intervals of {' and '.join(_tell_apart(smaller, larger))} overlap"
    return Check("cannot tell", (reason,), numbers)


def rises(numbers: Sequence[Measured]) -> Check:
    """Whether a number rises with size."""
    return _follow(numbers, 1)


def falls(numbers: Sequence[Measured]) -> Check:
    """Whether a number falls with size."""
    return _follow(numbers, -1)


def has_no_order(numbers: Sequence[Measured]) -> Check:
    """Whether a number neither rises nor falls with size throughout."""
    numbers = tuple(numbers)
    if gaps := _gaps(numbers):
        return Check("cannot tell", gaps, numbers)
    if len(numbers) < 3:
        return Check("cannot tell", ("an order takes three sizes or more",), numbers)
    signs = _directions(numbers)
    if 1 in signs and -1 in signs:
        return Check("agrees", (), numbers)
    if 0 not in signs:
        way = "rises" if signs[0] > 0 else "falls"
        reason = f"{numbers[0].quantity.name} {way} with every size"
        return Check("disagrees", (reason,), numbers)
    return Check("cannot tell", ("the intervals of some sizes overlap",), numbers)


def all_of(checks: Sequence[Check]) -> Check:
    """Whether all of several criteria are met."""
    assert checks, "of no criteria nothing can be said"
    answers = [check.answer for check in checks]
    answer: Answer = "agrees"
    if "disagrees" in answers:
        answer = "disagrees"
    elif "cannot tell" in answers:
        answer = "cannot tell"
    decisive = [check for check in checks if check.answer == answer]
    return Check(
        answer,
        tuple(dict.fromkeys(reason for check in decisive for reason in check.reasons)),
        tuple(dict.fromkeys(number for check in checks for number in check.numbers)),
    )


def describe(numbers: Sequence[Measured]) -> str:
    """Numbers as one line of text, with intervals and the number of images."""
    found = [number for number in numbers if number.reading is not None]
    if not found:
        return "not measured"
    texts: dict[str, list[str]] = {}
    for number in found:
        texts.setdefault(number.quantity.name, []).append(_show(number))
    counts = sorted({number.count for number in found})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return "; ".join([*(f"{name}: {', '.join(each)}" for name, each in texts.items()), f"n = {n}"])


def _show(number: Measured) -> str:
    reading = number.reading
    assert reading is not None
    text = f"{number.size} {_format(reading.value)}"
    if reading.low is not None and reading.high is not None and reading.low < reading.high:
        text += f" [{_format(reading.low)}, {_format(reading.high)}]"
    return f"{text} ({reading.note})" if reading.note else text


def _hold(number: Measured, line: float, side: int) -> Check:
    if number.gap:
        return Check("cannot tell", (number.gap,), (number,))
    word = "above" if side > 0 else "below"
    nearest, farthest = sorted(side * (end - line) for end in number.ends)
    if nearest > 0:
        return Check("agrees", (), (number,))
    if farthest < 0:
        reason = f"{_title(number)} is not {word} {_format(line)}"
        return Check("disagrees", (reason,), (number,))
    reason = f"the interval of {_title(number)} contains {_format(line)}"
    return Check("cannot tell", (reason,), (number,))


def _follow(numbers: Sequence[Measured], side: int) -> Check:
    numbers = tuple(numbers)
    if gaps := _gaps(numbers):
        return Check("cannot tell", gaps, numbers)
    if len(numbers) < 2:
        return Check("cannot tell", ("a trend takes two sizes or more",), numbers)
    ends = numbers[0], numbers[-1]
    check = all_of([in_order(*ends[::side]), _most_follow(numbers, side)])
    return replace(check, numbers=numbers)


def _most_follow(numbers: tuple[Measured, ...], side: int) -> Check:
    signs = [side * sign for sign in _directions(numbers)]
    along, against = signs.count(1), signs.count(-1)
    if along > against:
        return Check("agrees", (), numbers)
    told = f"of {along + against} pairs of sizes that differ, {against} go the other way"
    return Check("disagrees" if against else "cannot tell", (told,), numbers)


def _directions(numbers: Sequence[Measured]) -> list[int]:
    return [_direction(first, second) for first, second in combinations(numbers, 2)]


def _direction(first: Measured, second: Measured) -> int:
    if first.ends[1] < second.ends[0]:
        return 1
    return -1 if second.ends[1] < first.ends[0] else 0


def _gaps(numbers: Sequence[Measured]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(number.gap for number in numbers if number.gap))


def _title(number: Measured) -> str:
    return f"{number.quantity.name} in {number.size}"


def _tell_apart(first: Measured, second: Measured) -> tuple[str, str]:
    if first.quantity == second.quantity:
        return _title(first), f"in {second.size}"
    return first.quantity.name, _title(second)


def _format(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")
