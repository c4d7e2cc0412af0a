"""`vitscope remedy`: list remedies, find what they edit, compare before and after."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.text import Text

from vitscope.cli.each_model import check_remedies, choose_targets, run_each, run_with_bars
from vitscope.cli.settings import AuditSettings, Source, group_options
from vitscope.files.printable import printable_path
from vitscope.terminal import make_console, make_remedy_list, make_remedy_report

_DEFAULTS = AuditSettings()

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

    rows = [(name, entry.meaning, tell_settings(name)) for name, entry in REMEDIES.items()]
    make_console().print(make_remedy_list(rows))


def compare(
    *images: Source,
    model: list[str],
    remedy: list[str],
    out: Path,
    overwrite: bool = False,
    resume: bool = False,
    config: Annotated[AuditSettings, Parameter(name="*")] = _DEFAULTS,
) -> None:
    """Audit models and edits of them on the same images, and compare them.

    Prints, for each edit, what changed with 95 % intervals, paired by image. The audits are kept
    beside the comparison: `vitscope report` shows them with their maps.

    Example:  vitscope remedy compare photos/ --model dinov2-small --remedy skip --remedy
    mean:tokens=cls --out remedies

    Args:
        images: Folders (searched recursively), images, text files of paths, tar shards, Parquet
            files, or URLs (s3://, gs://, hf://, https://).
        model: Model id, once per model, as in `vitscope audit`.
        remedy: Remedy, once each: a name of `vitscope remedy list`, with settings as in
            mask:tokens=registers,layers=10+11.
        out: Folder for the results, one folder per model.
        overwrite: Replace earlier results there, finished or not.
        resume: Resume an interrupted run with the same settings; finished audits are kept.
        config: Settings.
    """
    from vitscope.images.search import find_images
    from vitscope.runs.remedy_loop import compare_remedies

    # Check the arguments as far as possible before loading anything.
    check_remedies(remedy)
    found = find_images(images)
    config.resolve_device()
    targets = choose_targets(model, out, overwrite=overwrite or resume)
    console = make_console()

    def run(model_id: str) -> None:
        result = run_with_bars(
            model_id,
            lambda vit, on_progress: compare_remedies(
                vit,
                found,
                remedy,
                config=config,
                out=targets[model_id],
                overwrite=overwrite,
                resume=resume,
                on_progress=on_progress,
            ),
        )
        console.print(make_remedy_report(result.summary))
        where = printable_path(result.folder.parent)
        console.print(Text(f"written to {where}; vitscope report {where} shows it\n"))

    run_each(targets, run)


for _command, _name in ((list_remedies, "list"), (compare, "compare")):
    remedy.command(group_options(_command), name=_name)
