"""Base of all saved results: a folder, permanent or deleted with the object."""

import csv
import shutil
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import pyarrow as pa

from vitscope.errors import ResultError, UsageError
from vitscope.files.csv_files import read_cell, write_csv
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.json_files import read_json, write_json
from vitscope.files.printable import printable_path
from vitscope.files.reading import open_table, plain_damage, read_bounded
from vitscope.files.storage import is_result, never, staged_folder
from vitscope.results.citation_text import Citation, cite
from vitscope.results.result_html import show_result
from vitscope.results.schema import (
    KINDS,
    AuditSummary,
    ExplanationSummary,
    JudgementSummary,
    Provenance,
    S,
    Summary,
    read_summary,
    write_summary,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHUNK_BYTES = 2**20
FAILURES, PROVENANCE = "failures.csv", "provenance.json"
IMAGES, SCORES = "images.parquet", "scores.parquet"
"""Tables of an audit and of a judgement that have the path of every image."""
_MAX_FAILURES_BYTES = 2**30


class TemporaryFolder:
    """A folder that is deleted once no object refers to it."""

    def __init__(self, folder: Path) -> None:
        self._finalizer = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def keep(self) -> bool:
        """Make the folder permanent; False if it already was."""
        return self._finalizer.detach() is not None


def saved_summary(*kinds: type[S]) -> cached_property[S]:
    """The summary of a result of one of these kinds, read when it is first asked for."""
    return cached_property(lambda result: read_summary(result.folder, *kinds))


@dataclass(frozen=True)
class SavedResult:
    """A result on disk, of any kind: read access to its files.

    Attributes:
        folder: Folder of the result.
        keeper: Deletes a temporary folder with the last object that uses it; None for a permanent
            folder.
    """

    folder: Path
    keeper: TemporaryFolder | None = field(default=None, kw_only=True, repr=False, compare=False)

    @classmethod
    def own(cls, folder: Path) -> Self:
        """Open a result in a temporary folder, which is deleted with the object."""
        return cls(folder, keeper=TemporaryFolder(folder))

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
        _ = result.summary  # reading checks it
        return result

    summary = saved_summary(*KINDS)
    """Every number; `ResultError` if it is damaged or of another kind."""

    def _repr_html_(self) -> str:
        return show_result(self.summary)

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
    def name(self) -> str:
        """Name of the run: as given, or else the folder of its images and the date.

        Empty in results of earlier versions. A merged result has the names of its parts.

        Raises:
            ResultError: If the provenance cannot be read.
        """
        with plain_damage(self.folder / PROVENANCE):
            names = (run.get("name") for run in list_runs(self.provenance))
            return " + ".join(dict.fromkeys(str(name) for name in names if name))

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Images that could not be read, with the reason."""
        return read_failures(self.folder)

    def plot(self, name: str, **settings: Any) -> "Figure":
        """Draw a figure of the result.

        Args:
            name: Name of the figure, as in `vitscope.figures.plot`.
            **settings: Settings of the figure, likewise.

        Returns:
            A matplotlib figure, which a notebook displays.

        Raises:
            UsageError: If there is no such figure or setting.
            NothingToDrawError: If the result has no numbers for it.
        """
        # Upward, as figures import results.
        from vitscope.figures.questions import plot

        return plot(name, [self], **settings)

    def cite(self) -> Citation:
        """Cite the verdict of an audit or a judgement with all that it rests on.

        Returns:
            `sentence`; `bibtex`, entries of the verdict and of the paper of the method; and `card`,
            Markdown for a model card. Of the images' paths it has only the folder's name.

        Raises:
            UsageError: If the result is of another kind, which has no verdict over images.
            ResultError: If the table of images is damaged.
        """
        summary = self.summary
        if not isinstance(summary, AuditSummary | JudgementSummary):
            raise UsageError(
                f"{printable_path(self.folder)} is a result of kind {summary.KIND!r}, which has no "
                "verdict to cite: give an audit or a judgement"
            )
        paths = list_of_images(self, "path")
        try:
            provenance, name = self.provenance, self.name
        except ResultError:  # the sentence says what is not known
            provenance, name = {}, ""
        return cite(summary, provenance, paths, name)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Self:
        """Copy the result to a folder.

        If that fails, a temporary result becomes permanent where it is; the error names its folder.

        Args:
            folder: The new folder.
            overwrite: Whether an earlier result there is replaced.

        Returns:
            The result in the new folder.

        Raises:
            UsageError: If something else is there.
            VitscopeError: If the result cannot be written.
        """
        try:
            target = Path(folder)
            if target.resolve().is_relative_to(self.folder.resolve()):
                raise UsageError(f"{folder} is inside the result itself: choose another folder")
            with staged_folder(target, replaces=is_result if overwrite else never) as staging:
                for path in sorted(self.folder.rglob("*")):
                    place = staging / path.relative_to(self.folder)
                    if path.is_dir():
                        with plain_disk_errors(place):
                            place.mkdir()
                    else:
                        _copy_file(path, place)
        except BaseException as error:  # an interrupt too
            if self.keeper is not None and self.keeper.keep():
                error.add_note(f"the result is kept in {printable_path(self.folder)}")
            raise
        return type(self)(target)


class TabularResult(SavedResult):
    """A result with a table that pandas and Polars can read."""

    _table_file: ClassVar[str]

    @property
    def _table(self) -> pa.Table:
        return read_table(self.folder / self._table_file)

    def to_pandas(self) -> Any:
        """The rows behind the summary as a pandas DataFrame.

        Returns:
            The `pandas.DataFrame`.

        Raises:
            UsageError: If pandas is not installed.
            ResultError: If the table cannot be read.
        """
        _import("pandas")
        return self._table.to_pandas()

    def to_polars(self) -> Any:
        """The rows behind the summary as a Polars DataFrame.

        Returns:
            The `polars.DataFrame`.

        Raises:
            UsageError: If polars is not installed.
            ResultError: If the table cannot be read.
        """
        return _import("polars").from_arrow(self._table)


def list_of_images(result: SavedResult, column: Literal["path", "image_id"]) -> list[str]:
    """The paths or digests of a result's images; none of kinds without such a table."""
    if isinstance(result.summary, ExplanationSummary):
        return [getattr(image, column) for image in result.summary.images]
    table = result.folder / (IMAGES if isinstance(result.summary, AuditSummary) else SCORES)
    if not table.is_file():
        return []
    found: list[str] = read_table(table, column)[column].to_pylist()
    return found


def read_table(path: Path, *columns: str) -> pa.Table:
    """A table of a result, whole or in part."""
    with open_table(path) as file:
        table = file.read(columns=list(columns) or None)
        table.select(columns)  # reading leaves out columns that are not there
        return table


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table of a result."""
    import pyarrow.parquet as pq  # here, because summaries are read without it

    with plain_disk_errors(path):
        pq.write_table(table, path)


def concat_tables(folder: Path, parts: Sequence[Path], name: str) -> None:
    """Write the tables of all parts as one."""
    write_table(folder / name, pa.concat_tables([read_table(part / name) for part in parts]))


def _import(library: str) -> Any:
    try:
        return import_module(library)
    except ImportError:
        raise UsageError(
            f"{library} is not installed: pip install {library}, or take the Arrow table"
        ) from None


def _copy_file(source: Path, target: Path) -> None:
    if not source.is_file():  # reading a device may never end
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


def write_result(
    folder: Path,
    summary: Summary,
    *,
    failures: Sequence[tuple[str, str]],
    provenance: Provenance,
) -> None:
    """Write the files that all kinds of results have; `summary.json` comes last."""
    write_failures(folder, failures)
    write_json(folder / PROVENANCE, provenance)
    write_summary(folder, summary)


def list_runs(provenance: Provenance) -> list[Provenance]:
    """The provenance of each run that a result is made of."""
    parts = provenance.get("merged_from")
    if parts is None:
        return [provenance]
    return list(chain.from_iterable(map(list_runs, parts)))


def list_source_notes(provenance: Provenance) -> list[str]:
    """Notes from the search for the images of a result."""
    runs = list_runs(provenance)
    return list(dict.fromkeys(note for run in runs for note in run.get("notes", [])))


def write_failures(folder: Path, failures: Sequence[tuple[str, str]]) -> None:
    """Write the images that could not be read.

    Cells that a spreadsheet would read as formulas get a leading apostrophe.
    """
    write_csv(folder / FAILURES, [("path", "reason"), *failures])


def read_failures(folder: Path) -> list[tuple[str, str]]:
    """Read the images that could not be read, with the reasons."""
    path = folder / FAILURES
    data = read_bounded(path, _MAX_FAILURES_BYTES)
    with plain_damage(path):
        rows = csv.DictReader(StringIO(data.decode("utf-8"), newline=""))
        return [(read_cell(str(row["path"])), read_cell(str(row["reason"]))) for row in rows]


def read_runs(comparison: SavedResult) -> Mapping[str, str]:
    """The run of each audit that was compared, by its folder; empty in earlier versions."""
    runs = comparison.provenance.get("audits")
    return runs if isinstance(runs, dict) else {}


def check_run(comparison: SavedResult, audit: SavedResult) -> None:
    """Refuse an audit that has replaced the one that was compared, in a run that did not finish."""
    run = read_runs(comparison).get(audit.folder.name)
    if run is not None and audit.provenance.get("run") != run:
        raise ResultError(
            f"{printable_path(audit.folder)} has replaced the audit that "
            f"{printable_path(comparison.folder)} is of: finish the run that replaced it, with "
            "resume=True and overwrite=True, or compare again"
        )
