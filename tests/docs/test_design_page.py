"""The page of the design names files that are there, and every room of the package."""

import re

from page_blocks import ROOT

PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "vitscope"
NAMED = set(re.findall(r"`([\w/]+(?:\.(?:py|toml)|/))`", PAGE))


def test_every_path_on_the_page_exists():
    assert len(NAMED) > 30
    assert [path for path in sorted(NAMED) if not find(path)] == []


def find(path):
    at = [SOURCE / path, ROOT / path]
    return [one for one in at if (one.is_dir() if path.endswith("/") else one.is_file())]


def test_every_room_has_its_row():
    rows = "\n".join(line for line in PAGE.partition("## Rooms")[2].splitlines() if line[:1] == "|")
    rooms = {f"{path.parent.name}/" for path in SOURCE.glob("*/__init__.py")}
    assert rooms
    assert rooms <= set(re.findall(r"`(\w+/)`", rows))


def test_what_is_named_in_a_file_is_defined_there():
    """`ledger.py` (`compute_scalars`): the name in brackets is in the file."""
    pairs = re.findall(r"`([\w/]+\.py)` \(`(\w+)`\)", PAGE)
    assert len(pairs) >= 4
    for path, name in pairs:
        source = find(path)[0].read_text(encoding="utf-8")
        assert re.search(rf"^(?:def |class )?{name}\b", source, re.MULTILINE), (path, name)
