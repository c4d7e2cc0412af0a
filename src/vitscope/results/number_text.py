"""Numbers as text: rounded zero has no sign, and negative numbers have a minus sign."""

import math


def write_number(value: float, digits: int | None = None) -> str:
    """A number with some decimals, by default those that its size asks for."""
    if math.isnan(value):
        return "undefined"
    if digits is None:
        digits = 3 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")


def write_percent(share: float) -> str:
    """A share as a percentage."""
    return "undefined" if math.isnan(share) else f"{write_number(100 * share, 1)} %"
