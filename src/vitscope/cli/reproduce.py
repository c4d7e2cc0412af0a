"""`vitscope reproduce`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from vitscope.config import ReproductionConfig
from vitscope.errors import UsageError, VitscopeError
from vitscope.storage import printable_path
from vitscope.terminal import make_progress

if TYPE_CHECKING:
    from vitscope.figures.draw import Format
    from vitscope.model_run import OnProgress
    from vitscope.reproduction.plan import PlannedModel
    from vitscope.reproduction.run import Reproduction, StageOutcome

_DEFAULTS = ReproductionConfig()
_ALL_SIZES, _SMOKE_SIZES = "ti,s,b,l,g", "s,l,g"
_STATUS_STYLES = {"done": "green", "kept": "green", "skipped": "dim", "failed": "bold red"}


def reproduce(
    *,
    images: Path | None = None,
    imagenet: Path | None = None,
    families: str = "dinov2,dinov2-reg,deit3,clip,ibot",
    sizes: str | None = None,
    checkpoints: Path | None = None,
    out: Path = Path("vitscope-reproduction"),
    smoke: bool = False,
    config: Annotated[ReproductionConfig, Parameter(name="*")] = _DEFAULTS,
) -> None:
    """Run the whole paper on your pictures: every experiment, every figure, every claim.

    Models run one after another. What is finished stays: the same command goes on where it was
    stopped. A model that cannot be had is reported and the others go on. In the end stand all
    figures and a table: the paper says, you measured, agrees?

    Example:  vitscope reproduce --images coco/val2017 --imagenet imagenet/val --out paper

    Args:
        images: Main set of pictures; the paper's is MS COCO.
        imagenet: Second set. With one sub-folder a class, one-shot classification is run on it.
        families: Training recipes, separated by commas; `vitscope models` lists them.
        sizes: Sizes, separated by commas: ti, s, b, l, g (all that are larger); every one by
            default, with --smoke s, l and g.
        checkpoints: Folder of weights fetched by hand (iBOT's), each file called as its model:
            ibot-small.pth.
        out: Folder of everything.
        smoke: Run it in little: tiny random models on pictures made on the spot, offline, in under
            two minutes. Its numbers mean nothing; its figures show what you will get.
        config: Settings; what the paper leaves open is chosen here.

    Raises:
        UsageError: If no pictures are given.
        VitscopeError: If no model could be audited.
        KeyboardInterrupt: When it is stopped, after saying that what is finished is kept.
    """
    from vitscope.reproduction.plan import plan_reproduction
    from vitscope.reproduction.run import PICTURES, Reproduction

    sizes = sizes or (_SMOKE_SIZES if smoke else _ALL_SIZES)
    models = plan_reproduction(families, sizes, checkpoints)
    if smoke:
        import torch

        from vitscope.reproduction.smoke import plan_smoke, write_smoke_pictures

        torch.set_num_threads(1)  # tiny models lose more to waiting threads than they gain
        models = plan_smoke(models)
        images = imagenet = write_smoke_pictures(out / "smoke-pictures")
    if images is None:
        raise UsageError("no pictures: give --images FOLDER (or try it out with --smoke)")
    config.resolve_device()
    run = Reproduction(models, out, config, images=images, imagenet=imagenet)
    console = Console()
    console.print(_make_plan_table(run))
    try:
        with make_progress(Console(stderr=True)) as progress:
            outcomes = run.execute(_StageBars(progress).start)
    except KeyboardInterrupt:
        console.print("what is finished is kept: the same command goes on from there")
        raise
    console.print(_make_outcome_table(outcomes))
    if not any(run.is_done(model.name, PICTURES) for model in models):
        raise VitscopeError("no model could be audited: the table above says why")
    _conclude(run, console, ["png"] if smoke else ["png", "pdf"])


class _StageBars:
    """One bar a stage, the last few of them on the screen."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def start(self, model: str, stage: str) -> "OnProgress":
        for finished in self._progress.tasks[:-4]:
            finished.visible = False
        task = self._progress.add_task(f"{model}, {stage}", total=None)
        return lambda done, total: self._progress.update(task, completed=done, total=total)


def _conclude(run: "Reproduction", console: Console, formats: "Sequence[Format]") -> None:
    from vitscope.reproduction.claims_table import make_claims_table
    from vitscope.reproduction.conclusion import draw_all_figures, judge_all_claims

    for folder in draw_all_figures(run, formats):
        where = printable_path(folder.folder)
        console.print(Text(f"{len(folder.drawn)} figures in {where}"), soft_wrap=True)
    console.print(make_claims_table(judge_all_claims(run)))
    console.print(Text(f"everything is in {printable_path(run.out)}"), soft_wrap=True)


def _make_plan_table(run: "Reproduction") -> Table:
    table = Table(title="The plan", title_justify="left")
    table.add_column("model", overflow="fold")
    table.add_column("size")
    table.add_column("parameters", justify="right")
    table.add_column("weights from", overflow="fold")
    table.add_column("download", justify="right")
    table.add_column("weights are")
    table.add_column("finished", justify="right")
    for model in run.models:
        table.add_row(*_describe_model(run, model))
    total = sum(model.download_mb for model in run.models)
    table.caption = f"{total / 1000:.1f} GB to download at most; models run in this order"
    return table


def _describe_model(run: "Reproduction", model: "PlannedModel") -> list[str | Text]:
    finished = sum(run.is_done(model.name, stage) for stage in run.stages)
    return [
        Text(model.name),
        model.size,
        f"{model.num_params / 1e6:.3g} M",
        Text(model.source),
        f"{model.download_mb} MB" if model.download_mb else "–",
        model.state,
        f"{finished} of {len(run.stages)}",
    ]


def _make_outcome_table(outcomes: Sequence["StageOutcome"]) -> Table:
    table = Table(title="How it went", title_justify="left")
    for name in ("model", "stage", "", "why"):
        table.add_column(name, overflow="fold")
    for outcome in outcomes:
        style = _STATUS_STYLES[outcome.status]
        status = Text(outcome.status, style=style)
        table.add_row(Text(outcome.model), outcome.stage, status, Text(outcome.reason))
    return table
