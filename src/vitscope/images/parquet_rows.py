"""Images in Parquet files: one column holds the bytes of image files, one image per row."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vitscope.errors import ImageReadError, UsageError
from vitscope.files.printable import name_some, printable
from vitscope.images.stores import (
    Place,
    check_size,
    local_version,
    name_place,
    open_place,
    plain_read_errors,
    stored_version,
)

USUAL_NAMES = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")
"""Usual names of image columns, in order of preference."""

_MAX_GROUP_BYTES = 2**30
"""Largest decoded column of a row group; one is kept in memory at a time."""

_ROWS_AT_ONCE = 4
"""Rows decoded before their bytes are counted; more would not be faster."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows of a Parquet file that are read together."""

    file: Place
    column: str
    index: int
    first_row: int  # number of its first row in the file
    version: str  # version of the file from its store; empty for a local file


@dataclass(frozen=True, slots=True)
class ParquetRow:
    """An image in a Parquet file."""

    group: RowGroup
    row: int  # its index in the group

    @property
    def name(self) -> str:
        """File and row number, counted from 0, as printable text."""
        return f"{name_place(self.group.file)}::{self.group.first_row + self.row}"

    def read(self) -> bytes:
        """Read it; the column of its row group is cached for the next row."""
        group = self.group
        with plain_read_errors(group.file):
            if isinstance(group.file, Path):
                group = replace(group, version=local_version(group.file))
            data = _read_group(group)[self.row]
        if data is None:
            raise ImageReadError("its row has no bytes")
        check_size(len(data))
        return data


def list_rows(place: Place) -> list[ParquetRow]:
    """Find the images of a Parquet file from its footer."""
    name = name_place(place)
    try:
        with plain_read_errors(place), open_place(place) as file, pq.ParquetFile(file) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
            num_bytes = file.seek(0, 2)
            version = "" if isinstance(place, Path) else stored_version(place)
    except ImageReadError as error:
        raise UsageError(
            f"{name} is not a complete Parquet file ({error}): fetch or write it again, or "
            "leave it out"
        ) from error
    groups = _list_groups(metadata, RowGroup(place, _choose_column(schema, name), 0, 0, version))
    num_rows = sum(count for _, count in groups)
    if not 0 < num_rows <= num_bytes:
        raise UsageError(
            f"{name} has {num_rows} rows in {num_bytes} bytes: expected one image per row"
        )
    return [ParquetRow(group, row) for group, count in groups for row in range(count)]


def _choose_column(schema: pa.Schema, name: str) -> str:
    paths = {field.name: path for field in schema if (path := _find_bytes(field)) is not None}
    usual = [column for column in USUAL_NAMES if column in paths]
    if usual:
        return paths[usual[0]]
    # Beside other columns of bytes, those of fixed length are digests.
    kinds = {field.name: field.type for field in schema}
    varying = [column for column in paths if not pa.types.is_fixed_size_binary(kinds[column])]
    single = varying or list(paths)
    if len(single) == 1:
        return paths[single[0]]
    # First those that were meant, perhaps.
    meant = sorted(kinds, key=lambda column: (column not in USUAL_NAMES, column not in paths))
    shown = [printable(f"{column[:50]} ({str(kinds[column])[:50]})") for column in meant]
    raise UsageError(
        f"{name} has no column of bytes called {' '.join(USUAL_NAMES)} and no other single one "
        f"(found: {name_some(shown, 5) or 'none'}): rename the column of images, which holds the "
        "bytes of image files as binary or as a struct with bytes"
    )


def _find_bytes(field: pa.Field) -> str | None:
    # Hugging Face's datasets store an image as a struct of bytes and path.
    if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        return f"{field.name}.bytes" if _is_binary(field.type.field("bytes").type) else None
    return field.name if _is_binary(field.type) else None


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_binary(kind.value_type)
    kinds = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(is_kind(kind) for is_kind in kinds)


def _list_groups(metadata: pq.FileMetaData, like: RowGroup) -> list[tuple[RowGroup, int]]:
    groups: list[tuple[RowGroup, int]] = []
    first_row = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        columns = map(group.column, range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == like.column)
        if size > _MAX_GROUP_BYTES:
            raise UsageError(
                f"row group {index} of {name_place(like.file)} has {size} bytes of images, "
                f"more than {_MAX_GROUP_BYTES}: write the file with row groups of fewer rows"
            )
        groups.append((replace(like, index=index, first_row=first_row), group.num_rows))
        first_row += group.num_rows
    return groups


@lru_cache(maxsize=1)
def _read_group(group: RowGroup) -> list[bytes | None]:
    rows: list[bytes | None] = []
    # An image shared by many rows is stored once in the file, and kept once here too.
    distinct: dict[bytes, bytes] = {}
    num_bytes = 0
    for data in _iter_column(group):
        num_bytes += len(data or b"")
        if num_bytes > _MAX_GROUP_BYTES:
            raise ImageReadError(
                f"its row group has more than {_MAX_GROUP_BYTES} bytes: write the file with row "
                "groups of fewer rows"
            )
        rows.append(None if data is None else distinct.setdefault(data, data))
    return rows


def _iter_column(group: RowGroup) -> Iterator[bytes | None]:
    with open_place(group.file) as file, pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(
            _ROWS_AT_ONCE, row_groups=[group.index], columns=[group.column]
        ):
            for value in batch.column(0).to_pylist():
                yield value["bytes"] if isinstance(value, dict) else value
