"""The command line: parse, call, print; no logic.

Exit codes: 0 done, 1 failed, 2 bad usage.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

import vitscope
from vitscope.config import AuditConfig, DTypeName, parse_size
from vitscope.errors import UsageError, VitscopeError
from vitscope.storage import check_target
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
)


@app.command
def audit(
    *images: Annotated[
        Path, Parameter(help="Folders (searched recursively), pictures, or text files of paths.")
    ],
    model: Annotated[
        list[str],
        Parameter(
            help=(
                "Model id, once per model: a plain name (dinov2-small-reg), a Hugging Face id or "
                "local folder, timm:NAME[@CHECKPOINT], torchhub:NAME, open_clip:NAME/TAG."
            ),
            negative="",
        ),
    ],
    out: Annotated[Path, Parameter(help="Folder for the results, one folder a model.")],
    limit: Annotated[int | None, Parameter(help="Draw this many pictures at random.")] = None,
    batch_size: Annotated[int, Parameter(help="Pictures per forward pass.")] = 32,
    device: Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[DTypeName, Parameter(help="Precision the model runs in.")] = "float32",
    layers: Annotated[
        str, Parameter(help="Layers to audit: last, all, or block numbers from 0 such as 3,7.")
    ] = "last",
    size: Annotated[
        str | None, Parameter(help="Input size in pixels: 518, or HEIGHTxWIDTH as in 224x336.")
    ] = None,
    num_workers: Annotated[int, Parameter(help="Processes that decode pictures.")] = 0,
    seed: Annotated[int, Parameter(help="Seed of the draw that --limit makes.")] = 0,
    renormalize: Annotated[
        bool, Parameter(help="Divide restricted outputs by the kept attention mass.", negative="")
    ] = False,
    features: Annotated[
        Literal["keep", "drop"],
        Parameter(help="Keep every picture's features beside the sums, or drop them."),
    ] = "keep",
    overwrite: Annotated[
        bool, Parameter(help="Replace earlier results in --out.", negative="")
    ] = False,
) -> None:
    """Audit models on a set of pictures.

    Each model runs its own forward pass; the attention row of its [CLS] token is decomposed
    exactly into what patches, registers, [CLS] itself and the skip connection wrote, and the sum
    is proven against the model's own tensors.

    Example:  vitscope audit photos/ --model dinov2-small --model dinov2-large-reg --out results

    Raises:
        UsageError: If no picture source is given.
    """
    if not images:
        raise UsageError("no pictures given: name a folder, pictures, or a text file of paths")
    from vitscope.models.registry import check_model_id  # here, for what it imports is slow

    config = AuditConfig(
        limit=limit,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        layers=layers,
        size=None if size is None else parse_size(size),
        num_workers=num_workers,
        seed=seed,
        renormalize=renormalize,
        features=features,
    )
    for model_id in model:
        check_model_id(model_id)
    targets = {model_id: out / name for model_id, name in _name_folders(model).items()}
    for target in targets.values():
        check_target(target, overwrite=overwrite)
    console = Console()
    summaries = []
    for model_id, target in targets.items():
        result = _audit_one(model_id, images, config, target, overwrite=overwrite)
        summaries.append(result.summary)
        console.print(make_report(summaries[-1]))
        console.print(f"written to {target}\n", markup=False, highlight=False, soft_wrap=True)
    if len(summaries) > 1:
        console.print(make_comparison(summaries))


@app.command
def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder for pictures and result.")] = Path("vitscope-demo"),
    limit: Annotated[int | None, Parameter(help="Draw this many pictures at random.")] = None,
    overwrite: Annotated[
        bool, Parameter(help="Replace an earlier demo in --out.", negative="")
    ] = False,
) -> None:
    """Audit DINOv2-small on openly licensed photographs; needs no model hub.

    Weights come from the hub or its cache where they can be had, otherwise out of an installed
    package; photographs out of installed packages.
    """
    from vitscope.photographs import write_demo_photographs

    target = out / "dinov2-small"
    check_target(target, overwrite=overwrite)
    pictures = write_demo_photographs(out / "pictures")
    console = Console()
    console.print(pictures.describe(), markup=False, highlight=False)
    config = replace(AuditConfig(), limit=limit)
    result = _audit_one("dinov2-small", [out / "pictures"], config, target, overwrite=overwrite)
    console.print(make_report(result.summary))
    console.print(f"written to {target}", markup=False, highlight=False, soft_wrap=True)


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
    # A model's folder is its id with what file systems dislike replaced.
    names: dict[str, str] = {}
    for model_id in dict.fromkeys(model_ids):
        stem = re.sub(r"[^\w.-]+", "-", model_id, flags=re.ASCII).strip(".-") or "model"
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
    try:
        app(arguments)
    except CycloptsError as error:
        return _fail(str(error), 2)
    except UsageError as error:
        return _fail(str(error), 2)
    except VitscopeError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("stopped by the keyboard; the unfinished result was removed", 1)
    return 0


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"vitscope: {' '.join(message.split())}\n")
    return code
