"""One row per image and layer: a Parquet table of numbers, and shards of features in order."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from vitscope.errors import DiskError, ResultError
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.reading import open_table
from vitscope.files.tensor_files import write_tensors
from vitscope.ledger import ScalarPath

SHARD_ROWS = 128
GROUP_ROWS = 4096
"""Least rows of a row group in merged tables: readers keep the metadata of every row group in
memory, about as much as 30 rows."""

IDENTITY = ("path", "image_id")


def column_name(path: ScalarPath) -> str:
    """Column of a per-image number."""
    return "_".join(path)


def table_path(folder: Path, layer: int, last_layer: int) -> Path:
    """Path of the table of a layer."""
    return folder / ("images.parquet" if layer == last_layer else f"layers/{layer:03d}.parquet")


def shard_paths(folder: Path, layer: int) -> list[Path]:
    """The feature shards of a layer."""
    return sorted((folder / "features" / f"{layer:03d}").glob("*.safetensors"))


class TableWriter:
    """Writes a Parquet table, one row group at a time."""

    def __init__(self, path: Path, group_rows: int = 1) -> None:
        """Prepare the file; the first rows create it and define its columns."""
        self._path = path
        self._group_rows = group_rows
        self._gathered: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None

    def write(self, rows: pa.Table) -> None:
        """Add rows, all to the same row group."""
        self._gathered.append(rows)
        if sum(table.num_rows for table in self._gathered) >= self._group_rows:
            self._flush()

    def close(self) -> None:
        """Finish the file, if any rows came."""
        if self._gathered:
            self._flush()
        if self._writer is not None and self._writer.is_open:
            with self._given_up_on_failure():
                self._writer.close()

    def _flush(self) -> None:
        rows, self._gathered = pa.concat_tables(self._gathered), []
        if self._writer is None:
            with plain_disk_errors(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                # Numbers rarely repeat, and no reader filters by value.
                self._writer = pq.ParquetWriter(
                    self._path, rows.schema, use_dictionary=False, write_statistics=False
                )
        with self._given_up_on_failure():
            self._writer.write_table(rows, row_group_size=rows.num_rows)

    @contextmanager
    def _given_up_on_failure(self) -> Iterator[None]:
        try:
            with plain_disk_errors(self._path):
                yield
        except DiskError:
            # Its finaliser would fail again and print that to standard error.
            assert self._writer is not None
            self._writer.is_open = False
            raise


class RecordWriter:
    """Writes one layer's rows, one shard at a time."""

    def __init__(self, folder: Path, layer: int, last_layer: int, *, keep_features: bool) -> None:
        """Nothing is written before the first shard is full."""
        self._table = TableWriter(table_path(folder, layer, last_layer))
        self._shards = folder / "features" / f"{layer:03d}" if keep_features else None
        self._identities: list[tuple[str, str]] = []
        self._scalars: dict[ScalarPath, list[Tensor]] = {}
        self._features: dict[str, list[Tensor]] = {}
        self._constants: dict[str, Tensor] = {}
        self._num_shards = 0

    def append(
        self,
        identities: Sequence[tuple[str, str]],
        scalars: Mapping[ScalarPath, Tensor],
        features: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
    ) -> None:
        """Add a batch."""
        self._identities += identities
        for path, values in scalars.items():
            self._scalars.setdefault(path, []).append(values)
        if self._shards is not None:
            self._constants = dict(constants)
            for name, rows in features.items():
                self._features.setdefault(name, []).append(rows)
        if len(self._identities) >= SHARD_ROWS:
            self._flush()

    def close(self) -> None:
        """Write remaining rows and finish the files."""
        try:
            if self._identities:
                self._flush()
        finally:
            self._table.close()

    def _flush(self) -> None:
        columns: dict[str, object] = {
            name: [identity[i] for identity in self._identities] for i, name in enumerate(IDENTITY)
        }
        for path, chunks in self._scalars.items():
            columns[column_name(path)] = torch.cat(chunks).double().numpy()
        self._table.write(pa.table(columns))
        if self._shards is not None:
            shard = {name: torch.cat(chunks) for name, chunks in self._features.items()}
            write_tensors(
                self._shards / f"{self._num_shards:06d}.safetensors", shard | self._constants
            )
        self._num_shards += 1
        self._identities, self._scalars, self._features = [], {}, {}


def iter_row_groups(path: Path) -> Iterator[pa.Table]:
    """Iterate over the row groups of a table."""
    with open_table(path) as file:
        for index in range(file.num_row_groups):
            yield file.read_row_group(index)


def replace_columns(path: Path, new_columns: Iterator[Mapping[ScalarPath, Tensor]]) -> None:
    """Add columns to a table, or replace them."""
    replacement = path.with_suffix(".new")
    with closing(TableWriter(replacement)) as writer:
        for table, columns in _align(path, new_columns):
            writer.write(_set_columns(table, columns))
    with plain_disk_errors(path):
        replacement.replace(path)


def _align(
    path: Path, new_columns: Iterator[Mapping[ScalarPath, Tensor]]
) -> Iterator[tuple[pa.Table, dict[ScalarPath, Tensor]]]:
    mismatch = ResultError(f"{path} does not match its features: audit again")
    for table in iter_row_groups(path):
        taken: dict[ScalarPath, list[Tensor]] = {}
        missing = table.num_rows
        while missing > 0 and (columns := next(new_columns, None)):
            for scalar_path, values in columns.items():
                taken.setdefault(scalar_path, []).append(values)
            missing -= len(next(iter(columns.values())))
        if missing:
            raise mismatch
        yield table, {scalar_path: torch.cat(values) for scalar_path, values in taken.items()}
    if next(new_columns, None) is not None:
        raise mismatch


def _set_columns(table: pa.Table, columns: Mapping[ScalarPath, Tensor]) -> pa.Table:
    for path, values in columns.items():
        name, array = column_name(path), pa.array(values.double().numpy())
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, array)
        else:
            table = table.append_column(name, array)
    return table
