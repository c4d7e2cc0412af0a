"""Named tensors in safetensors files, and memory-mapped rows in raw files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitscope.errors import ResultError
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.printable import printable_path
from vitscope.files.storage import open_to_readers


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors to a file."""
    with plain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
            open_to_readers(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def read_tensors(
    path: Path, names: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file, or some of its tensors."""
    if path.exists() and not path.is_file():  # a pipe would block
        raise ResultError(f"{printable_path(path)} cannot be read: not a regular file")
    try:
        # As arrays: creating torch tensors here leaks a few bytes each.
        with safe_open(path, framework="np") as file:
            wanted = list(file.keys()) if names is None else names
            arrays = {name: file.get_tensor(name) for name in wanted}
            return {k: torch.from_numpy(a) for k, a in arrays.items()}, file.metadata() or {}
    except Exception as error:  # noqa: BLE001 - safetensors raises its own bare Exception type
        raise ResultError(f"{printable_path(path)} cannot be read: {error}") from None


Rows = Float[np.ndarray, "row dim"]


class RowFiles:
    """Batches of rows in a folder of its own, which are read memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shapes: dict[str, tuple[np.dtype[np.floating], int]] = {}

    def append(self, features: Mapping[str, Rows]) -> None:
        """Append a batch."""
        with plain_disk_errors(self._folder):
            for name, rows in features.items():
                mode = "ab" if name in self._shapes else "wb"
                self._shapes[name] = (rows.dtype, rows.shape[1])
                with self._path(name).open(mode) as file:
                    file.write(np.ascontiguousarray(rows).data)

    def open_rows(self) -> dict[str, Rows]:
        """Open all rows, in the order in which they were appended."""
        return {
            name: np.memmap(self._path(name), dtype=dtype, mode="r").reshape(-1, width)
            for name, (dtype, width) in self._shapes.items()
        }

    def _path(self, name: str) -> Path:
        return self._folder / f"{list(self._shapes).index(name):03d}.rows"
