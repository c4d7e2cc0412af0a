"""Generates the table of map methods in docs/recipes/maps.md from the registry.

python tests/maps_page.py    rewrites the table
"""

import re
from pathlib import Path

from vitscope.maps.registry import METHODS
from vitscope.maps.token_maps import DEFAULT_MAPS
from vitscope.runs.judge_run import ALWAYS
from vitscope.runs.judge_run import DEFAULT_MAPS as JUDGED

PAGE = Path(__file__).parent.parent / "docs" / "recipes" / "maps.md"
HEAD = """| map | default | kind | passes | source |
|---|---|---|---|---|
"""
_DEFAULTS = {"explain": DEFAULT_MAPS, "judge": (*ALWAYS, *JUDGED)}
_TABLE = re.compile(r"^\| map \| default .*\n(\|.*\n)*", re.MULTILINE)


def make_table():
    return HEAD + "".join(map(_make_row, METHODS.values()))


def _make_row(method):
    used = ", ".join(command for command, names in _DEFAULTS.items() if method.name in names)
    flags = {"signed": method.signed, "target": method.targeted, "references": method.compares}
    kind = ", ".join(word for word, is_so in flags.items() if is_so)
    passes = method.cost.removeprefix("about ")
    cells = (f"`{method.name}`<br>{method.title}", used, kind, passes, method.source)
    return f"| {' | '.join(cells)} |\n"


def make_page():
    return _TABLE.sub(lambda _: make_table(), PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
