"""Saved results as figures need them: found, read, named and put in order."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from vitscope.errors import ResultError, UsageError
from vitscope.figures.numbers import find, number
from vitscope.files.json_files import read_json
from vitscope.files.own_files import RESULT_KINDS as KINDS
from vitscope.files.printable import printable_path
from vitscope.files.reading import open_table
from vitscope.files.storage import MARKER
from vitscope.results.choices import describe_settings
from vitscope.results.saved_result import PROVENANCE, SCHEMA_VERSION

_LONGEST, _SHORT = 60, 32
_RECIPES = (
    "DINOv2",
    "DINOv2 with registers",
    "DINOv3",
    "DINO",
    "iBOT",
    "MAE",
    "DeiT",
    "DeiT III",
    "CLIP (OpenAI)",
    "CLIP (OpenCLIP)",
    "SigLIP",
    "SigLIP 2",
    "EVA-02",
)


@dataclass(frozen=True)
class ModelResult:
    """One result on disk, of any kind.

    Attributes:
        folder: Where it lies.
        kind: "audit", "one-shot" or "explanation".
        summary: Content of its `summary.json`.
        mark: What tells it from results of the same name; empty where nothing has to.
    """

    folder: Path
    kind: str
    summary: dict[str, Any]
    mark: str = ""

    @property
    def model_id(self) -> str:
        """The id of the model, as printable text."""
        return printable(find(self.summary, "model", "id") or "a model without id")

    @property
    def family(self) -> str:
        """The training recipe, or the library's family where the recipe is not known."""
        recipe = find(self.summary, "model", "recipe") or find(self.summary, "model", "family")
        return printable(recipe or self.model_id)

    @property
    def size(self) -> str | None:
        """The label of the model's size (S, B, L, g)."""
        size = find(self.summary, "model", "size")
        return printable(size) if isinstance(size, str) and size else None

    @property
    def params_m(self) -> float | None:
        """Parameters of the vision tower in millions."""
        params = number(find(self.summary, "model", "num_params"))
        return params / 1e6 if params is not None and params > 0 else None

    @property
    def depth(self) -> int | None:
        """Number of blocks."""
        depth = number(find(self.summary, "model", "depth"))
        return int(depth) if depth is not None and depth > 0 else None

    @property
    def num_registers(self) -> int:
        """Register tokens of the model."""
        return int(number(find(self.summary, "model", "num_registers")) or 0)

    @property
    def num_images(self) -> int:
        """Images that the numbers are over."""
        count = number(find(self.summary, "data", "num_images"))
        if count is None and isinstance(images := self.summary.get("images"), list):
            return len(images)
        return int(count or 0)

    @property
    def label(self) -> str:
        """What a person calls the model: recipe and size, or its id."""
        name = self.model_id if self.size is None else f"{self.family} {self.size}"
        return f"{name} ({self.mark})" if self.mark else name

    @property
    def short_label(self) -> str:
        """The label within its family: the size, or a short form of its id."""
        name = self.size or shorten(self.model_id, _SHORT)
        return f"{name} ({self.mark})" if self.mark else name

    @property
    def order(self) -> tuple[int, str, float, str, str]:
        """By family, then size."""
        known = _RECIPES.index(self.family) if self.family in _RECIPES else len(_RECIPES)
        return (known, self.family, self.params_m or 0.0, self.model_id, str(self.folder))

    @cached_property
    def weights_hash(self) -> str | None:
        """Digest of the weights, where the provenance tells it."""
        try:
            found = find(read_json(self.folder / PROVENANCE), "weights_hash")
        except ResultError:
            return None
        return printable(found) if isinstance(found, str) else None

    def read_column(self, name: str) -> Float64[np.ndarray, " image"] | None:
        """One number per image, where every image is kept."""
        with open_table(self.folder / "images.parquet") as file:
            if name not in file.schema_arrow.names:
                return None
            column = file.read(columns=[name]).column(name)
            values: np.ndarray = column.to_numpy().astype(np.float64)
        return np.where(np.isfinite(values), values, np.nan)


def load_results(folders: Sequence[Path]) -> list[ModelResult]:
    """Open results and put them in order of kind, family and size."""
    found: dict[Path, ModelResult] = {}
    for folder in folders:
        places = _find_results(folder)
        if not places:
            raise UsageError(
                f"{printable_path(folder)} is not a result and holds none: give folders that "
                "vitscope audit, one-shot or explain wrote"
            )
        for place in places:
            key = place.resolve()
            if key not in found:
                found[key] = _load(place)
    return sorted(found.values(), key=lambda one: (KINDS.index(one.kind), one.order))


def tell_apart(results: Sequence[ModelResult]) -> list[ModelResult]:
    """Name results by their settings where these differ, and number those that are alike still."""
    settings = [printable(describe_settings(result.summary)) for result in results]
    marked = [
        replace(result, mark=told if len(set(settings)) > 1 else "")
        for result, told in zip(results, settings, strict=True)
    ]
    counts = Counter[tuple[str, str]]()
    apart = []
    for result in marked:
        counts[result.kind, result.label] += 1
        count = counts[result.kind, result.label]
        mark = result.mark if count == 1 else ", ".join(filter(None, [result.mark, str(count)]))
        apart.append(replace(result, mark=mark))
    return apart


def printable(value: object) -> str:
    """Text of a result as one line that a font has the letters for."""
    text = " ".join(str(value).split())
    safe = "".join(c if c.isprintable() and ord(c) < 0x250 else _escape(c) for c in text)
    return shorten(safe, _LONGEST)


def shorten(text: str, longest: int) -> str:
    """Text that is cut in the middle where it is too long."""
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def format_millions(params_m: float) -> str:
    """A number of parameters as people write it."""
    return f"{params_m:,.0f} M" if params_m >= 10 else f"{params_m:.2g} M"


def slug(text: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip(".-")[:80] or "model"


def _escape(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode() if ord(letter) > 0x7E else "?"


def _find_results(folder: Path) -> list[Path]:
    if (folder / MARKER).is_file():
        return [folder]
    places = []
    for here, below, files in os.walk(folder):
        # Hidden folders hold what is still being written.
        below[:] = sorted(name for name in below if not name.startswith("."))
        if MARKER in files:
            places.append(Path(here))
            below.clear()
    return places


def _load(folder: Path) -> ModelResult:
    name = printable_path(folder)
    summary = read_json(folder / MARKER)
    version, kind = find(summary, "schema_version"), find(summary, "kind")
    if version != SCHEMA_VERSION:
        raise ResultError(
            f"{name} was written with schema {printable(version)}, figures are drawn from "
            f"schema {SCHEMA_VERSION}: run it again"
        )
    if kind not in KINDS:
        raise ResultError(
            f"{name} is a result of the unknown kind {printable(repr(kind))}: expected one of "
            f"{', '.join(KINDS)}"
        )
    return ModelResult(folder, kind, summary)


def group_by_family(results: Iterable[ModelResult]) -> dict[str, list[ModelResult]]:
    """Models of one training recipe together, by size."""
    families: dict[str, list[ModelResult]] = {}
    for result in sorted(results, key=lambda one: one.order):
        families.setdefault(result.family, []).append(result)
    return families
