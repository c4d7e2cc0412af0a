"""Figures as files: all that results have numbers for, or those of explained images."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from matplotlib import rcParams
from matplotlib.figure import Figure
from PIL import Image

from vitscope.errors import ResultError, UsageError
from vitscope.figures.captions import join_latex, write_caption, write_latex
from vitscope.figures.contributions import READOUTS, Readout
from vitscope.figures.description import NothingToDrawError
from vitscope.figures.questions import (
    Drawing,
    Plan,
    draw_heads,
    draw_image,
    open_results,
    plan_figures,
)
from vitscope.figures.rendering.style import (
    FigureStyle,
    chosen_style,
    drawn_in,
    in_style,
    read_style,
)
from vitscope.figures.saved import ModelResult, load_results, mark_differences, name_apart, slug
from vitscope.files.csv_files import write_csv
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.json_files import write_text
from vitscope.files.own_files import check_figures_target, is_figures, write_index
from vitscope.files.printable import escape_markdown, printable_path, without_folders
from vitscope.files.storage import MARKER, never, staged_folder
from vitscope.results.choices import describe_settings
from vitscope.results.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from vitscope.results.explanation import Explanation

Format = Literal["png", "pdf", "svg"]
FORMATS: tuple[Format, ...] = get_args(Format)
# No date or software, so the same numbers give the same bytes.
_METADATA: Mapping[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}


@dataclass(frozen=True)
class DrawnFigure:
    """A figure on disk."""

    name: str  # name of the figure, the same for every set of results
    files: tuple[Path, ...]
    table: Path  # its numbers as CSV
    caption: str
    latex: str  # a figure of LaTeX; its caption has what does not stand in the figure
    shown: tuple[ModelResult, ...]  # results on the figure
    omitted: Mapping[str, str]  # reason for each omitted result, by its label

    def describe(self) -> dict[str, Any]:
        """Its entry in the index."""
        return {
            "name": self.name,
            "files": [path.name for path in self.files],
            "table": self.table.name,
            "caption": self.caption,
            "results": [
                {
                    "folder": printable_path(Path(result.folder.absolute().name)),
                    "run": result.run,
                    "kind": result.kind,
                    "model": result.model_id,
                    "num_images": result.num_images,
                    "weights_hash": result.weights_hash,
                    "settings": describe_settings(result.summary),
                }
                for result in self.shown
            ],
            "omitted": self.omitted,
        }


@dataclass(frozen=True)
class FigureFolder:
    """The figures that `draw_figures` drew and those it skipped."""

    folder: Path
    drawn: tuple[DrawnFigure, ...]
    skipped: Mapping[str, str]  # reason for each figure that could not be drawn, by its name

    @property
    def files(self) -> list[Path]:
        """Every figure's files."""
        return [path for figure in self.drawn for path in figure.files]


