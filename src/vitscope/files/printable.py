"""Text and paths from anywhere as a terminal, a page or a log may show them."""

import os
from pathlib import Path


def printable_path(path: Path) -> str:
    r"""A path as text that any file format and any terminal takes.

    Args:
        path: Any path; its name may hold bytes that are not UTF-8, and control characters.

    Returns:
        The path with such bytes written as \xNN and what cannot be printed as Python escapes it.
    """
    return printable(os.fsencode(path).decode("utf-8", errors="backslashreplace"))


def printable(text: str) -> str:
    """Text that cannot move a terminal's cursor, change its title or hide what follows.

    Args:
        text: Any text.

    Returns:
        The text with everything that cannot be printed as Python escapes it.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
