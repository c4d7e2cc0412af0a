"""The command line: parse, call, print; no logic.

Exit codes: 0 done, 1 failed, 2 bad usage.
"""

import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.text import Text

import vitscope
from vitscope.config import AuditConfig
from vitscope.errors import UsageError, VitscopeError
from vitscope.storage import check_target, is_result, never, printable_path
from vitscope.terminal import make_comparison, make_progress, make_report

if TYPE_CHECKING:
    from vitscope.result import AuditResult

app = App(
    name="vitscope",
    version=vitscope.__version__,
    help=(
        "Tells you whether the attention maps of your Vision Transformer can be believed: how "
        "much of its global feature really comes from where its [CLS] attention points."
    ),
    help_epilogue="Start with:  vitscope demo",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
    default_parameter=Parameter(negative=()),
)
_DEFAULTS = AuditConfig()
_DEBUG = "VITSCOPE_DEBUG"


@app.command
def audit(
    *images: Path,
    model: list[str],
    out: Path,
    overwrite: bool = False,
    config: Annotated[AuditConfig, Parameter(name="*")] = _DEFAULTS,
) -> None:
    """Audit models on a set of pictures.

    Each model runs its own forward pass; the attention row of its [CLS] token is decomposed
    exactly into what patches, registers, [CLS] itself and the skip connection wrote, and the sum
    is proven against the model's own tensors.

    Example:  vitscope audit photos/ --model dinov2-small --model dinov2-large-reg --out results

    Args:
        images: Folders (searched recursively), pictures, or text files (.txt) of paths.
        model: Model id, once per model: a plain name (dinov2-small-reg), a Hugging Face id or local
            folder, timm:NAME[@CHECKPOINT], torchhub:NAME, open_clip:NAME/TAG.
        out: Folder for the results, one folder a model.
        overwrite: Replace earlier results in that folder.
        config: Settings.
    """
    # What is asked for is checked as far as it can be before anything is loaded.
    pictures = _find_pictures(images)
    config.resolve_device()
    targets = _choose_targets(model, out, overwrite=overwrite)
    _audit_all(targets, pictures, config, overwrite=overwrite)


@app.command
def demo(
    *, out: Path = Path("vitscope-demo"), limit: int | None = None, overwrite: bool = False
) -> None:
    """Audit DINOv2-small on freely licensed photographs; needs no model hub.

    Weights come from the hub or its cache where they can be had, otherwise out of an installed
    package; photographs out of installed packages.

    Args:
        out: Folder for pictures and result.
        limit: Draw this many pictures at random.
        overwrite: Replace an earlier demo in that folder.
    """
    from vitscope.photographs import write_demo_photographs

    config = AuditConfig(limit=limit)
    targets = _choose_targets(["dinov2-small"], out, overwrite=overwrite)
    photographs = write_demo_photographs(out / "pictures")
    Console().print(Text(photographs.describe()))
    _audit_all(targets, [out / "pictures"], config, overwrite=overwrite)


def _find_pictures(sources: Sequence[Path]) -> Sequence[Path]:
    from vitscope.images import find_images  # here, for what it imports is slow

    return find_images(sources)


def _choose_targets(model_ids: Sequence[str], out: Path, *, overwrite: bool) -> dict[str, Path]:
    from vitscope.models.registry import check_model_id

    for model_id in model_ids:
        check_model_id(model_id)
    targets = {model_id: out / name for model_id, name in _name_folders(model_ids).items()}
    for target in targets.values():
        check_target(target, is_result if overwrite else never)
    return targets


def _audit_all(
    targets: Mapping[str, Path], images: Sequence[Path], config: AuditConfig, *, overwrite: bool
) -> None:
    console = Console()
    summaries = []
    try:
        for model_id, target in targets.items():
            result = _audit_one(model_id, images, config, target, overwrite=overwrite)
            summaries.append(result.summary)
            console.print(make_report(summaries[-1]))
            console.print(Text(f"written to {printable_path(target)}\n"), soft_wrap=True)
    finally:
        # What is done is compared even where a later model fails.
        if len(summaries) > 1:
            console.print(make_comparison(summaries))


def _audit_one(
    model_id: str,
    images: Sequence[Path],
    config: AuditConfig,
    target: Path,
    *,
    overwrite: bool,
) -> "AuditResult":
    vit = vitscope.load_model(model_id)
    with make_progress(Console(stderr=True)) as progress:
        task = progress.add_task(model_id, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        return vitscope.audit(
            vit, images, config, out=target, overwrite=overwrite, on_progress=advance
        )


def _name_folders(model_ids: Sequence[str]) -> dict[str, str]:
    # A model's folder is its id with what file systems dislike replaced; of a local folder, its
    # name alone.
    names: dict[str, str] = {}
    for model_id in dict.fromkeys(model_ids):
        stem = Path(model_id).name if Path(model_id).is_absolute() else model_id
        stem = re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip(".-")[:100] or "model"
        name, number = stem, 2
        while name in names.values():
            name, number = f"{stem}-{number}", number + 1
        names[model_id] = name
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; those of this process if None.

    Returns:
        The exit code.
    """
    # A terminate signal cleans up as Ctrl-C does; what a terminal cannot show is replaced.
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app(arguments)
        sys.stdout.flush()
    except CycloptsError as error:
        return _fail(str(error), 2)
    except UsageError as error:
        return _fail(str(error), 2)
    except VitscopeError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("stopped; the unfinished result was removed", 1)
    except Exception as error:
        if os.environ.get(_DEBUG):
            raise
        reason = f"{type(error).__name__}: {error}"
        return _fail(f"unexpected error, {reason} (set {_DEBUG}=1 to see where)", 1)
    return 0


def _fail(message: str, code: int) -> int:
    line = f"vitscope: {' '.join(message.split())}"
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")
    return code
