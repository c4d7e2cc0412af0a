"""`vitscope audit` and `vitscope demo`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

import vitscope
from vitscope.cli.targets import choose_targets, find_pictures
from vitscope.config import AuditConfig
from vitscope.storage import printable_path
from vitscope.terminal import make_comparison, make_progress, make_report

if TYPE_CHECKING:
    from vitscope.result import AuditResult

_DEFAULTS = AuditConfig()


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
    pictures = find_pictures(images)
    config.resolve_device()
    targets = choose_targets(model, out, overwrite=overwrite)
    _audit_all(targets, pictures, config, overwrite=overwrite)


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
    targets = choose_targets(["dinov2-small"], out, overwrite=overwrite)
    photographs = write_demo_photographs(out / "pictures")
    Console().print(Text(photographs.describe()))
    _audit_all(targets, [out / "pictures"], config, overwrite=overwrite)


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
