"""`vitscope reproduce`."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from vitscope.cli.output import LineConsole, OutputWithoutJson, make_progress
from vitscope.cli.settings import ReproductionSettings, parse_words
from vitscope.errors import UsageError, VitscopeError
from vitscope.files.printable import printable_path

if TYPE_CHECKING:
    from vitscope.figures.draw import Format
    from vitscope.reproduction.run import Reproduction
    from vitscope.reproduction.state import StageOutcome
    from vitscope.runs.model_run import OnProgress

_DEFAULTS, _TERMINAL = ReproductionSettings(), OutputWithoutJson()
_ALL_SIZES, _SMOKE_SIZES = "ti,s,b,l,g", "s,l,g"
_STATUS_STYLES = {"done": "green", "kept": "green", "failed": "bold red"}


def reproduce(
    *,
    images: Path | None = None,
    imagenet: Path | None = None,
    families: str = "dinov2,dinov2-reg,deit3,clip,openclip,ibot",
    sizes: str | None = None,
    checkpoints: Path | None = None,
    out: Path = Path("vitscope-reproduction"),
    smoke: bool = False,
    config: ReproductionSettings = _DEFAULTS,
    terminal: OutputWithoutJson = _TERMINAL,
) -> None:
    """Run the whole paper on your images: every experiment, every figure, every claim.

    The result is all figures, the report and a table: the paper says, you measured, agrees? The
    same command resumes where it was stopped.

    Example:  vitscope reproduce --images coco/val2017 --imagenet imagenet/val --out paper

    Args:
        images: Main set of images; the paper's is MS COCO.
        imagenet: Second set; with one subfolder per class, also for one-shot classification.
        families: Training recipes, separated by commas; `vitscope models` lists them.
        sizes: Sizes, separated by commas: ti, s, b, l, g (all larger ones); all by default, with
            --smoke s, l and g.
        checkpoints: Folder of weights downloaded by hand, each named after its model:
            ibot-small.pth.
        out: Folder for all results.
        smoke: Try it on tiny random models and generated images, offline; its numbers mean nothing.
    """
    from vitscope.reproduction.planned_models import plan_reproduction
    from vitscope.reproduction.run import IMAGES, Reproduction

    sizes = sizes or (_SMOKE_SIZES if smoke else _ALL_SIZES)
    models = plan_reproduction(parse_words(families), parse_words(sizes), checkpoints)
    if smoke:
        import torch

        from vitscope.reproduction.smoke import check_smoke_folder, plan_smoke, write_smoke_images

        torch.set_num_threads(1)  # tiny models lose more to thread overhead than they gain
        models = plan_smoke(models)
        check_smoke_folder(out, out / "smoke-images")
        images = imagenet = write_smoke_images(out / "smoke-images")
    if images is None:
        raise UsageError("no images: give --images FOLDER (or try it out with --smoke)")
    config.resolve_device()
    run = Reproduction(models, out, config, images=images, imagenet=imagenet)
    console = terminal.console
    console.print(_make_plan_table(run))
    try:
        with make_progress(terminal.bars) as progress:
            outcomes = run.execute(partial(_start_bar, progress))
    except KeyboardInterrupt:
        console.print("what is finished is kept: the same command resumes from there")
        raise
    terminal.config.save(out, replace=True)
    console.print(_make_outcome_table(outcomes))
    if not any(run.is_done(name, IMAGES) for name in run.model_names):
        raise VitscopeError("no model could be audited: the table above says why")
    _conclude(run, console, ["png"] if smoke else ["png", "pdf"])


def _start_bar(progress: Progress, model: str, stage: str) -> "OnProgress":
    # The last few stay on the screen.
    for finished in progress.tasks[:-4]:
        finished.visible = False
    task = progress.add_task(f"{model}, {stage}", total=None)
    return lambda done, total: progress.update(task, completed=done, total=total)


def _conclude(run: "Reproduction", console: LineConsole, formats: "Sequence[Format]") -> None:
    from vitscope.reproduction.claims import make_claims_table
    from vitscope.reproduction.conclusion import (
        SETS,
        draw_all_figures,
        judge_all_claims,
        write_full_report,
    )

    def show_figures(ending: str) -> None:
        if (made := draw_all_figures(run, ending, formats)) is not None:
            console.tell(f"{len(made.drawn)} figures in {printable_path(made.folder)}")

    def show_report(ending: str) -> None:
        if (path := write_full_report(run, ending)) is not None:
            console.tell(f"report in {printable_path(path)}")

    def show_claims(_: str) -> None:
        console.print(make_claims_table(judge_all_claims(run)))

    reasons = []
    for show, ending in [*product((show_figures, show_report), SETS), (show_claims, "")]:
        try:
            show(ending)
        except VitscopeError as error:  # one missing model or figure must not stop the others
            reasons.append(str(error))
    console.tell(f"everything is in {printable_path(run.out)}")
    if reasons:
        raise VitscopeError("; ".join(reasons))


def _make_plan_table(run: "Reproduction") -> Table:
    from vitscope.results.number_text import write_millions  # here: importing it is slow

    table = Table(title="The plan", title_justify="left")
    table.add_column("model", no_wrap=True)
    table.add_column("size", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("weights", overflow="fold")
    table.add_column("finished", justify="right", no_wrap=True)
    for model in run.models:
        finished = sum(run.is_done(model.name, stage) for stage in run.stages)
        download = [f"{model.download_mb} MB"] if model.download_mb else []
        table.add_row(
            Text(model.name),
            model.size,
            write_millions(model.num_params / 1e6),
            Text(", ".join([model.state, *download, model.source])),
            f"{finished} of {len(run.stages)}",
        )
    total = sum(model.download_mb for model in run.models)
    needed = f"{total / 1000:.1f} GB to download at most" if total else "nothing to download"
    table.caption = f"{needed}; models run in this order"
    return table


def _make_outcome_table(outcomes: Sequence["StageOutcome"]) -> Table:
    table = Table(title="How it went", title_justify="left", caption_justify="left")
    table.add_column("model", no_wrap=True)
    table.add_column("stages")
    table.add_column("", no_wrap=True)
    table.add_column("why", overflow="fold")
    alike: dict[tuple[str, str, str], list[str]] = {}
    for outcome in outcomes:
        key = (outcome.model, outcome.status, outcome.reason)
        alike.setdefault(key, []).append(outcome.stage)
    left_out = {}
    for (model, status, reason), stages in alike.items():
        if status == "skipped":  # for all models alike
            left_out[", ".join(stages)] = reason
            continue
        styled = Text(status, style=_STATUS_STYLES[status])
        table.add_row(Text(model), ", ".join(stages), styled, Text(reason))
    lines = [f"left out for all models: {stages}, {reason}" for stages, reason in left_out.items()]
    table.caption = Text("\n".join(lines)) if lines else None
    return table
