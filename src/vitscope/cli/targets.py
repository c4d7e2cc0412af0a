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
    """List the images that were named; see `vitscope.images.sources.find_images`.

    Args:
        sources: Folders, files and URLs.

    Returns:
        Where the images lie; an audit of them looks nothing up again.
    """
    from vitscope.images.sources import find_images  # here, for what it imports is slow

    return find_images(sources)


def choose_targets(
    model_ids: Sequence[str],
    out: Path,
    *,
    overwrite: bool,
    name_target: Callable[[Path, str], Path] = Path.joinpath,
) -> dict[str, Path]:
    """Check what is asked for as far as it can be before anything is loaded.

    Args:
        model_ids: Ids of models.
        out: Folder that holds a folder per model.
        overwrite: Whether earlier results there may be replaced.
        name_target: From `out` and a model's name to its folder.

    Returns:
        Each model's folder, in the order of the ids.
    """
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
    """Who does the work.

    Args:
        name: "local" or "ray".
        address: Address of the Ray cluster; None for one on this machine.

    Returns:
        The engine; of "local" the ranks of `torchrun`, where it started this process.

    Raises:
        UsageError: If an address is given and no cluster asked for.
    """
    if name == "ray":
        from vitscope.engines.ray import RayEngine

        return RayEngine(address)
    if address is not None:
        raise UsageError(f"address {address!r} is of a Ray cluster: add --engine ray")
    from vitscope.engines.ranks import detect_engine

    return detect_engine()


def name_folders(model_ids: Sequence[str]) -> dict[str, str]:
    """Name a folder for each model: its id with what file systems dislike replaced.

    Args:
        model_ids: Ids of models; of a local folder its name alone is taken.

    Returns:
        A name per id, each different.
    """
    names: dict[str, str] = {}
    for model_id in dict.fromkeys(model_ids):
        stem = Path(model_id).name if Path(model_id).is_absolute() else model_id
        stem = re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip(".-")[:100] or "model"
        name, number = stem, 2
        while name in names.values():
            name, number = f"{stem}-{number}", number + 1
        names[model_id] = name
    return names
