"""Text on sheets of maps, in lines that are no wider than their place."""

import textwrap
from collections.abc import Iterable

from vitscope.figures.rendering.style import PAGE_IN, chosen_style

_NO_BREAK = "\u00a0"


def page_width() -> float:
    """Width of a sheet in inches."""
    return chosen_style().width_in or PAGE_IN


def wrap(lines: Iterable[str], letters: int) -> tuple[str, ...]:
    """Break lines, but not between a number and its unit."""
    whole = [line.replace(" %", f"{_NO_BREAK}%") for line in lines]
    return tuple(part for line in whole for part in textwrap.wrap(line, letters))


def wrap_across(lines: Iterable[str], letters: int) -> tuple[str, ...]:
    """Break lines over the whole width of a sheet; a page has so many letters."""
    return wrap(lines, int(letters * page_width() / PAGE_IN))


def wrap_notes(lines: Iterable[str], letters: int) -> tuple[str, ...]:
    """Break lines below the maps, or leave them out if no notes are wanted."""
    return wrap_across(lines if chosen_style().has_notes else (), letters)


def keep_together(line: str) -> str:
    """Leave no break between the words of an item."""
    return ", ".join(item.replace(" ", _NO_BREAK) for item in line.split(", "))
