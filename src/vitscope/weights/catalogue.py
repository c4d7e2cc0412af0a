"""The catalogue: models with built-in names, and where their weights are.

Source: Lappe & Giese (NeurIPS 2025), figures 2 to 9, for the paper's models.
"""

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from typing import Any

from vitscope.errors import UsageError
from vitscope.layout import TokenLayout, make_grid, make_layout


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One published model."""

    name: str
    id: str
    family: str  # training recipe, shared by models that differ in size
    family_key: str  # key for planning and listing; may cover more than one recipe
    size: str
    num_params: int
    width: int
    depth: int
    num_heads: int  # attention heads of the analysed block
    patch_size: int  # side of a patch in pixels
    input_size: int  # side of the input in pixels, by default
    num_registers: int = 0
    global_feature: str = "cls"  # "cls" or "attention pooling"
    licence: str
    repository: str = ""  # on the Hugging Face hub; empty if there is a checkpoint instead
    gated: bool = False  # whether the hub requires accepting its terms first
    download_mb: int  # size of the whole weights file in megabytes, in float32
    checkpoint: str = ""  # where to download weights by hand if no id does
    note: str = ""  # remark for readers of its numbers

    @property
    def library(self) -> str:
        """The library that runs it: "transformers", "timm" or "open_clip"."""
        return self.id.partition(":")[0] if ":" in self.id else "transformers"

    @property
    def source(self) -> str:
        """Where its weights come from: a repository on the Hugging Face hub, or a web address."""
        return self.checkpoint or self.repository

    @property
    def download(self) -> str:
        """The download size as text: "346 MB", "1.2 GB"."""
        megabytes = self.download_mb
        return f"{megabytes} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"

    @property
    def layout(self) -> TokenLayout:
        """The token layout at its input size."""
        pooling = self.global_feature == "attention pooling"
        order = {"cls": int(not pooling), "registers": self.num_registers, "patches": 0}
        grid = make_grid(self.input_size, self.input_size, (self.patch_size, self.patch_size))
        return make_layout(order, grid, pooling_query=pooling)

    @property
    def size_class(self) -> str:
        """Size class for comparison across families, one of `SIZE_CLASSES`."""
        return next(name for name, limit in SIZE_CLASSES.items() if self.num_params < limit)


SIZE_CLASSES: Mapping[str, float] = {"ti": 15e6, "s": 50e6, "b": 200e6, "l": 400e6, "g": math.inf}
"""Size classes across families: models of a class have fewer parameters than its limit."""


def _read_entries() -> dict[str, CatalogueEntry]:
    entries = {}
    for key, table in _FAMILIES.items():
        family = dict(table)
        rows, particulars = family.pop("models"), family.pop("particulars", {})
        for row in rows:
            own: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
            own |= {"repository": _find_repository(own["id"])} | particulars.get(own["name"], {})
            entries[own["name"]] = CatalogueEntry(family_key=key, **(family | own))
    return entries


def _find_repository(model_id: str) -> str:
    library, _, name = model_id.rpartition(":")
    if library:
        return "" if "@" in name else f"{library}/{name}"
    return model_id


_FILE = files("vitscope.weights") / "catalogue.toml"
_FAMILIES = tomllib.loads(_FILE.read_text(encoding="utf-8"))
_COLUMNS = _FAMILIES.pop("columns")

CATALOGUE: Mapping[str, CatalogueEntry] = _read_entries()
"""Models by built-in name, grouped by family and sorted by size within each."""

FAMILIES: Mapping[str, str] = {key: table["family"] for key, table in _FAMILIES.items()}
"""Family names by their short keys."""


def plan_models(families: Sequence[str], sizes: Sequence[str]) -> list[tuple[str, CatalogueEntry]]:
    """Choose the models of some families that are of some `SIZE_CLASSES`, all in a class."""
    _check_known("family", families, FAMILIES)
    _check_known("size", sizes, SIZE_CLASSES)
    chosen = [
        (name, entry)
        for family in dict.fromkeys(families)
        for name, entry in CATALOGUE.items()
        if entry.family_key == family and entry.size_class in sizes
    ]
    if not chosen:
        raise UsageError(
            f"no model of {', '.join(families) or 'no family'} has the size "
            f"{', '.join(sizes) or '(none given)'}: `vitscope models` lists what there is"
        )
    return chosen


def _check_known(kind: str, given: Sequence[str], known: Mapping[str, object]) -> None:
    for name in given:
        if name not in known:
            raise UsageError(f"unknown {kind} {name!r}: expected one of {', '.join(known)}")


def find_entry(model_id: str) -> CatalogueEntry | None:
    """Find the entry of a model by its built-in name or its id."""
    if model_id in CATALOGUE:
        return CATALOGUE[model_id]
    return next((entry for entry in CATALOGUE.values() if entry.id == model_id), None)


def describe_near_matches(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known names, as the end of an error message."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    # At a cutoff of 0.6 a swapped or missing letter still matches, but another model does not.
    near = [by_lower[match] for match in get_close_matches(name.lower(), by_lower, cutoff=0.6)]
    if not near:
        return ""
    return f"; did you mean {', '.join(near[:-1])}{' or ' if near[1:] else ''}{near[-1]}?"
