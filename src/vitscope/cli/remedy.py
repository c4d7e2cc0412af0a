"""`vitscope remedy`: list remedies, find what they edit, compare before and after."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App
from rich.text import Text

from vitscope.adapters.model_ids import check_model_id
from vitscope.cli.each_model import (
    Models,
    find_images,
    name_folders,
    run_each,
    run_with_bars,
)
from vitscope.cli.output import Output, OutputWithoutJson, make_console
from vitscope.cli.settings import AuditSettings, Source, group_options
from vitscope.files.printable import printable_path
from vitscope.files.storage import check_writable

if TYPE_CHECKING:
    from vitscope.models.base import ViTAdapter
    from vitscope.remedies.remedy import Remedy
    from vitscope.runs.model_run import OnProgress

_DEFAULTS, _OUTPUT, _TERMINAL = AuditSettings(), Output(), OutputWithoutJson()

remedy = App(
    name="remedy",
    help=(
        "Edit a model, and measure it before and after: are its maps cleaner, are they truer, and "
        "at what price?"
    ),
)


def list_remedies() -> None:
    """List the remedies, with their settings.

    Example:  vitscope remedy list
    """
    from vitscope.remedies.registry import REMEDIES, tell_settings
    from vitscope.terminal import make_remedy_list

    rows = [(name, entry.meaning, tell_settings(name)) for name, entry in REMEDIES.items()]
    make_console().print(make_remedy_list(rows))


def find(
    *images: Source,
    model: str,
    remedy: str,
    out: Path,
    overwrite: bool = False,
    config: AuditSettings = _DEFAULTS,
    terminal: OutputWithoutJson = _TERMINAL,
) -> None:
    """Measure on images what a remedy needs, and save it.

    Prints what was found, such as the neurons that write high-norm patches. The file takes the
    place of the remedy's name in --remedy, for the same model alone.

    Example:  vitscope remedy find photos/ --model dinov2-small --remedy mean:tokens=cls --out
    mean.safetensors

    Args:
        model: Model id, as in `vitscope audit`.
        remedy: Remedy, with settings as in test-time-registers:depth=23,top=50.
        out: File for what was found, ending in .safetensors.
        overwrite: Replace a saved remedy there.
    """
    # Check the arguments as far as possible before loading anything.
    check_model_id(model)
    check_writable(out.parent)
    found = find_images(images, [model], terminal)
    from vitscope.remedies.registry import parse_remedy  # here, because importing it is slow
    from vitscope.remedies.remedy_files import check_saved, save_remedy
    from vitscope.runs.model_run import make_image_set
    from vitscope.runs.remedy_fit import find_remedy

    check_saved(out, overwrite=overwrite)
    chosen = parse_remedy(remedy)
    config.resolve_device()

    def run(vit: "ViTAdapter", on_progress: "OnProgress") -> "tuple[Remedy, list[str]]":
        image_set = make_image_set(vit, found, config).without_copies()
        return find_remedy(vit, chosen, image_set, config, on_progress)

    fitted, told = run_with_bars(model, run, output=terminal)
    for line in told:
        terminal.console.print(Text(line))
    save_remedy(fitted, out, overwrite=overwrite)
    terminal.console.tell(f"written to {printable_path(out)}")


@dataclass(frozen=True, kw_only=True)
class _Compared(Models):
    """The models of `vitscope remedy compare`, each also with its edits.

    Attributes:
        remedy: Remedy, once each, with settings as in mask:tokens=registers,layers=10+11.
        overwrite: Replace an earlier comparison there with all of its results, finished or not.
        resume: Resume an interrupted run with the same settings; finished audits are kept.
    """

    remedy: list[str] = field()  # unlike of other commands, required

    @property
    def names(self) -> dict[str, str]:
        """The name of each model's folder, which holds the edits' as well."""
        return name_folders(self.model)


def compare(
    *images: Source,
    models: _Compared,
    one_shot: Path | None = None,
    judge: int = 0,
    config: AuditSettings = _DEFAULTS,
    output: Output = _OUTPUT,
) -> None:
    """Audit models and edits of them on the same images, and compare them.

    Prints what changed, paired by image. `vitscope report` shows it with the audits and their maps.

    Example:  vitscope remedy compare photos/ --model dinov2-small --remedy skip --remedy
    mean:tokens=cls --out remedies

    Args:
        one_shot: Folder with one subfolder per class, to also classify from one example per class.
        judge: Number of images on which maps are also judged before and after; each takes hundreds
            of passes.
    """
    # Check the arguments as far as possible before loading anything.
    from vitscope.results.schema_remedies import COMPARISON  # here, because importing it is slow

    targets = models.choose_targets(config, lambda folder, name: folder / name / COMPARISON)
    found = find_images(images, models.model, output)
    from vitscope.images.labels import find_classes
    from vitscope.runs.remedy_fit import read_remedies
    from vitscope.runs.remedy_loop import compare_remedies
    from vitscope.runs.remedy_measures import check_num_judged
    from vitscope.terminal import make_report

    chosen = read_remedies(models.remedy)
    check_num_judged(judge)
    if one_shot is not None:
        find_classes(one_shot)
    config.resolve_device()

    work = partial(
        compare_remedies,
        images=found,
        remedies=chosen,
        config=config,
        one_shot=one_shot,
        judge=judge,
        overwrite=models.overwrite,
        resume=models.resume,
    )
    run = partial(run_each, targets, output=output)
    for _, result in run(lambda one: partial(work, out=targets[one].parent)):
        where = printable_path(result.folder.parent)
        place = f"{where}; vitscope report {where} shows it"
        output.conclude(result, make_report, place=place)


for _command, _name in ((list_remedies, "list"), (find, "find"), (compare, "compare")):
    remedy.command(group_options(_command), name=_name)