def draw_figures(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    only: Sequence[str] = (),
    formats: Sequence[Format] = ("png", "pdf"),
    readout: Readout = "attention",
    style: str | Path | None = None,
    width: float | None = None,
    caption: bool = True,
    overwrite: bool = False,
    tell: Callable[[str], str] = str,
) -> FigureFolder:
    """Draw every figure that saved results have numbers for.

    Args:
        folders: Results, or folders containing results.
        out: Folder for the figures.
        only: Part of a name, or several, to draw only figures with one of these in their name.
        formats: "png", "pdf" or "svg", or several of them.
        readout: Readout of Fig. 3, "attention" or "values".
        style: A style of matplotlib, by its name or file, for fonts, lines and grids; sizes of
            text, and colours of tokens and families, stay.
        width: Width of every figure in inches; a column or a page by default.
        caption: Whether captions are written under the figures.
        overwrite: Whether earlier figures there are replaced.
        tell: Changes the reasons in index.md for what is not drawn, as the command line does.

    Returns:
        The figures, with their captions, and those that could not be drawn.

    Raises:
        UsageError: If a setting or part of a name is not known, two results are of one model, or
            something else is at `out`.
        ResultError: If a result is damaged.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UsageError(
            f"format {', '.join(unknown) or '(none)'}: expected one of {', '.join(FORMATS)}"
        )
    if readout not in READOUTS:
        raise UsageError(f"readout {readout!r}: expected one of {', '.join(READOUTS)}")
    look = FigureStyle(read_style(style), width, caption)
    results = mark_differences(load_results([Path(folder) for folder in folders]))
    _check_different(results)
    parts = [only] if isinstance(only, str) else only
    plans = _choose_plans(plan_figures(results, readout), parts)
    target = Path(out)
    _check_place(target, overwrite=overwrite)
    drawn: list[DrawnFigure] = []
    skipped: dict[str, str] = {}
    with (
        staged_folder(target, replaces=is_figures if overwrite else never) as staging,
        drawn_in(look),
    ):
        for name, draw in plans:
            try:
                drawing = draw()
            except (NothingToDrawError, ResultError) as reason:
                skipped[name] = without_folders(str(reason))
                continue
            drawn.append(_write_figure(drawing, name, formats, staging, target))
        found = FigureFolder(target, tuple(drawn), skipped)
        write_text(staging / "index.md", _write_page(found, tell))
        latex = join_latex((one.latex for one in drawn), notes_inside=caption)
        write_text(staging / "captions.tex", latex)
        index = {"figures": [one.describe() for one in drawn], "skipped": skipped}
        write_index(staging, {"schema_version": SCHEMA_VERSION, **index})
    return found


def draw_explanations(
    explanations: Sequence["Explanation"],
    out: str | Path,
    *,
    formats: Sequence[Format] = ("png",),
    heads: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Draw every explained image, one row for each model that explains it."""
    from vitscope.figures.explained import name_images  # needs torch

    target = Path(out)
    check_figures_target(target, overwrite=overwrite)
    results = open_results(explanations)
    drawn: list[DrawnFigure] = []
    entries = []
    with staged_folder(target, replaces=is_figures if overwrite else never) as staging:
        for name, image_id in name_images(results).items():
            drawings = {name: draw_image(results, image_id, heads=heads)}
            for result in results if heads else ():
                grid = name_apart(f"{name}__heads_by_layer__{slug(result.label)}", drawings)
                with suppress(NothingToDrawError):
                    drawings[grid] = draw_heads(result, image_id)
            for each, drawing in drawings.items():
                drawn.append(_write_figure(drawing, each, formats, staging, target))
                entries.append({**drawn[-1].describe(), "image_id": image_id})
        write_index(staging, {"schema_version": SCHEMA_VERSION, "figures": entries})
    return [path for figure in drawn for path in figure.files]


