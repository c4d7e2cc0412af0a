"""`vitscope explain`."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.text import Text

import vitscope
from vitscope.cli.targets import choose_targets, list_images, name_folders
from vitscope.config import DTypeName, RunConfig
from vitscope.errors import UsageError
from vitscope.files.own_files import check_figures_target
from vitscope.files.printable import printable_path
from vitscope.files.storage import MARKER
from vitscope.terminal import make_explanation_report, make_progress

if TYPE_CHECKING:
    from vitscope.figures.draw import Format
    from vitscope.images.sources import FoundImages
    from vitscope.results.audit_result import AuditResult
    from vitscope.results.explanation import Explanation


def explain(
    *images: str,
    model: list[str],
    out: Path,
    layer: int | None = None,
    reference: list[Path] | None = None,
    heads: bool = False,
    format: list[Literal["png", "pdf", "svg"]] | None = None,  # noqa: A002 - the option's name
    device: str = "auto",
    dtype: DTypeName = "float32",
    size: str | None = None,
    overwrite: bool = False,
) -> None:
    """Explain images: attention maps, and how much of the output they leave out.

    Draws the attention map, the norm of what each patch wrote, its signed share of the output, what
    went elsewhere, and a verdict: can this map be read? The verdict needs a reference, the means
    over an audit's images; those for dinov2-small come with vitscope. Images are prepared as the
    reference's were. Without a reference numbers are raw, there is no verdict, and images keep
    their aspect ratio if the model allows it.

    Example:  vitscope explain dog.jpg --model dinov2-small --model dinov2-large-reg --out dog

    Args:
        images: Images, folders (searched recursively), text files (.txt) of paths, tar shards,
            Parquet files, or URLs (s3://, gs://, hf://, https://) of any of these except text
            files.
        model: Model id, once per model: a built-in name (dinov2-small-reg), a Hugging Face id or
            local folder, timm:NAME[@CHECKPOINT], torchhub:NAME, open_clip:NAME/TAG.
        out: Folder for the results, one folder per model, and for figures/, one figure per image.
            An audit of the model found there is the reference. One in MODEL/ is kept, and the
            result goes to MODEL-explained/.
        layer: Block to explain, from 0; the last by default.
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
    # What is asked for is checked as far as it can be before anything is loaded.
    found = list_images(images)
    config = RunConfig(device=device, dtype=dtype, size=size)
    config.resolve_device()
    targets = choose_targets(model, out, overwrite=overwrite, name_target=_name_target)
    references = _open_references(reference or [], list(name_folders(model).values()))
    check_figures_target(out / "figures", overwrite=overwrite)
    from vitscope.figures.explained import draw_explanations  # here, for what it imports is slow

    console = Console()
    explained: list[Explanation] = []
    try:
        for (model_id, target), audited in zip(targets.items(), references, strict=True):
            run = partial(vitscope.explain, layer=layer, reference=audited, overwrite=overwrite)
            explained.append(_explain_one(model_id, partial(run, out=target), found, config))
            # No line is broken: one may hold a command to be copied.
            console.print(make_explanation_report(explained[-1].summary), soft_wrap=True)
            for path, reason in explained[-1].failures:
                console.print(Text(f"not readable: {path}: {reason}", style="yellow"))
            console.print(Text(f"written to {printable_path(target)}\n"), soft_wrap=True)
    finally:
        # What is done is drawn even where a later model fails.
        if explained:
            kinds: Sequence[Format] = format or ["png"]
            drawn = draw_explanations(
                explained, out / "figures", formats=kinds, heads=heads, overwrite=overwrite
            )
            where = f"{len(drawn)} figures written to {printable_path(out / 'figures')}"
            console.print(Text(where), soft_wrap=True)


def _name_target(out: Path, name: str) -> Path:
    if (out / name / MARKER).is_file():
        from vitscope.runs.references import holds_audit  # here, for what it imports is slow

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
    # A result itself, or what `audit --out` was given.
    within = not (folder / MARKER).is_file() and (folder / name / MARKER).is_file()
    return folder / name if within else folder


def _explain_one(
    model_id: str,
    run: "Callable[..., Explanation]",
    images: "FoundImages",
    config: RunConfig,
) -> "Explanation":
    vit = vitscope.load_model(model_id)
    with make_progress(Console(stderr=True)) as progress:
        task = progress.add_task(model_id, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        return run(vit, images, config, on_progress=advance)
