"""Moments of pairs per jackknife block, on disk: one file per pair, read one at a time."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from jaxtyping import Float64
from torch import Tensor

from vitscope.files.tensor_files import read_tensors, write_tensors
from vitscope.metrics.feature_plan import Pair
from vitscope.metrics.moments import PairMoments

_FIELDS = [field.name for field in fields(PairMoments)]


class MomentStore:
    """Write the moments of each pair once, then read them."""

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
