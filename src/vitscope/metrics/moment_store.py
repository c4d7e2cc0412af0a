"""Moments of pairs per jackknife block, on disk: a file a pair, read a block at a time.

Of width 1536 the moments of one pair are 190 MB, those of all pairs 6.8 GB.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from vitscope.files.tensor_files import read_tensors, write_tensors
from vitscope.metrics.feature_plan import Pair
from vitscope.metrics.jackknife import NUM_BLOCKS
from vitscope.metrics.moments import ALL_DIMS, PairMoments

_ALONG_X = {"cross", "sum_x", "sum_qx"}


class MomentStore:
    """Write the moments of each pair once, then read them."""

    def __init__(self, folder: Path, pairs: Sequence[Pair]) -> None:
        """Name the files.

        Args:
            folder: Where they lie.
            pairs: All pairs; the files are numbered in this order.
        """
        self._files = {pair: folder / f"{k:03d}.safetensors" for k, pair in enumerate(pairs)}

    def write(self, pair: Pair, blocks: Sequence[PairMoments]) -> None:
        """Write a pair.

        Args:
            pair: One of the pairs.
            blocks: Its moments in each jackknife block.
        """
        tensors = {
            _name(block, field.name): getattr(moments, field.name).contiguous()
            for block, moments in enumerate(blocks)
            for field in fields(PairMoments)
        }
        write_tensors(self._files[pair], tensors, {"x": pair[0], "y": pair[1]})

    def read(self, pair: Pair, block: int, dims: slice = ALL_DIMS) -> PairMoments:
        """Read one block of a pair.

        Args:
            pair: One of the pairs.
            block: Jackknife block.
            dims: Dimensions of the first feature that are wanted.

        Returns:
            Moments in memory of their own.

        Raises:
            ResultError: If they cannot be read.
        """
        names = {field.name: _name(block, field.name) for field in fields(PairMoments)}
        tensors, _ = read_tensors(self._files[pair], list(names.values()))
        # What is read is mapped: only what is copied is looked at.
        return PairMoments(
            **{
                field: (tensors[name][dims] if field in _ALONG_X else tensors[name]).clone()
                for field, name in names.items()
            }
        )

    def read_counts(self, pair: Pair) -> list[int]:
        """Images that the moments of a pair are of.

        Args:
            pair: One of the pairs.

        Returns:
            Their number in each jackknife block.

        Raises:
            ResultError: If they cannot be read.
        """
        names = [_name(block, "count") for block in range(NUM_BLOCKS)]
        tensors, _ = read_tensors(self._files[pair], names)
        return [round(float(tensors[name])) for name in names]


def _name(block: int, field: str) -> str:
    return f"{block}/{field}"
