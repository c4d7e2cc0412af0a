"""`vitscope one-shot`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

import vitscope
from vitscope.cli.targets import choose_targets
from vitscope.config import OneShotConfig
from vitscope.files.printable import printable_path
from vitscope.terminal import make_one_shot_report, make_progress

if TYPE_CHECKING:
    from vitscope.results.one_shot_result import OneShotResult

_DEFAULTS = OneShotConfig()


def one_shot(
    folder: Path,
    /,
    *,
    model: list[str],
    out: Path,
    overwrite: bool = False,
    config: Annotated[OneShotConfig, Parameter(name="*")] = _DEFAULTS,
) -> None:
    """Classify images from one example per class: by the full output, and by parts of it.

    A classifier is trained on the full output of one random image per class and tested on another
    image: on its full output, and on what patches, registers, [CLS] itself or the skip connection
    alone wrote.

    Example:  vitscope one-shot flowers/ --model dinov2-small --model dinov2-large-reg --out results

    Args:
        folder: Folder with one subfolder per class, whose name is the label.
        model: Model id, once per model: a built-in name (dinov2-small-reg), a Hugging Face id or
            local folder, timm:NAME[@CHECKPOINT], torchhub:NAME, open_clip:NAME/TAG.
        out: Folder for the results, one folder per model.
        overwrite: Replace earlier results there.
        config: Settings.
    """
    from vitscope.images.class_folders import find_classes  # here, for what it imports is slow

    # What is asked for is checked as far as it can be before anything is loaded.
    find_classes(folder)
    config.resolve_device()
    console = Console()
    for model_id, target in choose_targets(model, out, overwrite=overwrite).items():
        result = _classify_one(model_id, folder, config, target, overwrite=overwrite)
        console.print(make_one_shot_report(result.summary))
        console.print(Text(f"written to {printable_path(target)}\n"), soft_wrap=True)


def _classify_one(
    model_id: str, folder: Path, config: OneShotConfig, target: Path, *, overwrite: bool
) -> "OneShotResult":
    vit = vitscope.load_model(model_id)
    with make_progress(Console(stderr=True)) as progress:
        images = progress.add_task(model_id, total=None)
        draws = progress.add_task("draws", total=config.draws, visible=False, unit="draws")
        return vitscope.one_shot(
            vit,
            folder,
            config,
            out=target,
            overwrite=overwrite,
            on_progress=lambda done, total: progress.update(images, completed=done, total=total),
            on_draw=lambda done, _: progress.update(draws, completed=done, visible=True),
        )
