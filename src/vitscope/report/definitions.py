"""What the words of the report mean, for the section that every figure links to."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Definition:
    """A word and what it means.

    Attributes:
        key: Anchor in the page.
        title: The word.
        text: What it means, in plain text.
    """

    key: str
    title: str
    text: str


@cache
def read_definitions() -> dict[str, Definition]:
    """All definitions, in the order of the page."""
    text = files("vitscope.report").joinpath("definitions.toml").read_text(encoding="utf-8")
    return {key: Definition(key, **content) for key, content in tomllib.loads(text).items()}
