"""Ticks of a logarithmic axis as plain numbers."""

import math

from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

_MOST_TICKS = 5
_NARROW = 2


def use_plain_ticks(axis: Axis) -> None:
    """Few ticks at round numbers, written out instead of as powers of ten."""
    low, high = sorted(axis.get_view_interval())
    narrow = high < _NARROW * low
    ticks = MaxNLocator(_MOST_TICKS - 1) if narrow else FixedLocator(_choose_ticks(low, high))
    axis.set_major_locator(ticks)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _format_tick(value)))


def _choose_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= _MOST_TICKS:
            return ticks
    return ticks


def _format_tick(value: float) -> str:
    return f"{value:,g}" if value >= 1 else f"{value:.3g}"
