"""Running a command for each of several models."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.progress import TaskID
from rich.text import Text

import vitscope
from vitscope.adapters.model_ids import check_model_id, check_weights, has_weights
from vitscope.cli.output import Output, make_progress
from vitscope.config import RunConfig
from vitscope.errors import (
    ModelUnreachableError,
    UnknownModelError,
    UnsupportedModelError,
    UsageError,
    VitscopeError,
)
from vitscope.files.printable import printable
from vitscope.files.storage import check_target, check_writable, is_result, never
from vitscope.images.paths import check_given
from vitscope.layout import make_grid
from vitscope.weights.catalogue import find_entry

if TYPE_CHECKING:
    from vitscope.images.search import FoundImages
    from vitscope.models.base import ViTAdapter

_Result = TypeVar("_Result")


def check_ids(model_ids: Sequence[str]) -> None:
    """Refuse unknown models, and those named twice; imports no library."""
    for model_id in model_ids:
        if model_ids.count(model_id) > 1:
            raise UsageError(f"model {model_id} was given twice: give each model once")
        check_model_id(model_id)


def check_all_weights(model_ids: Iterable[str], output: Output) -> None:
    """Refuse models whose weights can be neither read nor fetched, before any is loaded."""
    if output.quiet:
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    with output.bars.status("looking for weights"):
        for model_id in model_ids:
            check_weights(model_id)


def find_images(sources: Sequence[str], model_ids: Iterable[str], output: Output) -> "FoundImages":
    """Find images.

    Names that do not exist, and models without weights, are refused before torch is imported, which
    takes seconds.
    """
    check_given(*sources)
    check_all_weights(model_ids, output)
    with output.bars.status("looking for images"):
        from vitscope.images.search import find_images as search

        return search(sources)


Edits = Callable[["ViTAdapter"], AbstractContextManager["ViTAdapter"]]
"""The context with a model as it is edited before it runs."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """The models of a command, how they are edited, and where their results go.

    Attributes:
        model: Model id, once per model: a built-in name, a Hugging Face id or local folder,
            timm:NAME[@CHECKPOINT], torchhub:NAME, open_clip:NAME/TAG.
        out: Folder for the results, one folder per model.
        remedy: Edit the model first, as in mask:tokens=cls (`vitscope remedy list`); once per edit,
            in order.
        overwrite: Replace earlier results there, finished or not.
        resume: Resume an interrupted run with the same settings; finished results are kept.
    """

    model: list[str]
    out: Path
    remedy: list[str] | None = None
    overwrite: bool = False
    resume: bool = False

    @property
    def replaces(self) -> bool:
        """Whether results that are there may be replaced."""
        return self.overwrite or self.resume

    @property
    def names(self) -> dict[str, str]:
        """The name of each model's folder, which says what the edits are."""
        return name_folders(self.model, self.remedy or ())

    def choose_targets(
        self, config: RunConfig, name_target: Callable[[Path, str], Path] = Path.joinpath
    ) -> dict[str, Path]:
        """Choose each model's folder; unknown models and sizes that do not fit are refused."""
        check_ids(self.model)
        for entry in filter(None, map(find_entry, self.model)):
            if config.input_size is not None:
                make_grid(*config.input_size, (entry.patch_size, entry.patch_size))
        targets = {model_id: name_target(self.out, name) for model_id, name in self.names.items()}
        for target in targets.values():
            check_target(target, is_result if self.replaces else never)
        check_writable(self.out)
        return targets

    def edit(self, images: Sequence[Any], config: RunConfig) -> Edits:
        """The edits, measured on images; remedies that do not exist are refused."""
        if not self.remedy:
            return nullcontext
        from vitscope.runs.remedy_fit import edited, read_remedies

        chosen = read_remedies(self.remedy)
        return partial(edited, remedies=chosen, images=images, config=config)


def run_with_bars(
    model_id: str,
    run: Callable[..., _Result],
    *,
    output: Output,
    edits: Edits = nullcontext,
    **later: str,
) -> _Result:
    """Run a model with a bar for its images and, once they advance, others."""
    console = output.bars
    told = f"loading {printable(model_id)}"
    console.tell(told)
    # Nothing else moves then; what downloads has bars of its own, which this would hide.
    with console.status(Text(told)) if has_weights(model_id) else nullcontext():
        vit = vitscope.load_model(model_id)
    with make_progress(console) as progress:
        bars = {"on_progress": progress.add_task(model_id, total=None)}
        for name, unit in later.items():
            bars[name] = progress.add_task(unit, total=None, visible=False, unit=unit)

        def advance(bar: TaskID, done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total, visible=True)

        with edits(vit) as ready:
            return run(ready, **{name: partial(advance, bar) for name, bar in bars.items()})


def run_each(
    model_ids: Collection[str],
    choose_work: Callable[[str], Callable[..., _Result]],
    *,
    output: Output,
    edits: Edits = nullcontext,
    **later: str,
) -> Iterator[tuple[str, _Result]]:
    """Run the models one by one; those that cannot be loaded are named at the end."""
    failed: dict[str, VitscopeError] = {}
    for model_id in model_ids:
        try:
            work = choose_work(model_id)
            result = run_with_bars(model_id, work, output=output, edits=edits, **later)
        except (ModelUnreachableError, UnknownModelError, UnsupportedModelError) as error:
            if len(model_ids) == 1:
                raise
            failed[model_id] = error
        else:
            yield model_id, result
    if failed:
        told = "; ".join(f"{model_id}: {error}" for model_id, error in failed.items())
        raise VitscopeError(f"{len(failed)} of {len(model_ids)} models cannot be loaded: {told}")


def name_folders(model_ids: Sequence[str], remedies: Sequence[str] = ()) -> dict[str, str]:
    """Choose a distinct folder name for each model: its id without problematic characters.

    Names of edited models say what the edits are.
    """
    names: dict[str, str] = {}
    # A setting may have a point in it, which begins no suffix.
    edits = [Path(one).stem if one.endswith(".safetensors") else one for one in remedies]
    for model_id in model_ids:
        stem = Path(model_id).name if Path(model_id).is_absolute() else model_id
        stem = "+".join([stem, *edits])
        stem = re.sub(r"[^\w.+=-]+", "-", stem, flags=re.ASCII).strip(".-")[:100] or "model"
        name, number = stem, 2
        while name in names.values():
            name, number = f"{stem}-{number}", number + 1
        names[model_id] = name
    return names
