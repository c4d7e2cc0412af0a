"""The models of a reproduction, and where their weights come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from vitscope.adapters.registry import load_model
from vitscope.errors import UsageError
from vitscope.files.printable import printable
from vitscope.models.base import ViTAdapter
from vitscope.weights.catalogue import CatalogueEntry, plan_models
from vitscope.weights.hub import find_weights

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """One model of a reproduction."""

    name: str
    size: str
    num_params: int
    source: str
    download_mb: int  # size of the download in megabytes; 0 for none
    state: str  # where its weights are now
    weights: str  # identifies the weights before they are loaded; empty if there are none
    load: Callable[[], ViTAdapter]


def plan_reproduction(
    families: Sequence[str], sizes: Sequence[str], checkpoints: Path | None = None
) -> list[PlannedModel]:
    """Choose the models of a reproduction."""
    if checkpoints is not None and not checkpoints.is_dir():
        raise UsageError(f"{checkpoints} is not a folder: give one that holds files of weights")
    chosen = plan_models(families, sizes)
    return [_plan_model(name, entry, checkpoints) for name, entry in chosen]


def _plan_model(name: str, entry: CatalogueEntry, checkpoints: Path | None) -> PlannedModel:
    file = None
    if entry.checkpoint and checkpoints is not None:
        files = (checkpoints / f"{name}{suffix}" for suffix in _SUFFIXES)
        file = next((one for one in files if one.is_file()), None)
    state = "at hand" if file is not None else find_weights(entry)
    return PlannedModel(
        name=name,
        size=entry.size,
        num_params=entry.num_params,
        source=str(file or entry.source),
        download_mb=0 if state in {"cached", "embedded", "at hand"} else entry.download_mb,
        state=state,
        weights=entry.repository if file is None else _describe_file(file),
        load=partial(_load, name, entry, file),
    )


def _describe_file(file: Path) -> str:
    status = file.stat()
    written = datetime.fromtimestamp(status.st_mtime, UTC).isoformat()
    return f"{printable(file.name)} ({status.st_size} bytes, of {written})"


def _load(name: str, entry: CatalogueEntry, file: Path | None) -> ViTAdapter:
    if file is None:
        return load_model(name)
    architecture = entry.id.partition("@")[0]
    vit = load_model(f"{architecture}@{file}").labelled(entry.family, entry.size)
    return vit.named(name, vit.info.source)
