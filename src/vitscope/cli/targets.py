"""What every command does first: find the images, check the models, choose the folders."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitscope.errors import UsageError
from vitscope.files.storage import check_target, check_writable, is_result, never

if TYPE_CHECKING:
    from vitscope.engines.local import Engine
    from vitscope.images.sources import FoundImages


def list_images(sources: Sequence[str]) -> "FoundImages":
    """List where the images lie that were named; an audit of them looks nothing up again."""
    from vitscope.images.sources import find_images  # here, for what it imports is slow

    return find_images(sources)


def choose_targets(
    model_ids: Sequence[str],
    out: Path,
    *,
    overwrite: bool,
    name_target: Callable[[Path, str], Path] = Path.joinpath,
) -> dict[str, Path]:
    """Each model's folder; what is asked for is checked as far as it can be before loading."""
    from vitscope.adapters.registry import check_model_id

    for model_id in model_ids:
        check_model_id(model_id)
    names = name_folders(model_ids)
    targets = {model_id: name_target(out, name) for model_id, name in names.items()}
    for target in targets.values():
        check_target(target, is_result if overwrite else never)
    check_writable(out)
    return targets


def choose_engine(name: str, address: str | None) -> "Engine":
    """Who does the work: of "local" the ranks of `torchrun`, where it started this process."""
    if name == "ray":
        from vitscope.engines.ray import RayEngine

        return RayEngine(address)
    if address is not None:
        raise UsageError(f"address {address!r} is of a Ray cluster: add --engine ray")
    from vitscope.engines.ranks import detect_engine

    return detect_engine()


def name_folders(model_ids: Sequence[str]) -> dict[str, str]:
    """A folder for each model, all different: its id, without what file systems dislike."""
    names: dict[str, str] = {}
    for model_id in dict.fromkeys(model_ids):
        stem = Path(model_id).name if Path(model_id).is_absolute() else model_id
        stem = re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip(".-")[:100] or "model"
        name, number = stem, 2
        while name in names.values():
            name, number = f"{stem}-{number}", number + 1
        names[model_id] = name
    return names
