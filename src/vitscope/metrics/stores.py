"""What feature sums keep on disk: rows of features, and the moments they are folded into."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from vitscope.errors import ResultError
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.storage import link_or_copy
from vitscope.files.tensor_files import read_tensors, write_tensors
from vitscope.metrics.feature_plan import Pair
from vitscope.metrics.jackknife import NUM_BLOCKS
from vitscope.metrics.moments import PairMoments, Rows

Blocks = Int64[Tensor, " image"]

_SHARD_ROWS = 128
_ROWS_AT_ONCE = 512
_BLOCKS = "blocks"
_FIELDS = [field.name for field in fields(PairMoments)]


class RowStore:
    """Append batches, iterate over all rows."""

    def __init__(self, folder: Path, saved: Path | None = None) -> None:
        """Start with the rows of a saved folder, which is only read, or with none."""
        self._folder = folder
        shards = [] if saved is None else sorted(saved.glob("*.safetensors"))
        self._shards = {s: _count(read_tensors(s, [_BLOCKS])[0][_BLOCKS]) for s in shards}
        self._num_files = 0  # ever written, so no name is reused
        self._pending: dict[str, list[Tensor]] = {}

    def __len__(self) -> int:
        """Number of rows."""
        return sum(self.block_sizes) + self._num_pending

    @property
    def _num_pending(self) -> int:
        return sum(map(len, self._pending.get(_BLOCKS, ())))

    @property
    def block_sizes(self) -> list[int]:
        """Rows on disk in each jackknife block."""
        return [sum(sizes) for sizes in zip([0] * NUM_BLOCKS, *self._shards.values(), strict=True)]

    def append(self, features: Mapping[str, Rows], blocks: Sequence[int]) -> None:
        """Append a batch."""
        if self._num_pending >= _SHARD_ROWS:
            self.flush()
        for name, rows in {**features, _BLOCKS: torch.tensor(blocks, dtype=torch.int64)}.items():
            self._pending.setdefault(name, []).append(rows)

    def merge(self, other: "RowStore") -> None:
        """Append all rows of another store, whose shards are hard-linked."""
        self.flush()
        other.flush()
        for theirs, sizes in other._shards.items():
            ours = self._next_file()
            with plain_disk_errors(ours):
                link_or_copy(theirs, ours)
            self._add_shard(ours, sizes)

    def flush(self) -> None:
        """Write rows that are not on disk yet."""
        if not self._num_pending:
            return
        shard = {name: torch.cat(chunks) for name, chunks in self._pending.items()}
        file = self._next_file()
        write_tensors(file, shard)
        self._add_shard(file, _count(shard[_BLOCKS]))
        self._pending = {}

    def iter_rows(self, names: Sequence[str]) -> Iterator[tuple[dict[str, Rows], Blocks]]:
        """Iterate over whole shards of about `_ROWS_AT_ONCE` rows, with the block of each image."""
        self.flush()
        for shards in self._group_shards():
            parts = [read_tensors(shard, [*names, _BLOCKS])[0] for shard in shards]
            rows = {name: torch.cat([part[name] for part in parts]) for name in [*names, _BLOCKS]}
            yield rows, rows.pop(_BLOCKS)

    def clear(self) -> None:
        """Drop all rows and delete the shards written by this store."""
        for shard in self._shards:
            if shard.parent == self._folder:
                shard.unlink()
        self._shards, self._pending = {}, {}

    def _next_file(self) -> Path:
        return self._folder / f"{self._num_files:06d}.safetensors"

    def _add_shard(self, file: Path, sizes: list[int]) -> None:
        self._shards[file] = sizes
        self._num_files += 1

    def _group_shards(self) -> Iterator[list[Path]]:
        group: list[Path] = []
        num_rows = 0
        for shard, sizes in self._shards.items():
            if group and num_rows + sum(sizes) > _ROWS_AT_ONCE:
                yield group
                group, num_rows = [], 0
            group.append(shard)
            num_rows += sum(sizes)
        if group:
            yield group


def _count(blocks: Blocks) -> list[int]:
    if len(blocks) and not 0 <= int(blocks.min()) <= int(blocks.max()) < NUM_BLOCKS:
        raise ResultError("the saved rows name jackknife blocks that do not exist: audit again")
    return torch.bincount(blocks, minlength=NUM_BLOCKS).tolist()


class MomentStore:
    """Moments of pairs per jackknife block: one file per pair, written once."""

    def __init__(self, folder: Path, pairs: Sequence[Pair]) -> None:
        """Name the files."""
        self._files = {pair: folder / f"{k:03d}.safetensors" for k, pair in enumerate(pairs)}

    def write(self, pair: Pair, moments: PairMoments) -> None:
        """Write a pair."""
        tensors = {name: getattr(moments, name) for name in _FIELDS}
        write_tensors(self._files[pair], tensors, {"x": pair[0], "y": pair[1]})

    def read(self, pair: Pair) -> PairMoments:
        """Read the moments of a pair in all jackknife blocks, stacked."""
        tensors, _ = read_tensors(self._files[pair], _FIELDS)
        return PairMoments(**tensors)

    def read_counts(self, pair: Pair) -> Float64[Tensor, " block"]:
        """Read the number of images behind the moments of a pair in each block."""
        return read_tensors(self._files[pair], ["count"])[0]["count"]
