"""What every saved result is: a folder that lasts, or one that goes with the object."""

import csv
import re
import shutil
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar, Self

import pyarrow as pa

from vitscope.errors import ResultError, UsageError, VitscopeError
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.json_files import read_json
from vitscope.files.printable import printable, printable_path
from vitscope.files.reading import plain_damage, read_bounded
from vitscope.files.storage import MARKER, is_result, never, staged_folder
from vitscope.results.summary_schema import check_summary

SCHEMA_VERSION = 4
_CHUNK_BYTES = 2**20
FAILURES, PROVENANCE = "failures.csv", "provenance.json"
_MAX_FAILURES_BYTES = 2**30
# Behind apostrophes too, or a cell that has one itself would lose it when it is read back.
_FORMULA = re.compile(r"^'*[=+\-@\t\r]")


@dataclass(frozen=True)
class SavedResult:
    """A result on disk; a thin face over its files.

    Attributes:
        KIND: What the result is of, as its summary says.
        folder: Where it lies.
    """

    KIND: ClassVar[str]
    folder: Path

    @classmethod
    def own(cls, folder: Path) -> Self:
        """Open a result whose folder lasts no longer than the object.

        Args:
            folder: A complete result in a temporary folder.

        Returns:
            The result; `save` it to keep it.
        """
        result = cls(folder)
        finalizer = weakref.finalize(result, shutil.rmtree, folder, ignore_errors=True)
        object.__setattr__(result, "_finalizer", finalizer)
        return result

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open a saved result.

        Args:
            folder: A folder that a run or `save` wrote.

        Returns:
            The result.

        Raises:
            ResultError: If it is not a result of this kind and schema.
        """
        result = cls(Path(folder))
        _ = result.summary  # which is checked as it is read
        return result

    @property
    def summary(self) -> dict[str, Any]:
        """Every number over the images, as in `summary.json`.

        Raises:
            ResultError: If it is not of a result of this kind and schema, or damaged.
        """
        summary = read_json(self.folder / MARKER)
        found = summary if isinstance(summary, dict) else {}
        if (version := found.get("schema_version")) != SCHEMA_VERSION:
            raise ResultError(
                f"{printable_path(self.folder)} was written with schema {_show(version)}, this "
                f"version reads {SCHEMA_VERSION}: run it again"
            )
        if (kind := found.get("kind")) != self.KIND:
            raise ResultError(
                f"{printable_path(self.folder)} is a result of kind {_show(kind)}: expected "
                f"{self.KIND!r}"
            )
        check_summary(found, self.folder / MARKER)
        return found

    @property
    def provenance(self) -> dict[str, Any]:
        """Configuration, versions, weights hash.

        Raises:
            ResultError: If it cannot be read.
        """
        path = self.folder / PROVENANCE
        provenance = read_json(path)
        if not isinstance(provenance, dict):
            raise ResultError(f"{printable_path(path)} is damaged: expected an object")
        return provenance

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Images that could not be read, with the reason."""
        return read_failures(self.folder)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Self:
        """Copy the result to another place.

        Where that fails, a result of a temporary folder is kept there, whatever becomes of the
        object; the error names the folder.

        Args:
            folder: Where to.
            overwrite: Whether an earlier result there is replaced.

        Returns:
            The result at its new place.

        Raises:
            UsageError: If something else is there.
            VitscopeError: If the disk does not take it.
        """
        target = Path(folder)
        if target.resolve().is_relative_to(self.folder.resolve()):
            raise UsageError(f"{folder} is inside the result itself: choose another folder")
        try:
            with staged_folder(target, replaces=is_result if overwrite else never) as staging:
                _copy(self.folder, staging)
        except VitscopeError as error:
            finalizer = getattr(self, "_finalizer", None)
            if finalizer is not None and finalizer.detach():
                error.add_note(f"the result is kept in {printable_path(self.folder)}")
            raise
        return type(self)(target)


@dataclass(frozen=True)
class TabularResult(SavedResult):
    """A result with a table, which other libraries take over.

    Attributes:
        KIND: What the result is of, as its summary says.
        folder: Where it lies.
    """

    @property
    def _table(self) -> pa.Table:
        raise NotImplementedError

    def to_pandas(self) -> Any:
        """The rows behind the summary as a DataFrame of pandas.

        Returns:
            The `pandas.DataFrame`.

        Raises:
            UsageError: If pandas is not installed.
            ResultError: If the table cannot be read.
        """
        _import("pandas")
        return self._table.to_pandas()

    def to_polars(self) -> Any:
        """The rows behind the summary as a DataFrame of polars.

        Returns:
            The `polars.DataFrame`.

        Raises:
            UsageError: If polars is not installed.
            ResultError: If the table cannot be read.
        """
        return _import("polars").from_arrow(self._table)


def _import(library: str) -> Any:
    try:
        return import_module(library)
    except ImportError:
        raise UsageError(
            f"{library} is not installed: pip install {library}, or take the Arrow table"
        ) from None


def _copy(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            with plain_disk_errors(place):
                place.mkdir()
        else:
            _copy_file(path, place)


def _copy_file(source: Path, target: Path) -> None:
    if not source.is_file():  # a device may never end
        raise ResultError(f"{printable_path(source)} is damaged: not a regular file")
    with plain_disk_errors(target):
        copy = target.open("xb")
    try:
        with copy, source.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                with plain_disk_errors(target):
                    copy.write(chunk)
                    copy.flush()
    except OSError as error:
        name = printable_path(source)
        raise ResultError(f"{name} cannot be read: {error.strerror}") from error


def _show(value: Any) -> str:
    return shorten(printable(repr(value)), width=60, placeholder=" …")


def list_source_notes(provenance: Mapping[str, Any]) -> list[str]:
    """What was noted when the images of a result were looked for."""
    parts = provenance.get("merged_from", [])
    notes = [*provenance.get("notes", []), *chain.from_iterable(map(list_source_notes, parts))]
    return list(dict.fromkeys(notes))


def write_failures(folder: Path, failures: Sequence[tuple[str, str]]) -> None:
    """Name the images that could not be read.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    rows = [("path", "reason"), *failures]
    cells = [[_FORMULA.sub(r"'\g<0>", cell) for cell in row] for row in rows]
    with (
        plain_disk_errors(folder),
        (folder / FAILURES).open("w", encoding="utf-8", newline="") as file,
    ):
        csv.writer(file).writerows(cells)


def read_failures(folder: Path) -> list[tuple[str, str]]:
    """The images that could not be read."""
    path = folder / FAILURES
    data = read_bounded(path, _MAX_FAILURES_BYTES)
    with plain_damage(path):
        rows = csv.DictReader(StringIO(data.decode("utf-8"), newline=""))
        return [(_read_cell(str(row["path"])), _read_cell(str(row["reason"]))) for row in rows]


def _read_cell(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
