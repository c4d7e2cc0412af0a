"""Commands on saved results: `vitscope merge`, `figures`, `report` and `cite`."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from vitscope.cli.output import make_console
from vitscope.cli.settings import Result, in_options
from vitscope.errors import UsageError
from vitscope.files.printable import printable_path
from vitscope.images.paths import expand

if TYPE_CHECKING:
    from vitscope.results.mergeable import MergeableResult


def find_folders(given: Iterable[Path]) -> list[Path]:
    """What names and wildcards stand for; what is not there is refused before torch is imported."""
    folders = [Path(each) for name in given for each in expand(name)]
    for folder in folders:
        if not os.path.lexists(folder):
            raise UsageError(
                f"{printable_path(folder)} does not exist: expected a result of vitscope, or a "
                "folder that holds some"
            )
    return folders


def merge(*results: Result, out: Path, overwrite: bool = False) -> None:
    """Merge audits or judgements of different images, such as those of --shard 1/16 to 16/16.

    They must be of the same model, weights and settings, and share no image.

    Example:  vitscope merge results-a/dinov2-small results-b/dinov2-small --out merged

    Args:
        results: Audits, or judgements: folders with a summary.json.
        out: Folder for the merged result.
        overwrite: Replace an earlier result there.
    """
    folders = find_folders(results)
    if len(folders) < 2:
        raise UsageError("one result was given: name two or more folders to merge")
    from vitscope.files.storage import check_target, is_result, never
    from vitscope.results.audit_result import AuditResult
    from vitscope.results.judge_result import JudgeResult
    from vitscope.results.schema import AuditSummary, JudgementSummary, read_summary
    from vitscope.terminal import make_report

    check_target(out, is_result if overwrite else never)
    kinds: dict[str, type[MergeableResult]] = {
        AuditSummary.KIND: AuditResult,
        JudgementSummary.KIND: JudgeResult,
    }
    kind = kinds[read_summary(folders[0], AuditSummary, JudgementSummary).KIND]
    first, *others = map(kind.load, folders)
    merged = first.merge(*others, out=out, overwrite=overwrite)
    console = make_console()
    console.print(make_report(merged.summary))
    if (missing := merged.missing_shards) is None:
        told = "these are shards of different lists of images: missing shards cannot be determined"
        console.tell(told)
    elif missing:
        console.tell(f"still missing: {', '.join(missing)}")
    console.tell(f"written to {printable_path(out)}")


def figures(
    *results: Result,
    out: Path,
    only: list[str] | None = None,
    format: list[Literal["png", "pdf", "svg"]] | None = None,  # noqa: A002 - the option's name
    readout: Literal["attention", "values"] = "attention",
    style: str | None = None,
    width: float | None = None,
    caption: Annotated[bool, Parameter(negative="--no-caption")] = True,
    overwrite: bool = False,
) -> None:
    """Draw every figure that saved results have the numbers for.

    index.md lists them with captions, and what is not drawn and why; captions.tex is for LaTeX.

    Example:  vitscope figures results --out figures --format pdf

    Args:
        results: Results, or folders containing results.
        out: Folder for the figures.
        only: Draw only figures with this in their name, such as variance_share; once per name.
        format: File format, once per format; png and pdf by default.
        readout: Readout of Fig. 3: attention is after the output projection, values before it.
        style: Style of matplotlib for fonts, lines and grids, by its name or file, such as ggplot.
        width: Width of every figure, such as 3.5in or 9cm; a column (3.5in) or a page (7.2in) by
            default.
        caption: Write captions under the figures.
        overwrite: Replace earlier figures there.
    """
    folders = find_folders(results)
    from vitscope.figures.draw import draw_figures  # here, because importing it is slow

    drawn = draw_figures(
        folders,
        out,
        only=only or (),
        formats=format or ("png", "pdf"),
        readout=readout,
        style=style,
        width=width,
        caption=caption,
        overwrite=overwrite,
        tell=in_options,
    )
    console = make_console()
    for figure in drawn.drawn:
        console.tell(f"{figure.name}: {_count(figure.shown, 'result')}")
        for label, reason in figure.omitted.items():
            console.tell(f"  not shown: {label}: {in_options(reason)}", "dim")
    if drawn.skipped:
        where = printable_path(out / "index.md")
        console.tell(f"{len(drawn.skipped)} not drawn: {where} says why", "yellow")
    console.tell(f"{_count(drawn.drawn, 'figure')} written to {printable_path(out)}")


def _count(items: tuple[object, ...], name: str) -> str:
    return f"{len(items)} {name}{'s' * (len(items) != 1)}"


def report(*results: Result, out: Path = Path("report.html"), overwrite: bool = False) -> None:
    """Write saved results as one HTML file without external resources.

    Verdicts, charts side by side and a gallery of images with their maps.

    Example:  vitscope report results --out report.html

    Args:
        results: Results, or folders containing results.
        out: File to write.
        overwrite: Replace an earlier report there.
    """
    folders = find_folders(results)
    from vitscope.report import write_report  # here, because importing it is slow

    write_report(folders, out, overwrite=overwrite)
    size = out.stat().st_size / 2**20
    make_console().tell(f"report written to {printable_path(out)} ({size:.1f} MB)")


def cite(result: Path, /) -> None:
    """Print how a verdict is cited: one sentence, BibTeX, and a table for a model card.

    They have all that the verdict rests on: model and weights, images, settings, version.

    Example:  vitscope cite results-a/dinov2-small

    Args:
        result: An audit or a judgement.
    """
    from vitscope.results.saved_result import SavedResult

    found = SavedResult.load(result).cite()
    for text in (f"{found.sentence}\n", found.bibtex, found.card):
        make_console().out(text, highlight=False)  # as it is, whatever the terminal's width
