"""Generates the table of models with built-in names in docs/catalogue.md from the catalogue.

python tests/catalogue_page.py    rewrites the page
"""

from itertools import groupby
from pathlib import Path

from vitscope.weights.catalogue import CATALOGUE, FAMILIES, SIZE_CLASSES

PAGE = Path(__file__).parent.parent / "docs" / "catalogue.md"
HEAD = """# Models with built-in names

Made by `python tests/catalogue_page.py` from the catalogue; tests compare every line with the
model that the installed library builds. `vitscope models` lists the same and shows which weights
are on your machine.

Parameters are those of the vision tower that is analysed. The download is the whole file in
float32, for CLIP including its text tower, for DeiT III its classifier. None is gated. A family's
short name is in brackets. The class groups sizes across families: {classes}.
"""
COLUMNS = """
| name | size | class | parameters | width / blocks / heads | patch | tokens | download | source |
|---|---|---|---|---|---|---|---|---|
"""


def make_page():
    limits = [f"{name} below {limit / 1e6:.0f} million" for name, limit in SIZE_CLASSES.items()]
    classes = ", ".join([*limits[:-1], f"{list(SIZE_CLASSES)[-1]} from there on"])
    families = groupby(CATALOGUE.values(), key=lambda entry: entry.family_key)
    return HEAD.format(classes=classes) + "".join(make_family(list(e)) for _, e in families)


def make_family(entries):
    first = entries[0]
    heading = (
        f"\n## {FAMILIES[first.family_key]} (`{first.family_key}`)\n\nLicence: {first.licence}.\n"
    )
    for note in dict.fromkeys(entry.note for entry in entries if entry.note):
        named = [entry.name for entry in entries if entry.note == note]
        whose = "Note" if len(named) == len(entries) else f"Note of {', '.join(named)}"
        heading += f"{whose}: {note}.\n"
    return heading + COLUMNS + "".join(make_row(entry) for entry in entries)


def make_row(entry):
    cells = (
        f"`{entry.name}`",
        entry.size,
        entry.size_class,
        f"{entry.num_params:,}",
        f"{entry.width} / {entry.depth} / {entry.num_heads}",
        str(entry.patch_size),
        entry.layout.describe(),
        entry.download,
        f"{entry.source} (by hand)" if entry.checkpoint else f"`{entry.source}`",
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
