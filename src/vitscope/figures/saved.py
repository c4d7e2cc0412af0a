"""Saved results for figures: finding, reading, naming and ordering them."""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain, compress, count
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from vitscope.errors import ResultError, UsageError
from vitscope.files.printable import printable_path, without_folders
from vitscope.files.reading import open_table
from vitscope.files.storage import MARKER
from vitscope.results import schema
from vitscope.results.choices import describe_settings
from vitscope.results.saved_result import SavedResult, check_run, read_runs
from vitscope.results.schema import KINDS, S, Summary
from vitscope.results.schema_remedies import EDITED, PLACES

_LONGEST, _SHORT = 60, 32
_SAME_SIZE = 0.06
"""Sizes whose parameters differ by less than 15 % (a power of ten of this) share a label."""
_TIMES = ("%H:%M UTC", "%H:%M:%S UTC")
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


def _only_of(kind: type[S]) -> cached_property[S]:
    """The summary of a result of this kind."""

    def read(result: "ModelResult") -> S:
        if not isinstance(result.summary, kind):
            raise ResultError(
                f"{printable_path(result.folder)} is a result of kind {result.kind!r}: expected "
                f"{kind.KIND!r}"
            )
        return result.summary

    return cached_property(read)


@dataclass(frozen=True)
class ModelResult:
    """A saved result with its names in figures."""

    saved: SavedResult  # the result, of any kind
    mark: str = ""  # suffix that distinguishes results of the same name; empty if not needed

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.saved.folder

    @property
    def summary(self) -> Summary:
        """Every number of it."""
        return self.saved.summary

    @property
    def kind(self) -> str:
        """Kind of result: "audit", "one-shot", "explanation", "judgement" or "remedies"."""
        return self.summary.KIND

    audit = _only_of(schema.AuditSummary)
    one_shot = _only_of(schema.OneShotSummary)
    explanation = _only_of(schema.ExplanationSummary)
    judgement = _only_of(schema.JudgementSummary)
    remedies = _only_of(schema.RemediesSummary)

    @property
    def model_id(self) -> str:
        """The id of the model, as printable text."""
        return printable(self.summary.model.id or "a model without id")

    @property
    def family(self) -> str:
        """The training recipe, or the library's family if the recipe is not known."""
        model = self.summary.model
        return printable(model.recipe or model.family or self.model_id)

    @property
    def size(self) -> str | None:
        """The label of the model's size (S, B, L, g)."""
        size = self.summary.model.size
        return printable(size) if size else None

    @property
    def params_m(self) -> float | None:
        """Parameters of the vision tower in millions; None if not known."""
        return self.summary.model.num_params / 1e6 or None

    @property
    def num_images(self) -> int:
        """Number of images behind the numbers."""
        return self.summary.data.num_images

    @property
    def label(self) -> str:
        """Name of the model: recipe and size, or its id."""
        return self._add_mark(self.model_id if self.size is None else f"{self.family} {self.size}")

    @property
    def short_label(self) -> str:
        """The label within its family: the size, or a short form of its id."""
        return self._add_mark(self.size or shorten(self.model_id, _SHORT))

    @property
    def series(self) -> str:
        """What one line over sizes is of: the family, and what tells its results apart."""
        return self._add_mark(self.family)

    def _add_mark(self, name: str) -> str:
        return f"{name} ({self.mark})" if self.mark else name

    @property
    def order(self) -> tuple[int, str, float]:
        """Sort key: family, then size; otherwise results keep the order in which they are given."""
        known = _RECIPES.index(self.family) if self.family in _RECIPES else len(_RECIPES)
        return (known, self.family, self.params_m or 0.0)

    @cached_property
    def run(self) -> str:
        """Name of the run; empty if it is not known."""
        try:
            return printable(self.saved.name)
        except ResultError:
            return ""

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """How the result was made; empty if that cannot be read."""
        try:
            return self.saved.provenance
        except ResultError:
            return {}

    @property
    def finished(self) -> datetime | None:
        """When the run finished, in UTC; None if that is not known."""
        try:
            return datetime.fromisoformat(self.provenance["finished"]).astimezone(UTC)
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    @property
    def notes(self) -> list[str]:
        """Notes on the model and the images."""
        return list(map(without_folders, (*self.summary.model.notes, *self.summary.data.notes)))

    @property
    def weights_hash(self) -> str | None:
        """Digest of the weights, if the provenance has it."""
        found = self.provenance.get("weights_hash")
        return printable(found) if isinstance(found, str) else None

    def read_column(self, name: str) -> Float64[np.ndarray, " image"] | None:
        """One number per image; None if the result has no such column."""
        with open_table(self.folder / "images.parquet") as file:
            if name not in file.schema_arrow.names:
                return None
            column = file.read(columns=[name]).column(name)
            values: np.ndarray = column.to_numpy().astype(np.float64)
        return np.where(np.isfinite(values), values, np.nan)


