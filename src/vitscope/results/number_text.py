"""Numbers as text: rounded zero has no sign, and negative numbers have a minus sign."""

import math


class NumberText(str):
    """A number as text, with the number itself and the ends of its interval."""

    numbers: tuple[float, float | None, float | None]  # value, lower end, upper end

    def __new__(
        cls, text: str, value: float, low: float | None = None, high: float | None = None
    ) -> "NumberText":
        """Keep the numbers behind a text."""
        made = super().__new__(cls, text)
        made.numbers = (value, low, high)
        return made

    def after(self, words: str) -> "NumberText":
        """The same number with words before it."""
        return NumberText(words + self, *self.numbers)

    @property
    def exact(self) -> str:
        """The numbers to six digits, apart by spaces; empty if undefined."""
        known = (number for number in self.numbers if number is not None)
        return " ".join(f"{number:.6g}" for number in known if not math.isnan(number))


class StatusText(str):
    """A verdict as text, with its status."""

    status: str

    def __new__(cls, text: str, status: str) -> "StatusText":
        """Keep the status behind a text."""
        made = super().__new__(cls, text)
        made.status = status
        return made


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


def write_millions(params_m: float) -> str:
    """A number of parameters in millions, such as "86 M"."""
    return f"{params_m:,.0f} M" if params_m >= 10 else f"{params_m:.2g} M"
