"""Rows of several features, each row in a jackknife block, on disk but for the last few.

Memory does not grow with the number of rows: they are written in shards behind the compute and read
back a few shards, and only the features asked for, at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vitscope.files.tensor_files import read_tensors, write_tensors

Rows = Float[Tensor, "image dim"]
Blocks = Int64[Tensor, " image"]

_SHARD_ROWS = 256
_SHARDS_AT_ONCE = 8
_BLOCKS = "blocks"


class RowStore:
    """Append batches, go through all rows."""

    def __init__(self, folder: Path, saved: Path | None = None) -> None:
        """Start with the rows of another folder, which is only ever read, or with none.

        Args:
            folder: Where shards shall be written; it need not exist yet.
            saved: Folder of shards to start with.
        """
        self._folder = folder
        self._shards = [] if saved is None else sorted(saved.glob("*.safetensors"))
        self._num_written = 0
        self._pending: dict[str, list[Tensor]] = {}
        self._num_pending = 0
        self._num_saved = sum(len(read_tensors(s, [_BLOCKS])[0][_BLOCKS]) for s in self._shards)

    def __len__(self) -> int:
        """Count the rows.

        Returns:
            Their number.
        """
        return self._num_saved + self._num_pending

    def append(self, features: Mapping[str, Rows], blocks: Sequence[int]) -> None:
        """Take in a batch.

        Args:
            features: One row per image under each name; the same names every time.
            blocks: Block of each image.
        """
        for name, rows in {**features, _BLOCKS: torch.tensor(blocks)}.items():
            self._pending.setdefault(name, []).append(rows)
        self._num_pending += len(blocks)
        if self._num_pending >= _SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        if not self._num_pending:
            return
        shard = {name: torch.cat(chunks) for name, chunks in self._pending.items()}
        self._shards.append(self._folder / f"{self._num_written:05d}.safetensors")
        write_tensors(self._shards[-1], shard)
        self._num_written += 1
        self._num_saved += self._num_pending
        self._pending, self._num_pending = {}, 0

    def iter_rows(self, names: Sequence[str]) -> Iterator[tuple[dict[str, Rows], Blocks]]:
        """Go through all rows, some shards at a time.

        Args:
            names: The features wanted.

        Yields:
            One row per image under each name, and the block of each image.
        """
        self.flush()
        for start in range(0, len(self._shards), _SHARDS_AT_ONCE):
            shards = self._shards[start : start + _SHARDS_AT_ONCE]
            parts = [read_tensors(shard, [*names, _BLOCKS])[0] for shard in shards]
            rows = {name: torch.cat([part[name] for part in parts]) for name in [*names, _BLOCKS]}
            yield rows, rows.pop(_BLOCKS)

    def clear(self) -> None:
        """Forget all rows and remove the shards that were written here."""
        for shard in self._shards:
            if shard.parent == self._folder:
                shard.unlink()
        self._shards, self._pending = [], {}
        self._num_saved = self._num_pending = 0
