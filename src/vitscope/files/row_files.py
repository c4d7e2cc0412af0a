"""Rows of several features in plain files, read back without being held in memory."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from jaxtyping import Float

from vitscope.files.disk_errors import plain_disk_errors

Rows = Float[np.ndarray, "row dim"]


class RowFiles:
    """Append batches while it is entered as a context; afterwards the rows are mapped, not read."""

    def __init__(self, folder: Path) -> None:
        """Start with no rows."""
        self._folder = folder
        self._stack = ExitStack()
        self._files: dict[str, BinaryIO] = {}
        self._shapes: dict[str, tuple[np.dtype[np.floating], int]] = {}

    def __enter__(self) -> Self:
        """Begin to write."""
        self._stack.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files."""
        with plain_disk_errors(self._folder):
            self._stack.close()

    def append(self, features: Mapping[str, Rows]) -> None:
        """Take in a batch."""
        with plain_disk_errors(self._folder):
            for name, rows in features.items():
                if name not in self._files:
                    path = self._path(len(self._files))
                    self._files[name] = self._stack.enter_context(path.open("wb"))
                    self._shapes[name] = (rows.dtype, rows.shape[1])
                self._files[name].write(np.ascontiguousarray(rows).data)

    def open_rows(self) -> dict[str, Rows]:
        """All rows, in the order in which they came."""
        return {
            name: np.memmap(self._path(k), dtype=dtype, mode="r").reshape(-1, width)
            for k, (name, (dtype, width)) in enumerate(self._shapes.items())
        }

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:03d}.rows"
