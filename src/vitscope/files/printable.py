"""Text and paths from anywhere as a terminal, a page, a log or Markdown may show them."""

import os
import re
from pathlib import Path


def printable_path(path: Path) -> str:
    r"""A path as text that any file format and any terminal takes."""
    return printable(os.fsencode(path).decode("utf-8", errors="backslashreplace"))


def printable(text: str) -> str:
    """Text that cannot move a terminal's cursor, change its title or hide what follows."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# What emphasises, quotes, links, ends a cell or starts a formula, also where GitHub adds to
# CommonMark: bare addresses, crossed out words, formulas, people.
_MARKUP = re.compile(r"[\\`*_~\[\]|$@]|:(?=//)|(?<=www)\.", re.IGNORECASE)
# A heading, a list, a rule, only where a line starts.
_START = re.compile(r"^(?=[#+=-])|^\d{1,9}(?=[.)])")


def escape_markdown(text: str) -> str:
    """Text as one line of Markdown that shows it and nothing else.

    Source:
        CommonMark 0.31.2, sections 2.4 (backslash escapes) and 2.5 (entities).
    """
    line = " ".join(text.split())
    escaped = _MARKUP.sub(r"\\\g<0>", line)
    escaped = _START.sub(r"\g<0>\\", escaped)
    # Entities, for not every reader knows a backslash before them.
    return "".join(_ENTITIES.get(letter, letter) for letter in escaped)
