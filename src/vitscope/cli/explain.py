"""`vitscope explain`."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.text import Text

import vitscope
from vitscope.cli.targets import choose_targets, find_pictures
from vitscope.config import DTypeName, RunConfig
from vitscope.errors import UsageError
from vitscope.files.storage import check_target, never, printable_path
from vitscope.terminal import make_explanation_report, make_progress

if TYPE_CHECKING:
    from vitscope.figures.draw import Format
    from vitscope.pictures.sources import FoundPictures
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
    """Explain pictures: attention maps, and how much of the output they leave out.

    Beside the raw attention map, the length of what each patch wrote and its signed share of the
    output; under each, what went elsewhere; and one sentence: may this map be read? Pictures keep
    their shape where the model takes it.

    Example:  vitscope explain dog.jpg --model dinov2-small --model dinov2-large-reg --out dog

    Args:
        images: Pictures, folders (searched recursively), text files (.txt) of paths, tar shards,
            Parquet files, or URLs of any of these but text files (s3://, gs://, hf://, https://).
        model: Model id, once per model: a plain name (dinov2-small-reg), a Hugging Face id or local
            folder, timm:NAME[@CHECKPOINT], torchhub:NAME, open_clip:NAME/TAG.
        out: Folder for the results, one folder a model, and for figures/, a figure a picture.
        layer: Block to explain, from 0; the last by default.
        reference: Audit of the same model, once per model in their order. The verdict is then on
            what sets the picture apart from the audited ones, which what is constant cannot blur.
        heads: Draw the maps of every head too.
        format: Kinds of files of the figures, once per kind; png if none is given.
        device: Where to run: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        dtype: Precision the model runs in.
        size: Pixels of the shorter side, such as 518, or HEIGHTxWIDTH to crop to; the model's own
            by default.
        overwrite: Replace earlier results and figures in that folder.
    """
    # What is asked for is checked as far as it can be before anything is loaded.
    pictures = find_pictures(images)
    config = RunConfig(device=device, dtype=dtype, size=size)
    config.resolve_device()
    targets = choose_targets(model, out, overwrite=overwrite)
    references = _open_references(reference or [], len(targets))
    from vitscope.figures.draw import is_figures  # here, for what it imports is slow
    from vitscope.figures.explained import draw_explanations

    check_target(out / "figures", is_figures if overwrite else never)
    console = Console()
    explained: list[Explanation] = []
    try:
        for (model_id, target), audited in zip(targets.items(), references, strict=True):
            run = partial(vitscope.explain, layer=layer, reference=audited, overwrite=overwrite)
            explained.append(_explain_one(model_id, partial(run, out=target), pictures, config))
            console.print(make_explanation_report(explained[-1].summary))
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


def _open_references(folders: Sequence[Path], num_models: int) -> "list[AuditResult | None]":
    if not folders:
        return [None] * num_models
    if len(folders) != num_models:
        raise UsageError(
            f"{len(folders)} references for {num_models} models: give one a model, in their order, "
            "or none"
        )
    return [vitscope.AuditResult.load(folder) for folder in folders]


def _explain_one(
    model_id: str,
    run: "Callable[..., Explanation]",
    pictures: "FoundPictures",
    config: RunConfig,
) -> "Explanation":
    vit = vitscope.load_model(model_id)
    with make_progress(Console(stderr=True)) as progress:
        task = progress.add_task(model_id, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        return run(vit, pictures, config, on_progress=advance)
