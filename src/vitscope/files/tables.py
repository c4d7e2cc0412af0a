"""Parquet tables of a saved result, which may come from anywhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from vitscope.errors import ResultError
from vitscope.files.printable import printable_path
from vitscope.files.reading import plain_damage


@contextmanager
def open_table(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a table that may come from anywhere."""
    if not path.is_file():
        raise ResultError(f"{printable_path(path)} cannot be read: it is missing or not a file")
    try:
        with plain_damage(path), pq.ParquetFile(path) as file:
            # A row names its image: so many rows in so few bytes are not of vitscope.
            if (count := file.metadata.num_rows) > path.stat().st_size:
                raise ResultError(
                    f"{printable_path(path)} is damaged: {count} rows in a small file"
                )
            yield file
    except OSError as error:
        raise ResultError(f"{printable_path(path)} cannot be read: {error}") from None
