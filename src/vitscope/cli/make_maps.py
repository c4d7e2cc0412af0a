"""Commands that make maps: `vitscope explain` and `judge`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import vitscope
from vitscope.cli.each_model import Models, find_images, run_each
from vitscope.cli.output import Output
from vitscope.cli.settings import ExplainSettings, JudgeSettings, Source
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
_JUDGE_DEFAULTS, _EXPLAIN_DEFAULTS, _OUTPUT = JudgeSettings(), ExplainSettings(), Output()


def judge(
    *images: Source,
    models: Models,
    references: list[str] | None = None,
    target: str = "self",
    config: JudgeSettings = _JUDGE_DEFAULTS,
    output: Output = _OUTPUT,
) -> None:
    """Judge maps: which one shows what the output depends on.

    Removes the most and the least important patches of each map and measures what the output loses,
    beside random orders, distance from the centre, edges and an oracle.

    Example:  vitscope judge photos/ --model dinov2-small --removals shuffle,drop --out judged

    Args:
        references: Images to compare with, as for IMAGES; by default the judged ones.
        target: What the maps explain: self (the image's own feature less the mean of the
            references), cosine, logit (of the class that an image gets), logit:CLASS (by number or
            name), image:PATH, or a file with a vector (.safetensors, .npy, .pt).
    """
    # Check the arguments as far as possible before loading anything.
    folders = models.choose_targets(config)
    found = find_images(images, models.model, output)
    compared = None if references is None else find_images(references, (), output)
    from vitscope.images.masks import find_masks
    from vitscope.maps.chosen_target import open_target
    from vitscope.runs.judge_run import check_enough, check_settings

    check_enough(min(config.limit or len(found), len(found)) if compared is None else len(compared))
    if config.masks is not None:
        find_masks(config.masks, found)
    explained = open_target(target)
    check_settings(config)
    config.resolve_device()
    edits = models.edit(found, config)
    from vitscope.terminal import make_report  # here, because importing it is slow

    work = partial(
        vitscope.judge,
        images=found,
        config=config,
        target=explained,
        references=compared,
        overwrite=models.overwrite,
        resume=models.resume,
    )
    run = partial(run_each, folders, output=output, edits=edits, on_passes="passes")
    for _, result in run(lambda one: partial(work, out=folders[one])):
        output.conclude(result, make_report)


class _Explained(Models):
    """The models of `vitscope explain`.

    Attributes:
        out: Folder for the results, one folder per model, and for figures/, one figure per image.
        overwrite: Replace earlier explanations and figures there; audits are kept.
    """


def explain(
    *images: Source,
    models: _Explained,
    layer: int | None = None,
    maps: list[str] | None = None,
    target: str | None = None,
    references: list[str] | None = None,
    score: bool = False,
    judged: list[Path] | None = None,
    reference: list[Path] | None = None,
    heads: bool = False,
    overlays: bool = False,
    format: list[Literal["png", "pdf", "svg"]] | None = None,  # noqa: A002 - the option's name
    config: ExplainSettings = _EXPLAIN_DEFAULTS,
    output: Output = _OUTPUT,
) -> None:
    """Explain images: attention maps, and how much of the output they leave out.

    Draws maps and what went elsewhere, and says whether they can be read. That needs a reference,
    the means over an audit's images; those of dinov2-small come with vitscope.

    Example:  vitscope explain dog.jpg --model dinov2-small --model dinov2-large-reg --out dog

    Args:
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
    """
    # Check the arguments as far as possible before loading anything.
    folders = models.choose_targets(config, _name_target)
    found = find_images(images, models.model, output)
    config.resolve_device()
    compared = find_images(references, (), output) if references else None
    edits = models.edit(compared or found, config)
    audits = _open_beside(models.names, reference or [], vitscope.AuditResult, "references")
    judgements = _open_beside(models.names, judged or [], vitscope.JudgeResult, "judgements")
    drawings = models.out / "figures"
    painted = {one: models.out / "overlays" / name for one, name in models.names.items()}
    for folder in (drawings, *(painted.values() if overlays else ())):
        check_figures_target(folder, overwrite=models.replaces)
    from vitscope.maps.chosen_target import open_target
    from vitscope.maps.registry import find_methods  # here, because importing it is slow

    find_methods(maps or ())
    explain_with = partial(
        vitscope.explain,
        images=found,
        config=config,
        layer=layer,
        maps=maps,
        target=None if target is None else open_target(target),
        references=compared,
        score=score,
        heads=heads,
        overwrite=models.overwrite,
        resume=models.resume,
    )
    from vitscope.figures.draw import draw_explanations  # here, because importing it is slow
    from vitscope.terminal import make_explanation_report

    explained: list[Explanation] = []

    def work(
        model_id: str, vit: "ViTAdapter", on_progress: "OnProgress", on_overlays: "OnProgress"
    ) -> "Explanation":
        one = explain_with(
            vit,
            judged=judgements[model_id],
            reference=audits[model_id],
            out=folders[model_id],
            on_progress=on_progress,
        )
        explained.append(one)
        if overlays:
            again = models.replaces
            one.save_overlays(painted[model_id], overwrite=again, on_progress=on_overlays)
        return one

    run = partial(run_each, folders, output=output, edits=edits, on_overlays="overlays")
    try:
        for model_id, one in run(lambda model_id: partial(work, model_id)):
            # No line wrapping: a line may hold a command to copy.
            output.conclude(one, make_explanation_report, soft_wrap=True)
            for path, reason in one.failures:
                output.warn(f"not readable: {path}: {reason}")
            if overlays:
                output.console.tell(f"overlays written to {printable_path(painted[model_id])}\n")
    finally:
        # Draw finished explanations even if a later model fails.
        if explained:
            kinds: Sequence[Format] = format or ["png"]
            drawn = draw_explanations(
                explained, drawings, formats=kinds, heads=heads, overwrite=models.replaces
            )
            count = f"{len(drawn)} figure{'s' * (len(drawn) != 1)}"
            output.console.tell(f"{count} written to {printable_path(drawings)}")


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
    found: dict[str, R | None] = {}
    for (model_id, name), folder in zip(names.items(), folders, strict=True):
        # Either a result itself, or the folder given to `--out`.
        within = not (folder / MARKER).is_file() and (folder / name / MARKER).is_file()
        found[model_id] = kind.load(folder / name if within else folder)
    return found