def draw_overlays(
    explanation: "Explanation",
    out: str | Path,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write every map of every explained image, as `Explanation.save_overlays` says."""
    # Reading maps needs torch.
    from vitscope.figures.explained import name_images
    from vitscope.figures.rendering.overlays import choose_limits, lay_over, paint_map

    target = Path(out)
    check_figures_target(target, overwrite=overwrite)
    named, ids = name_images([ModelResult(explanation)]), explanation.image_ids
    files, entries = [], []
    with staged_folder(target, replaces=is_figures if overwrite else never) as staging:
        for number, (name, image_id) in enumerate(named.items(), 1):
            one = explanation.read_image(ids.index(image_id))
            for kind, each in one.shown.items():
                painted = paint_map(each, one.image.shape[:2])
                drawn = {
                    f"{name}__{kind}.png": painted,
                    f"{name}__{kind}__overlay.png": lay_over(one.image, painted),
                }
                for file, pixels in drawn.items():
                    Image.fromarray(pixels).save(staging / file)
                low, high = choose_limits(each.values, signed=each.about.signed)
                about = {"image_id": image_id, "map": kind, "low": low, "high": high}
                entries.append({"files": list(drawn), "path": one.path, **about})
                files += [target / file for file in drawn]
            if on_progress is not None:
                on_progress(number, len(named))
        write_index(staging, {"schema_version": SCHEMA_VERSION, "maps": entries})
    return files


def _choose_plans(plans: list[Plan], only: Sequence[str]) -> list[Plan]:
    for part in only:
        if not any(part in name for name, _ in plans):
            known = dict.fromkeys(name.partition("__")[0] for name, _ in plans)
            raise UsageError(
                f"no figure has {part!r} in its name: expected part of {', '.join(known)}"
            )
    return [plan for plan in plans if not only or any(part in plan[0] for part in only)]


def _write_figure(
    drawing: Drawing, name: str, formats: Sequence[Format], staging: Path, target: Path
) -> DrawnFigure:
    # Laid out once, so that all formats look the same.
    _fix_layout(drawing.figure)
    files = tuple(target / f"{name}.{kind}" for kind in dict.fromkeys(formats))
    data, table = drawing.data, f"{name}.csv"
    outside = write_caption(drawing.name, data, with_notes=not chosen_style().has_notes)
    if name != drawing.name and len(data.shown) == 1:  # there may be one of each model
        outside = f"{data.shown[0].label}: {outside}"
    with plain_disk_errors(target):
        for file in files:
            save_figure(drawing.figure, staging / file.name)
        write_csv(staging / table, data.list_rows())
    return DrawnFigure(
        name=name,
        files=files,
        table=target / table,
        caption=write_caption(drawing.name, data),
        latex=write_latex(name, files, outside, width_in=drawing.figure.get_figwidth()),
        shown=data.shown,
        omitted=dict(data.omitted),
    )


@in_style()
def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the same figure gives the same bytes."""
    figure.savefig(path, metadata=_METADATA[path.suffix.removeprefix(".")])


@in_style()
def _fix_layout(figure: Figure) -> None:
    # At the resolution of the files, since the width of letters depends on it.
    figure.set_dpi(rcParams["savefig.dpi"])
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # with "none", matplotlib draws twice for each file


def _check_place(target: Path, *, overwrite: bool) -> None:
    for parent in (target, *target.absolute().parents):
        if (parent / MARKER).is_file():
            raise UsageError(
                f"{printable_path(target)} is inside the result {printable_path(parent)}: give "
                "another folder for the figures"
            )
    check_figures_target(target, overwrite=overwrite)


def _check_different(results: Sequence[ModelResult]) -> None:
    places: dict[tuple[str, str], Path] = {}
    for result in results:
        key = (result.kind, result.label)
        if result.kind != "explanation" and key in places:
            named = f" and called {result.run!r}" if result.run else ""
            raise UsageError(
                f"{printable_path(places[key])} and {printable_path(result.folder)} are both of "
                f"{result.label}{named}, and would be one point on every figure: give each run "
                "a --name of its own (with --overwrite, for --resume keeps the name of a finished "
                "result), or draw them separately, as in `vitscope figures "
                f"{shlex.quote(printable_path(result.folder))} --out DIR`"
            )
        places[key] = result.folder


def _tell_result(result: ModelResult) -> str:
    told = describe_settings(result.summary)
    words = (
        result.model_id,
        result.run,
        f"n = {result.num_images}",
        f"weights {result.weights_hash or 'not known'}",
        told and f"settings: {told}",
    )
    return f"{result.label}: {', '.join(filter(None, words))}"


def _write_page(found: FigureFolder, tell: Callable[[str], str]) -> str:
    parts = ["# Figures"]
    for figure in found.drawn:
        links = ", ".join(f"[{p.suffix[1:]}]({p.name})" for p in (*figure.files, figure.table))
        words = [_tell_result(result) for result in figure.shown]
        words += [f"not shown: {label}: {tell(why)}" for label, why in figure.omitted.items()]
        parts += [f"## {figure.name}", links, escape_markdown(figure.caption)]
        parts.append("\n".join(f"- {escape_markdown(told)}" for told in words))
    if found.skipped:
        reasons = {name: escape_markdown(tell(why)) for name, why in found.skipped.items()}
        told = "\n".join(f"- {name}: {why}" for name, why in reasons.items())
        parts += ["## Not drawn", told]
    return "\n\n".join(parts) + "\n"
