"""Generates the table of models with built-in names in docs/catalogue.md from the catalogue.

python tests/catalogue_page.py    rewrites the page
"""

from itertools import groupby
from pathlib import Path

from vitscope.weights.catalogue import CATALOGUE, FAMILIES, SIZE_CLASSES

PAGE = Path(__file__).parent.parent / "docs" / "catalogue.md"
HEAD = """# Models with built-in names

Made by `python tests/catalogue_page.py`; tests compare every line with the model that is built.
`vitscope models` shows which weights are on your machine. No model is gated.

| family | `--families` | licence | registers | note |
|---|---|---|---|---|
"""
COLUMNS = """
Parameters are those of the vision tower, tokens those at the model's own input size, with [CLS] and
registers. The download is the whole file in float32. `reproduce --sizes` takes classes by number of
parameters: {classes}.

| name | parameters | width × blocks | patch | tokens | download | source |
|---|---|---|---|---|---|---|
"""


def make_page():
    limits = [f"{name} below {limit / 1e6:.0f}M" for name, limit in SIZE_CLASSES.items()]
    classes = ", ".join([*limits[:-1], f"{list(SIZE_CLASSES)[-1]} above"])
    families = groupby(CATALOGUE.values(), key=lambda entry: entry.family_key)
    rows = "".join(make_family(list(entries)) for _, entries in families)
    return (
        HEAD + rows + COLUMNS.format(classes=classes) + "".join(map(make_row, CATALOGUE.values()))
    )


def make_family(entries):
    first = entries[0]
    notes = []
    for note in dict.fromkeys(entry.note for entry in entries if entry.note):
        named = [f"`{entry.name}`" for entry in entries if entry.note == note]
        notes.append(note if len(named) == len(entries) else f"{', '.join(named)}: {note}")
    registers = str(first.num_registers or "")
    key = f"`{first.family_key}`"
    cells = (FAMILIES[first.family_key], key, first.licence, registers, ". ".join(notes))
    return f"| {' | '.join(cells)} |\n"


def make_row(entry):
    cells = (
        f"`{entry.name}`",
        shorten(entry.num_params),
        f"{entry.width} × {entry.depth}",
        str(entry.patch_size),
        str(entry.layout.num_tokens),
        entry.download,
        f"{entry.source} (by hand)" if entry.checkpoint else f"`{entry.source}`",
    )
    return f"| {' | '.join(cells)} |\n"


def shorten(count):
    return f"{count / 1e6:.1f}M" if count < 1e9 else f"{count / 1e9:.2f}B"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
