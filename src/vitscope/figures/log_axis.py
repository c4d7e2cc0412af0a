"""Ticks of a logarithmic axis as plain numbers."""

import math

from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

_MOST_TICKS = 5


def use_plain_ticks(axis: Axis) -> None:
    """Few ticks at round numbers, written out instead of as powers of ten.

    Args:
        axis: A logarithmic axis whose limits are those that it will keep.
    """
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(FixedLocator(_choose_ticks(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _format_tick(value)))


def _choose_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= _MOST_TICKS:
            return ticks
    return ticks


def _format_tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:.2g}"
