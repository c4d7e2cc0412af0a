"""Criteria with three answers: met, not met, and undecided.

A criterion is met if the whole 95 % interval of a number is on its side of the threshold, and not
met if the whole interval is on the other side. Criteria combine by Kleene's three-valued logic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, get_args

from vitscope.reproduction.evidence import Ends, Measured

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
    return _hold(number, line, "above", 1)


def below(number: Measured, line: float) -> Check:
    """Whether a number is below a threshold."""
    return _hold(number, line, "below", -1)


def between(number: Measured, low: float, high: float) -> Check:
    """Whether a number is between two thresholds."""
    return all_of([above(number, low), below(number, high)])


def in_order(smaller: Measured, larger: Measured) -> Check:
    """Whether one number is smaller than another; conservative for two over the same images."""
    first, second = _title(smaller), f"in {larger.size}"
    if smaller.quantity != larger.quantity:
        first, second = smaller.quantity.name, _title(larger)
    return _answer(
        (smaller, larger),
        _direction(smaller.ends, larger.ends),
        f"{first} is not smaller than {second}",
        f"the intervals of {first} and {second} overlap",
    )


def rises(numbers: Sequence[Measured]) -> Check:
    """Whether a number rises with size."""
    return _follow(numbers, 1)


def falls(numbers: Sequence[Measured]) -> Check:
    """Whether a number falls with size."""
    return _follow(numbers, -1)


def has_no_order(numbers: Sequence[Measured]) -> Check:
    """Whether a number neither rises nor falls with size throughout."""
    if len(numbers) < 3:
        return _answer(numbers, 0, "", "an order takes three sizes or more")
    signs = _directions(numbers)
    way = "rises" if signs[0] > 0 else "falls"
    return _answer(
        numbers,
        1 if {1, -1} <= {*signs} else -(0 not in signs),
        f"{numbers[0].quantity.name} {way} with every size",
        "the intervals of some sizes overlap",
    )


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


def _answer(numbers: Sequence[Measured], sign: int, not_met: str, unclear: str) -> Check:
    """Met if the sign is positive, not met if it is negative; undecided if a number is missing."""
    gaps = tuple(dict.fromkeys(number.gap for number in numbers if number.gap))
    if gaps or sign == 0:
        return Check("cannot tell", gaps or (unclear,), tuple(numbers))
    if sign > 0:
        return Check("agrees", (), tuple(numbers))
    return Check("disagrees", (not_met,), tuple(numbers))


def _hold(number: Measured, line: float, word: str, side: int) -> Check:
    return _answer(
        (number,),
        side * _direction((line, line), number.ends),
        f"{_title(number)} is not {word} {_format(line)}",
        f"the interval of {_title(number)} contains {_format(line)}",
    )


def _follow(numbers: Sequence[Measured], side: int) -> Check:
    if len(numbers) < 2 or any(number.gap for number in numbers):
        return _answer(numbers, 0, "", "a trend takes two sizes or more")
    signs = [side * sign for sign in _directions(numbers)]
    along, against = signs.count(1), signs.count(-1)
    told = f"of {along + against} pairs of sizes that differ, {against} go the other way"
    most = _answer(numbers, 1 if along > against else -bool(against), told, told)
    ends = numbers[0], numbers[-1]
    return replace(all_of([in_order(*ends[::side]), most]), numbers=tuple(numbers))


def _directions(numbers: Sequence[Measured]) -> list[int]:
    return [_direction(first.ends, second.ends) for first, second in combinations(numbers, 2)]


def _direction(first: Ends, second: Ends) -> int:
    if first[1] < second[0]:
        return 1
    return -1 if second[1] < first[0] else 0


def _title(number: Measured) -> str:
    return f"{number.quantity.name} in {number.size}"


def _format(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")
