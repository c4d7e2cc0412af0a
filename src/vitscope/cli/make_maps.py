"""Commands that make maps: `vitscope explain` and `judge`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter
from rich.text import Text

import vitscope
from vitscope.cli.each_model import (
    Edits,
    check_remedies,
    choose_targets,
    find_images,
    measure_each,
    name_folders,
    run_each,
    run_with_bars,
)
from vitscope.cli.output import Output
from vitscope.cli.settings import Folder, Names, Shard, Size, Source
from vitscope.config import DTypeName, JudgeConfig, RunConfig
from vitscope.errors import UsageError
from vitscope.files.own_files import check_figures_target
from vitscope.files.printable import printable_path
from vitscope.files.storage import MARKER

if TYPE_CHECKING:
    from vitscope.figures.draw import Format
    from vitscope.models.base import ViTAdapter
    from vitscope.results.explanation import Explanation
    from vitscope.results.saved_result import SavedResult
    from vitscope.runs.model_run import OnProgress

R = TypeVar("R", bound="SavedResult")
_OUTPUT = Output()


def judge(
    *images: Source,
    model: list[str],
    out: Path,
    remedy: list[str] | None = None,
    references: list[str] | None = None,
    maps: Names = None,
    target: str = "self",
    removals: Names = None,
    masks: Folder = None,
    limit: int = 50,
    layer: int | None = None,
    sanity: bool = False,
    shard: Shard = None,
    seed: int = 0,
    name: str | None = None,
    device: str = "auto",
    dtype: Literal["float32", "float64"] = "float32",
    size: Size = None,
    overwrite: bool = False,
    resume: bool = False,
    output: Annotated[Output, Parameter(name="*")] = _OUTPUT,
) -> None:
    """Judge maps: which one shows what the output depends on.

    Removes the most and the least important patches of each map and measures what the output loses,
    beside random orders, distance from the centre, edges and an oracle.

    Example:  vitscope judge photos/ --model dinov2-small --removals shuffle,drop --out judged

    Args:
        images: Folders (searched recursively), images, text files of paths, tar shards, Parquet
            files, or URLs (s3://, gs://, hf://, https://).
        model: Model id, once per model: a built-in name, a Hugging Face id or local folder,
            timm:NAME[@CHECKPOINT], torchhub:NAME, open_clip:NAME/TAG.
        out: Folder for the results, one folder per model.
        remedy: Edit the model first, as in mask:tokens=cls (`vitscope remedy list`); once per edit,
            in order.
        references: Images to compare with, as for IMAGES; by default the judged ones.
        maps: Maps to judge, by name, besides attention, centre and edges; by default all that take
            few passes.
        target: What the maps explain: self (the image's own feature less the mean of the
            references), cosine, logit (of the class that an image gets), logit:CLASS (by number or
            name), image:PATH, or a file with a vector (.safetensors, .npy, .pt).
        removals: Ways to remove patches, of which the first decides: shuffle (the default), drop,
            mean, blur, black, linear.
        masks: Folder of object masks (PNG files named like the images, 0 outside the object).
        limit: Number of images, drawn at random.
        layer: Block whose attention row is explained: 0 is the first, -1 the last, as by default.
        sanity: Also compare maps with those of random weights, of another target and under noise;
            many more passes.
        shard: One part of the images, such as 3/16, for `vitscope merge`.
        seed: Seed of all random draws.
        name: Name of the run; by default the folder of the images and the date.
        device: Where to run: auto (a GPU if there is one), cpu, cuda:1, mps.
        dtype: Precision of the model.
        size: Input size in pixels, or HEIGHTxWIDTH; the model's own by default.
        overwrite: Replace earlier results there, finished or not.
        resume: Resume an interrupted run with the same settings; finished results are kept.
        output: What is printed, and options from a file.
    """
    # Check the arguments as far as possible before loading anything.
    folders = choose_targets(
        model,
        out,
        overwrite=overwrite or resume,
        remedies=remedy,
        size=RunConfig(size=size).input_size,
    )
    found = find_images(images, model, output)
    compared = None if references is None else find_images(references, output=output)
    from vitscope.images.masks import find_masks
    from vitscope.maps.chosen_target import open_target
    from vitscope.runs.judge_run import check_enough, check_settings

    check_enough(min(limit, len(found)) if compared is None else len(compared))
    if masks is not None:
        find_masks(masks, found)
    explained = open_target(target)
    config = JudgeConfig(
        limit=limit,
        maps=maps,
        removals=removals or JudgeConfig.removals,
        masks=masks,
        layer=layer,
        sanity=sanity,
        shard=shard,
        seed=seed,
        name=name,
        device=device,
        dtype=dtype,
        size=size,
    )
    check_settings(config)
    config.resolve_device()
    edits = Edits(check_remedies(remedy), found, config)
    from vitscope.terminal import make_judge_report  # here, because importing it is slow

    work = partial(
        vitscope.judge,
        images=found,
        config=config,
        target=explained,
        references=compared,
        overwrite=overwrite,
        resume=resume,
    )
    measure_each(folders, work, make_judge_report, output=output, edits=edits, on_passes="passes")


def explain(
    *images: Source,
    model: list[str],
    out: Path,
    remedy: list[str] | None = None,
    layer: int | None = None,
    maps: Names = None,
    target: str | None = None,
    references: list[str] | None = None,
    score: bool = False,
    judged: list[Path] | None = None,
    reference: list[Path] | None = None,
    heads: bool = False,
    overlays: bool = False,
    format: list[Literal["png", "pdf", "svg"]] | None = None,  # noqa: A002 - the option's name
    device: str = "auto",
    dtype: DTypeName = "float32",
    size: Size = None,
    name: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    output: Annotated[Output, Parameter(name="*")] = _OUTPUT,
) -> None:
    """Explain images: attention maps, and how much of the output they leave out.

    Draws maps and what went elsewhere, and says whether they can be read. That needs a reference,
    the means over an audit's images; those of dinov2-small come with vitscope.

    Example:  vitscope explain dog.jpg --model dinov2-small --model dinov2-large-reg --out dog

    Args:
        images: Folders (searched recursively), images, text files of paths, tar shards, Parquet
            files, or URLs (s3://, gs://, hf://, https://).
        model: Model id, once per model: a built-in name, a Hugging Face id or local folder,
            timm:NAME[@CHECKPOINT], torchhub:NAME, open_clip:NAME/TAG.
        out: Folder for the results, one folder per model, and for figures/, one figure per image.
        remedy: Edit the model first, as in mask:tokens=cls (`vitscope remedy list`); once per edit,
            in order.
        layer: Block whose attention row is explained: 0 is the first, -1 the last, as by default.
        maps: Maps by name (docs/recipes/maps.md); attention, contribution_norm and share by
            default, with --judged attention and the best.
        target: What maps with a target explain, as for `vitscope judge`; self if there are
            references, else cosine.
        references: Images that maps compare with, as for IMAGES; 20 or more like yours.
        score: Measure how faithful each map is, as `vitscope judge` does; takes hundreds of passes
            an image.
        judged: Judgement of the same model, or the --out folder of one, once per model in
            the same order: chooses the map and the size, and scores maps.
        reference: Audit of the same model, or the --out folder of one, once per model in the same
            order; by default an audit in OUT, or the means that come with vitscope.
        heads: Also draw the maps of each head, and the attention of all layers.
        overlays: Also write each map and its overlay on the image as PNG, into OUT/overlays/.
        format: File format of the figures, once per format; png by default.
        device: Where to run: auto (a GPU if there is one), cpu, cuda:1, mps.
        dtype: Precision of the model.
        size: Pixels of the shorter side, or HEIGHTxWIDTH to crop to; the judgement's or the model's
            own by default.
        name: Name of the run; by default the folder of the images and the date.
        overwrite: Replace earlier explanations and figures there; audits are kept.
        resume: Resume an interrupted run with the same settings; finished results are kept.
        output: What is printed, and options from a file.
    """
    # Check the arguments as far as possible before loading anything.
    config = RunConfig(device=device, dtype=dtype, size=size, name=name)
    folders = choose_targets(
        model,
        out,
        overwrite=overwrite or resume,
        remedies=remedy,
        size=config.input_size,
        name_target=_name_target,
    )
    found = find_images(images, model, output)
    config.resolve_device()
    compared = find_images(references, output=output) if references else None
    edits = Edits(check_remedies(remedy), compared or found, config)
    names = name_folders(model, edits.remedies)
    audits = _open_beside(names, reference or [], vitscope.AuditResult, "references")
    judgements = _open_beside(names, judged or [], vitscope.JudgeResult, "judgements")
    painted = {model_id: out / "overlays" / name for model_id, name in names.items()}
    for folder in (out / "figures", *(painted.values() if overlays else ())):
        check_figures_target(folder, overwrite=overwrite or resume)
    from vitscope.maps.chosen_target import open_target
    from vitscope.maps.registry import find_methods  # here, because importing it is slow

    find_methods(maps or ())
    chosen: dict[str, Any] = {} if maps is None else {"maps": maps}
    if target is not None:
        chosen["target"] = open_target(target)
    if compared:
        chosen["references"] = compared
    from vitscope.figures.draw import draw_explanations  # here, because importing it is slow
    from vitscope.terminal import make_explanation_report

    console = output.console
    explained: list[Explanation] = []

    def run(model_id: str) -> None:
        def work(vit: "ViTAdapter", on_progress: "OnProgress", on_overlays: "OnProgress") -> None:
            one = vitscope.explain(
                vit,
                found,
                config,
                layer=layer,
                **chosen,
                score=score,
                heads=heads,
                judged=judgements[model_id],
                reference=audits[model_id],
                out=folders[model_id],
                overwrite=overwrite,
                resume=resume,
                on_progress=on_progress,
            )
            explained.append(one)
            if overlays:
                folder = painted[model_id]
                again = overwrite or resume
                one.save_overlays(folder, overwrite=again, on_progress=on_overlays)

        run_with_bars(model_id, work, edits=edits, output=output, on_overlays="overlays")
        # No line wrapping: a line may hold a command to copy.
        output.conclude(explained[-1], make_explanation_report, soft_wrap=True)
        for path, reason in explained[-1].failures:
            output.warn(f"not readable: {path}: {reason}")
        if overlays:
            where = printable_path(painted[model_id])
            console.print(Text(f"overlays written to {where}\n"), soft_wrap=True)

    try:
        run_each(folders, run)
    finally:
        # Draw finished explanations even if a later model fails.
        if explained:
            kinds: Sequence[Format] = format or ["png"]
            drawn = draw_explanations(
                explained,
                out / "figures",
                formats=kinds,
                heads=heads,
                overwrite=overwrite or resume,
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


def _open_beside(
    names: Mapping[str, str], folders: Sequence[Path], kind: type[R], what: str
) -> dict[str, R | None]:
    """Open one result for each model, by the models' ids and their names of folders."""
    if not folders:
        return dict.fromkeys(names)
    if len(folders) != len(names):
        raise UsageError(
            f"{len(folders)} {what} for {len(names)} models: give one per model, in the same "
            "order, or none"
        )
    found = zip(names.items(), folders, strict=True)
    return {model: kind.load(_find_result(folder, name)) for (model, name), folder in found}


def _find_result(folder: Path, name: str) -> Path:
    # Either a result itself, or the folder given to `--out`.
    within = not (folder / MARKER).is_file() and (folder / name / MARKER).is_file()
    return folder / name if within else folder
