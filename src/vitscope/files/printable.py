"""Make arbitrary text and paths safe for terminals, pages, logs and Markdown."""

import os
import re
from collections.abc import Sequence
from pathlib import Path


def printable_path(path: Path | str) -> str:
    r"""A path as printable UTF-8 text."""
    return printable(os.fsencode(path).decode("utf-8", errors="backslashreplace"))


def printable(text: str) -> str:
    """Escape everything that could move a terminal's cursor, change its title or hide text."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def name_some(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def join_words(words: Sequence[str], conjunction: str = "and", most: int | None = None) -> str:
    """A list in a sentence, of the first words and how many more there are."""
    if most is not None and len(words) > most:
        return name_some(words, most)
    return f" {conjunction} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


# Folders of an absolute path, but no part of a URL, a fraction or a relative path.
_FOLDERS = re.compile(r"(?<![\w.:/\\~<-])(?:~?/|[A-Za-z]:[/\\])(?:[^\s/\\<>]+[/\\])+")


def without_folders(text: str) -> str:
    """Leave out the folders of absolute paths, which tell of the machine and not of the numbers."""
    return _FOLDERS.sub("", text)


_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# Characters that emphasise, quote, link, end a cell or start a formula, including GitHub's
# extensions of CommonMark: bare addresses, strikethrough, formulas, mentions.
_MARKUP = re.compile(r"[\\`*_~\[\]|$@]|:(?=//)|(?<=www)\.", re.IGNORECASE)
# Headings, lists and rules, which only start at the beginning of a line.
_START = re.compile(r"^(?=[#+=-])|^\d{1,9}(?=[.)])")


def escape_markdown(text: str) -> str:
    """Escape text for one line of Markdown (CommonMark 0.31.2, sections 2.4 and 2.5)."""
    line = " ".join(text.split())
    escaped = _MARKUP.sub(r"\\\g<0>", line)
    escaped = _START.sub(r"\g<0>\\", escaped)
    # Entities, because not every reader accepts a backslash before these characters.
    return "".join(_ENTITIES.get(letter, letter) for letter in escaped)
