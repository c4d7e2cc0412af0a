"""Rows of several features, each row in a jackknife block, held in one large array per feature.

Batches are copied into arrays that grow rather than kept as they come: thousands of small tensors
that outlive the large ones around them would scatter over the heap and keep it from shrinking.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Rows = Float[Tensor, "image dim"]

_FIRST_CAPACITY = 1024


class RowStore:
    """Append batches, read the rows of one block."""

    def __init__(self) -> None:
        """Start empty."""
        self._table: dict[str, Rows] = {}
        self._blocks: list[int] = []
        self._sorted = True

    def __len__(self) -> int:
        """Count the rows.

        Returns:
            Their number.
        """
        return len(self._blocks)

    @property
    def width(self) -> int:
        """Dimension of the widest feature; 0 while empty."""
        return max((values.shape[1] for values in self._table.values()), default=0)

    def append(self, features: Mapping[str, Rows], blocks: Sequence[int]) -> None:
        """Take in a batch.

        Args:
            features: One row per image under each name; the same names every time.
            blocks: Block of each image.
        """
        start = len(self._blocks)
        self._blocks += blocks
        self._sorted = False
        for name, rows in features.items():
            if name not in self._table:
                self._table[name] = rows.new_empty(_FIRST_CAPACITY, rows.shape[1])
            while len(self._table[name]) < len(self._blocks):
                # Twice the room; what is not yet written takes no memory.
                self._table[name] = _grow(self._table[name], start)
            self._table[name][start : len(self._blocks)] = rows

    def of_block(self, block: int) -> dict[str, Rows]:
        """The rows of one block.

        Args:
            block: Which.

        Returns:
            Views of its rows under each name; empty where it has none.
        """
        self._sort()
        part = slice(bisect_left(self._blocks, block), bisect_right(self._blocks, block))
        if part.start == part.stop:
            return {}
        return {name: values[part] for name, values in self._table.items()}

    def to_tensors(self) -> tuple[dict[str, Rows], Int64[Tensor, " image"]]:
        """All rows, sorted by block.

        Returns:
            Views: one row per image under each name; and the block of each.
        """
        self._sort()
        size = len(self._blocks)
        rows = {name: values[:size] for name, values in self._table.items()}
        return rows, torch.tensor(self._blocks, dtype=torch.int64)

    def _sort(self) -> None:
        if self._sorted:
            return
        blocks = torch.tensor(self._blocks)
        order = blocks.argsort(stable=True)
        for values in self._table.values():
            values[: len(order)] = values[order]
        self._blocks = blocks[order].tolist()
        self._sorted = True


def _grow(values: Rows, size: int) -> Rows:
    larger = values.new_empty(2 * len(values), values.shape[1])
    larger[:size] = values[:size]
    return larger
