"""`vitscope audit` and `vitscope demo`."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

import vitscope
from vitscope.cli.targets import choose_engine, choose_targets, list_images
from vitscope.config import AuditConfig
from vitscope.errors import VitscopeError
from vitscope.files.printable import printable, printable_path
from vitscope.terminal import make_comparison, make_progress, make_report

if TYPE_CHECKING:
    from vitscope.engines.base import Engine
    from vitscope.results.audit_result import AuditResult

_DEFAULTS = AuditConfig()
_Report = Annotated[bool, Parameter(negative="--no-report")]


def audit(
    *images: str,
    model: list[str],
    out: Path,
    overwrite: bool = False,
    resume: bool = False,
    report: _Report = True,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    config: Annotated[AuditConfig, Parameter(name="*")] = _DEFAULTS,
) -> None:
    """Audit models on a set of images.

    Decomposes each model's [CLS] output exactly into what patches, registers, [CLS] itself and the
    skip connection wrote, and verifies the sum against the model's own tensors.

    Example:  vitscope audit photos/ --model dinov2-small --model dinov2-large-reg --out results

    Args:
        images: Folders (searched recursively), images, text files (.txt) of paths, tar shards,
            Parquet files, or URLs (s3://, gs://, hf://, https://) of any of these except text
            files.
        model: Model id, once per model: a built-in name (dinov2-small-reg), a Hugging Face id or
            local folder, timm:NAME[@CHECKPOINT], torchhub:NAME, open_clip:NAME/TAG.
        out: Folder for the results, one folder per model.
        overwrite: Replace earlier results there, finished or not.
        resume: Resume an interrupted run with the same settings; finished results are kept.
        report: Write report.html beside the results.
        engine: local is this process, or all of `torchrun --nproc-per-node 8 -m vitscope audit …`;
            ray is a Ray cluster.
        address: Address of the Ray cluster, such as auto or head:6379; by default one is started on
            this machine.
        config: Settings.
    """
    # What is asked for is checked as far as it can be before anything is loaded.
    found = list_images(images)
    config.resolve_device()
    workers = choose_engine(engine, address)
    targets = choose_targets(model, out, overwrite=overwrite or resume)
    how = _How(config, workers, overwrite=overwrite, resume=resume, report=report)
    _audit_all(targets, found, how)


def demo(
    *,
    out: Path = Path("vitscope-demo"),
    limit: int | None = None,
    overwrite: bool = False,
    report: _Report = True,
) -> None:
    """Audit DINOv2-small on openly licensed photographs; needs no model hub.

    Weights come from the hub or its cache, or else from an installed package, as do the
    photographs.

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
    Console().print(Text(photographs.describe()))
    # A finished result is not replaced unasked: that was checked with the targets.
    how = _How(config, overwrite=True, resume=True, report=report)
    _audit_all(targets, [out / "images"], how)


@dataclass(frozen=True)
class _How:
    config: AuditConfig
    engine: "Engine | None" = None
    _: KW_ONLY
    overwrite: bool = False
    resume: bool = False
    report: bool = True

    @property
    def is_lead(self) -> bool:
        return self.engine is None or self.engine.is_lead


def _audit_all(targets: Mapping[str, Path], images: Sequence[Any], how: _How) -> None:
    # Of many processes that do the same, one is heard.
    console = Console(quiet=not how.is_lead)
    report = how.report and how.is_lead
    summaries = []
    done: list[Path] = []
    try:
        for model_id, target in targets.items():
            result = _audit_one(model_id, images, how, target)
            summaries.append(result.summary)
            done.append(target)
            console.print(make_report(summaries[-1]))
            console.print(Text(f"written to {printable_path(target)}\n"), soft_wrap=True)
    except KeyboardInterrupt:
        report = False  # whoever stops it does not want to wait
        raise
    finally:
        # What is done is compared and shown even where a later model fails.
        if len(summaries) > 1:
            console.print(make_comparison(summaries))
        if report and done:
            _write_report(done, console)


def _write_report(results: Sequence[Path], console: Console) -> None:
    from vitscope.report import write_report  # here, for what it imports is slow

    target = results[0].parent / "report.html"
    try:
        write_report(results, target, overwrite=True)
    except VitscopeError as error:
        # The results themselves are whole and saved.
        console.print(Text(f"no report was written: {printable(str(error))}"), soft_wrap=True)
    else:
        console.print(Text(f"open {printable_path(target)} in a browser"), soft_wrap=True)


def _audit_one(model_id: str, images: Sequence[Any], how: _How, target: Path) -> "AuditResult":
    vit = vitscope.load_model(model_id)
    with make_progress(Console(stderr=True, quiet=not how.is_lead)) as progress:
        task = progress.add_task(model_id, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        return vitscope.audit(
            vit,
            images,
            how.config,
            out=target,
            overwrite=how.overwrite,
            resume=how.resume,
            engine=how.engine,
            on_progress=advance,
        )
