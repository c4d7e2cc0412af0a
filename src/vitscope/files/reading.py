"""Read saved results from untrusted sources: bounded, with damage reported in plain words."""

import csv
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from vitscope.errors import ResultError
from vitscope.files.printable import printable, printable_path

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError),
    *(TypeError, ValueError, csv.Error),
)
"""Errors of libraries for inconsistent numbers, names and shapes."""


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a file up to a size limit; a pipe does not block, and a device is refused."""
    try:
        # Non-blocking, because opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ResultError(f"{printable_path(path)} cannot be read: not a regular file")
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ResultError(f"{printable_path(path)} cannot be read: {error.strerror}") from None
    if len(data) > max_bytes:
        raise ResultError(
            f"{printable_path(path)} cannot be read: it has more than {max_bytes >> 20} MiB, and "
            "vitscope writes less"
        )
    return data


@contextmanager
def plain_damage(*paths: Path) -> Iterator[None]:
    """Turn errors from damaged files into a one-line message."""
    try:
        yield
    except _DAMAGE as error:
        said = shorten(f"{type(error).__name__}: {error}", width=160, placeholder=" …")
        named = " or ".join(map(printable_path, paths))
        raise ResultError(f"{named} is damaged ({printable(said)})") from error


@contextmanager
def open_table(path: Path) -> Iterator["ParquetFile"]:
    """Open a table from an untrusted source."""
    import pyarrow.parquet as pq  # here, because JSON is read without it

    if not path.is_file():
        raise ResultError(f"{printable_path(path)} cannot be read: it is missing or no file")
    try:
        with plain_damage(path), pq.ParquetFile(path) as file:
            # Every row names its image, so more rows than bytes means it was not written by
            # vitscope.
            if (count := file.metadata.num_rows) > path.stat().st_size:
                raise ResultError(
                    f"{printable_path(path)} is damaged: {count} rows in a small file"
                )
            yield file
    except OSError as error:
        raise ResultError(f"{printable_path(path)} cannot be read: {error}") from None
