"""`vitscope figures`."""

from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from vitscope.errors import UsageError
from vitscope.files.printable import printable_path


def figures(
    *results: Path,
    out: Path,
    format: list[Literal["png", "pdf", "svg"]] | None = None,  # noqa: A002 - the option's name
    readout: Literal["attention", "values"] = "attention",
    overwrite: bool = False,
) -> None:
    """Draw every figure that saved results have the numbers for.

    No model is loaded. index.md beside the figures lists what is drawn, from which results, and
    what is not and why.

    Example:  vitscope figures results --out figures --format pdf

    Args:
        results: Results, or folders containing results.
        out: Folder for the figures.
        format: File format, once per format; png and pdf by default.
        readout: Readout of Fig. 3: attention is after the output projection, values before it,
            where the paper's equations stop.
        overwrite: Replace earlier figures there.

    Raises:
        UsageError: If no result is named.
    """
    if not results:
        raise UsageError("no result was given: name one or more folders of results")
    from vitscope.figures.draw import draw_figures  # here, for what it imports is slow

    drawn = draw_figures(
        results, out, formats=format or ("png", "pdf"), readout=readout, overwrite=overwrite
    )
    console = Console()
    for figure in drawn.drawn:
        console.print(Text(f"{figure.name}: {_count(figure.shown)}"), soft_wrap=True)
        for label, reason in figure.omitted.items():
            console.print(Text(f"  not shown: {label}: {reason}", style="dim"), soft_wrap=True)
    for name, reason in drawn.skipped.items():
        console.print(Text(f"not drawn: {name}: {reason}", style="yellow"), soft_wrap=True)
    where = f"{len(drawn.drawn)} figures written to {printable_path(out)}"
    console.print(Text(where), soft_wrap=True)


def _count(shown: tuple[object, ...]) -> str:
    return f"{len(shown)} result{'s' * (len(shown) != 1)}"
