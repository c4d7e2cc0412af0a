"""`vitscope models`."""

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from itertools import groupby, takewhile
from json import dumps
from typing import TYPE_CHECKING

from rich.console import Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from vitscope.cli.output import make_console
from vitscope.errors import UsageError
from vitscope.weights.catalogue import CATALOGUE, FAMILIES, CatalogueEntry, describe_near_matches

if TYPE_CHECKING:
    from vitscope.weights.hub import WeightsState

    Row = tuple[CatalogueEntry, WeightsState]

_HEADINGS = ("name", "size", "params", "patches", "download", "weights")
_NUMBERS = ("params", "patches", "download")
_STYLES = {"cached": "green", "embedded": "green", "by hand": "yellow", "not cached": "dim"}
_AT_HAND = ("cached", "embedded")
_GAP = "  "
_REPOSITORY_WIDTH = 41
_FOOT = (
    "The download is the whole file in float32, of CLIP with its text tower. A model without a "
    "built-in name goes by its id: vitscope audit --help."
)


def models(
    pattern: str | None = None,
    /,
    *,
    cached: bool = False,
    json: bool = False,
) -> None:
    """List the models with built-in names, and which weights are on this machine.

    Uses neither the network nor a model library.

    Example:  vitscope models dinov2

    Args:
        pattern: Part of a name or family ("reg", "siglip"), or a glob pattern ("clip-b??").
        cached: List only models whose weights are on this machine.
        json: Print everything about each model as JSON.
    """
    from vitscope.weights.hub import find_weights  # here, because importing it is slow

    rows = [(entry, find_weights(entry)) for entry in _select(pattern)]
    if cached:
        rows = [(entry, weights) for entry, weights in rows if weights in _AT_HAND]
    if json:
        _write_json(rows)
    elif rows:
        console = make_console()
        console.print(_make_list(rows, console.width))
    else:
        make_console().print("none of these models is on this machine")


def _select(pattern: str | None) -> list[CatalogueEntry]:
    wanted = (pattern or "").lower()
    if not set(wanted) & set("*?["):
        wanted = f"*{wanted}*"
    found = [entry for entry in CATALOGUE.values() if _is_named(entry, wanted)]
    if not found:
        near = describe_near_matches(str(pattern), [*CATALOGUE, *FAMILIES])
        raise UsageError(
            f"no model of the catalogue has {pattern!r} in its name or family: "
            f"`vitscope models` lists all{near}"
        )
    return found


def _is_named(entry: CatalogueEntry, wanted: str) -> bool:
    names = (entry.name, entry.family_key, entry.family.lower(), FAMILIES[entry.family_key].lower())
    return any(fnmatchcase(name, wanted) for name in names)


def _write_json(rows: "Sequence[Row]") -> None:
    content = [
        asdict(entry)
        | {
            "library": entry.library,
            "size_class": entry.size_class,
            "source": entry.source,
            "grid": entry.layout.grid,
            "tokens": entry.layout.describe(),
            "weights": weights,
        }
        for entry, weights in rows
    ]
    sys.stdout.write(dumps(content, indent=1) + "\n")


def _make_list(rows: "Sequence[Row]", width: int) -> Group:
    lines = [_HEADINGS, *(_make_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # If repository names do not fit beside the numbers, each family gets one line with its names.
    wide = width >= sum(widths) + len(_GAP) * len(widths) + _REPOSITORY_WIDTH
    parts: list[Table | Text] = [_make_table([], widths, wide=wide, header=True)]
    for _, members in groupby(rows, key=lambda row: row[0].family_key):
        of_family = list(members)
        heading = _describe_family([entry for entry, _ in of_family], sources=not wide)
        parts += [heading, _make_table(of_family, widths, wide=wide)]
    at_hand = sum(weights in _AT_HAND for _, weights in rows)
    count = f"{len(rows)} model{'s' * (len(rows) > 1)}, {at_hand} on this machine"
    return Group(*parts, Text(f"\n{count}. {_FOOT}", style="dim"))


def _make_cells(row: "Row") -> tuple[str, ...]:
    entry, weights = row
    rows, columns = entry.layout.grid
    return (
        entry.name,
        entry.size,
        f"{entry.num_params / 1e6:,.0f} M",
        f"{rows} x {columns}",
        entry.download,
        weights,
    )


def _make_table(
    rows: "Sequence[Row]", widths: Sequence[int], *, wide: bool, header: bool = False
) -> Table:
    # The same widths for all tables, so that their columns align.
    table = Table(box=None, show_header=header, padding=(0, len(_GAP), 0, 0), pad_edge=False)
    for heading, width in zip(_HEADINGS, widths, strict=True):
        side: JustifyMethod = "right" if heading in _NUMBERS else "left"
        table.add_column(heading, justify=side, width=width, overflow="fold")
    if wide:
        table.add_column("source", overflow="fold")
    for row in rows:
        *cells, weights = _make_cells(row)
        source = [row[0].source] if wide else []
        table.add_row(*cells, Text(weights, style=_STYLES[weights]), *source)
    return table


def _describe_family(entries: Sequence[CatalogueEntry], *, sources: bool) -> Text:
    first = entries[0]
    counts = [f"{len(p)} {name}" for name, p in first.layout.groups.items() if name != "patches"]
    pooled = [] if first.global_feature == "cls" else [first.global_feature]
    facts = ", ".join([first.licence, " + ".join([*counts, "patches"]), *pooled])
    name = FAMILIES[first.family_key]
    text = Text.assemble(("\n" + name, "bold"), f" ({first.family_key}): {facts}")
    if sources:
        text.append(f"\nfrom {_abbreviate([entry.source for entry in entries])}", style="dim")
    for note, noted in groupby(entries, key=lambda entry: entry.note):
        names = [entry.name for entry in noted]
        if note:
            whose = "" if len(names) == len(entries) else f" of {', '.join(names)}"
            text.append(f"\nnote{whose}: {note}", style="dim")
    return text


# Names with a common prefix and suffix, as a shell pattern: a-{b, c}-d.
def _abbreviate(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    start = _find_shared_start(names)
    end = _find_shared_start([name[::-1] for name in names])[::-1]
    differing = (name[len(start) : len(name) - len(end)] for name in names)
    return f"{start}{{{', '.join(differing)}}}{end}"


def _find_shared_start(names: Sequence[str]) -> str:
    letters = takewhile(lambda each: len(set(each)) == 1, zip(*names, strict=False))
    # Up to the last complete word.
    return re.sub(r"[^/_.-]*$", "", "".join(each[0] for each in letters))
