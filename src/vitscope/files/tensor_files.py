"""Named tensors in safetensors files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
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
    """Write a file."""
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
    if path.exists() and not path.is_file():  # a pipe would wait
        raise ResultError(f"{printable_path(path)} cannot be read: not a regular file")
    try:
        # As arrays: each tensor that it makes itself leaves some bytes behind, for good.
        with safe_open(path, framework="np") as file:
            wanted = list(file.keys()) if names is None else names
            arrays = {name: file.get_tensor(name) for name in wanted}
            return {k: torch.from_numpy(a) for k, a in arrays.items()}, file.metadata() or {}
    except Exception as error:  # noqa: BLE001 - safetensors raises its own bare Exception type
        raise ResultError(f"{printable_path(path)} cannot be read: {error}") from None
