"""Text and paths from anywhere as a terminal, a page or a log may show them."""

import os
from pathlib import Path


def printable_path(path: Path) -> str:
    r"""A path as text that any file format and any terminal takes."""
    return printable(os.fsencode(path).decode("utf-8", errors="backslashreplace"))


def printable(text: str) -> str:
    """Text that cannot move a terminal's cursor, change its title or hide what follows."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
