"""The fenced code blocks of the documentation, as the tests read them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
_BLOCK = re.compile(
    r"""
    (?:^<!--\ not\ run:\ (?P<reason>[^>]+?)\ -->\n)?
    ^(?P<indent>\ *)```(?P<language>[\w-]*)[^\n]*\n
    (?P<code>.*?)
    ^(?P=indent)```\ *$
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
_PROMPT = "$ "


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: Text after the opening fence.
        code: Text between the fences.
        line: Line of the opening fence, from 1.
        reason: Why the block is not run; None if it is run.
    """

    language: str
    code: str
    line: int
    reason: str | None

    @property
    def commands(self):
        """The commands of a console block, without prompts and comments."""
        lines = re.sub(r"\\\n\s*", "", self.code).splitlines()
        typed = [line.removeprefix(_PROMPT) for line in lines if line.startswith(_PROMPT)]
        return [re.sub(r"\s+# .*", "", line) for line in typed]


def read_blocks(page):
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            language=found["language"],
            code=found["code"],
            line=text.count("\n", 0, found.start("indent")) + 1,
            reason=found["reason"],
        )
        for found in _BLOCK.finditer(text)
    ]


def name_page(page):
    return page.relative_to(ROOT).as_posix()