def load_results(folders: Sequence[Path]) -> list[ModelResult]:
    """Open results, ordered by kind, family and size."""
    found: dict[Path, ModelResult] = {}
    for folder in folders:
        places = _find_results(folder)
        if not places:
            raise UsageError(
                f"{printable_path(folder)} is not a result and holds none: give folders that "
                "vitscope audit, one-shot, explain, judge or remedy wrote"
            )
        for place in places:
            key = place.resolve()
            if key not in found:
                found[key] = ModelResult(SavedResult.load(place))
    given = {folder.resolve() for folder in folders}
    for place in _list_left(found) - given:
        found.pop(place)
    order = [kind.KIND for kind in KINDS]
    return sorted(found.values(), key=lambda one: (order.index(one.kind), one.order))


def _list_left(found: Mapping[Path, ModelResult]) -> set[Path]:
    # Results of edits that an earlier run compared, and that the comparison beside them does not.
    left: set[Path] = set()
    for place, result in found.items():
        if result.kind == "remedies":
            for name in read_runs(result.saved):
                if (audit := found.get(place.parent / name)) is not None:
                    check_run(result.saved, audit.saved)
            edited = f"{result.summary.model.id}+"
            beside = {place.parent / each for each in PLACES}
            compared = {one.folder for one in result.remedies.remedies}
            left |= {
                other
                for other, audit in found.items()
                if other.parent in beside
                and EDITED.fullmatch(other.name)
                and audit.summary.model.id.startswith(edited)
                and other.name not in compared
            }
    return left


def tell_apart(results: Sequence[ModelResult]) -> list[ModelResult]:
    """Mark results of the same name by what differs; by time or number if nothing else does."""
    marked = mark_differences(results)
    told = {name: iter(_tell_times(group)) for name, group in _group_by_name(marked).items()}
    return [_mark(one, one.mark, next(told[one.kind, one.label])) for one in marked]


def mark_differences(results: Sequence[ModelResult]) -> list[ModelResult]:
    """Mark results by settings if these differ, and those of the same name by model and run too."""
    settings = [printable(describe_settings(result.summary)) for result in results]
    alike = _group_by_name(results)
    marked = []
    for result, told in zip(results, settings, strict=True):
        group = alike[result.kind, result.label]
        differ = (
            len({one.model_id for one in group}) > 1,
            len({one.run for one in group}) > 1,
            len(set(settings)) > 1,
        )
        marked.append(_mark(result, *compress((result.model_id, result.run, told), differ)))
    return marked


def _mark(result: ModelResult, *words: str) -> ModelResult:
    return replace(result, mark=", ".join(filter(None, words)))


def _group_by_name(results: Sequence[ModelResult]) -> dict[tuple[str, str], list[ModelResult]]:
    groups: dict[tuple[str, str], list[ModelResult]] = {}
    for result in results:
        groups.setdefault((result.kind, result.label), []).append(result)
    return groups


def _tell_times(results: Sequence[ModelResult]) -> list[str]:
    # As short as tells them apart; numbers if nothing does.
    finished = [one.finished for one in results]
    times = [time for time in finished if time is not None]
    if 1 < len(times) == len(finished):
        same_day = len({time.date() for time in times}) == 1
        for form in _TIMES if same_day else ("%Y-%m-%d", *(f"%Y-%m-%d {form}" for form in _TIMES)):
            told = [time.strftime(form) for time in times]
            if len({*told}) == len(told):
                return told
    return ["", *map(str, range(2, len(results) + 1))]


def label_sizes(results: Iterable[ModelResult]) -> list[tuple[float, str]]:
    """Labels of sizes and their positions on the parameter axis; close ones are merged."""
    labelled = sorted(
        (result.params_m, result.size.split("/")[0])
        for result in {result.folder: result for result in results}.values()
        if result.size is not None and result.params_m is not None
    )
    groups: list[list[tuple[float, str]]] = []
    for params, label in labelled:
        if groups and math.log10(params / groups[-1][0][0]) < _SAME_SIZE:
            groups[-1].append((params, label))
        else:
            groups.append([(params, label)])
    return [
        (
            math.exp(sum(math.log(params) for params, _ in group) / len(group)),
            ", ".join(dict.fromkeys(label for _, label in group)),
        )
        for group in groups
    ]


def printable(value: object) -> str:
    """Text of a result as one line of printable characters that the font has."""
    text = without_folders(" ".join(str(value).split()))
    safe = "".join(c if c.isprintable() and ord(c) < 0x250 else _escape(c) for c in text)
    return shorten(safe, _LONGEST)


def name_apart(stem: str, taken: Iterable[str]) -> str:
    """A name that no file system confuses with those already taken."""
    known = {name.casefold() for name in taken}
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    return next(name for name in names if name.casefold() not in known)


def as_sentence(text: str) -> str:
    """Add a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def shorten(text: str, longest: int) -> str:
    """Cut text in the middle if it is too long."""
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def slug(text: str) -> str:
    """Text as a name that is valid on any file system."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip(".-")[:80] or "model"


def _escape(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode() if ord(letter) > 0x7E else "?"


def _find_results(folder: Path) -> list[Path]:
    if (folder / MARKER).is_file():
        return [folder]
    places = []
    for here, below, files in os.walk(folder):
        # Hidden folders hold unfinished results.
        below[:] = sorted(name for name in below if not name.startswith("."))
        if MARKER in files:
            places.append(Path(here))
            below.clear()
    return places
