"""Remedies in files: settings as JSON, and what was measured as tensors."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from vitscope.errors import ResultError, UsageError
from vitscope.files.json_files import dump_json
from vitscope.files.printable import printable_path
from vitscope.files.storage import check_file_target, never, staged_file
from vitscope.files.tensor_files import read_tensors, write_tensors
from vitscope.remedies.registry import REMEDIES, parse_remedy
from vitscope.remedies.remedy import Origin, Remedy

SUFFIX = ".safetensors"

_DAMAGES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError),
    *(ValueError, UsageError),
)
"""What foreign settings and tensors may raise where a remedy is made of them."""


def save_remedy(
    remedy: Remedy, path: str | Path, *, overwrite: bool = False, run: str | None = None
) -> Path:
    """Save a fitted remedy as safetensors; `run` is the one that resumes with it, if any."""
    target, measured = Path(path), remedy.list_measured()
    check_saved(target, overwrite=overwrite)
    if not measured or remedy.measured_on is None:
        raise UsageError(
            f"the remedy {remedy.label} measures nothing that could be saved: give its name"
        )
    about = {
        "remedy": remedy.label,
        "described": remedy.describe(),
        "weights_hash": remedy.measured_on.model,
        "run": run,
        "measured": {name: each.tell() for name, each in measured.items()},
    }
    tensors = {
        f"{name}.{key}": tensor.contiguous()
        for name, each in measured.items()
        for key, tensor in each.save().items()
    }
    with staged_file(target, replaces=_is_remedy if overwrite else never) as staging:
        write_tensors(staging, tensors, {"vitscope_remedy": dump_json(about)})
    return target


def load_remedy(path: str | Path) -> Remedy:
    """Load a remedy that `save_remedy` wrote; it applies to the model that was measured alone."""
    return _read(Path(path))[0]


def check_saved(path: Path, *, overwrite: bool) -> None:
    """Refuse a file of another suffix, and one that is there and may not be replaced."""
    if path.suffix != SUFFIX:
        raise UsageError(f"{printable_path(path)}: expected a file name that ends in {SUFFIX}")
    check_file_target(path, _is_remedy if overwrite else never)


def find_run(path: Path) -> str | None:
    """The run that measured a saved remedy; None if no run did, or it is none."""
    try:
        return _read(path)[1]
    except ResultError:
        return None


def find_saved(remedy: Remedy, path: Path, run: str) -> Remedy | None:
    """What a run measured of a remedy before it was interrupted; None if it saved nothing."""
    saved = load_remedy(path) if find_run(path) == run else None
    return saved if saved is not None and saved.label == remedy.label else None


def _read(source: Path) -> tuple[Remedy, str | None]:
    tensors, metadata = read_tensors(source)
    damaged = ResultError(f"{printable_path(source)} is no saved remedy, or damaged")
    try:
        about = json.loads(metadata["vitscope_remedy"])
        remedy = parse_remedy(about["remedy"])
        origin = Origin(str(about["weights_hash"]), remedy.label)
        found: dict[str, Any] = {"measured_on": origin}
        hints = get_type_hints(type(remedy))
        for field in fields(remedy):
            own = {
                key.partition(".")[2]: tensor
                for key, tensor in tensors.items()
                if key.partition(".")[0] == field.name
            }
            if own:
                (kind,) = (k for k in get_args(hints[field.name]) if hasattr(k, "load"))
                found[field.name] = kind.load(own)
        measured = replace(remedy, **found)
        if measured.describe() != about["described"]:
            raise damaged
        return measured, about["run"]
    except _DAMAGES:
        raise damaged from None


def open_remedy(text: str) -> Remedy:
    """A remedy by its name with settings, or by its file."""
    if text.partition(":")[0] in REMEDIES or not text.endswith(SUFFIX):
        return parse_remedy(text)
    if not Path(text).is_file():
        raise UsageError(f"{text} is no file: expected a remedy saved by `vitscope remedy find`")
    return load_remedy(text)


def _is_remedy(path: Path) -> bool:
    try:
        load_remedy(path)
    except ResultError:
        return False
    return True
