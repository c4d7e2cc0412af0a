"""Images where the model is, and how they go through it as memory allows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float64
from torch import Tensor

from vitscope.errors import MemoryShortageError
from vitscope.models.base import Pixels
from vitscope.runs.resources import free_cached_memory


@dataclass(frozen=True, eq=False)
class PlacedBatch:
    """Images that were read, where the model is."""

    indices: list[int]  # their places in the set
    ids: list[str]  # their identities, which depend on their bytes alone
    paths: list[str]
    pixels: Pixels  # their preprocessed pixels, on the model's device
    covariates: dict[str, Float64[Tensor, " batch"]] = field(default_factory=dict)
    level_ranges: list[float] = field(default_factory=list)

    def select(self, piece: slice) -> "PlacedBatch":
        """Some of the images."""
        return PlacedBatch(
            self.indices[piece],
            self.ids[piece],
            self.paths[piece],
            self.pixels[piece],
            {name: values[piece] for name, values in self.covariates.items()},
            self.level_ranges[piece],
        )

    def pick(self, rows: Sequence[int]) -> "PlacedBatch":
        """Some of the images, in copies unless it is all of them."""
        if len(rows) == len(self.ids):
            return self
        return PlacedBatch(
            [self.indices[row] for row in rows],
            [self.ids[row] for row in rows],
            [self.paths[row] for row in rows],
            self.pixels[rows],
            {name: values[rows] for name, values in self.covariates.items()},
            [self.level_ranges[row] for row in rows],
        )


class BatchFitter:
    """Cuts batches into passes, halves what does not fit, and remembers what did not."""

    def __init__(self, pass_size: int | None = None) -> None:
        """Start with what is known."""
        self._pass_size = pass_size

    def apply(self, batch: PlacedBatch, work: Callable[[PlacedBatch], None]) -> None:
        """Do something with a batch, in as many passes as it takes."""
        done, count = 0, len(batch.ids)
        while done < count:
            piece = batch.select(slice(done, done + (self._pass_size or count)))
            if self._fits(piece, work):
                done += len(piece.ids)
            else:
                self._pass_size = (len(piece.ids) + 1) // 2

    @staticmethod
    def _fits(piece: PlacedBatch, work: Callable[[PlacedBatch], None]) -> bool:
        try:
            work(piece)
        except MemoryShortageError:
            if len(piece.ids) == 1:
                raise
        else:
            return True
        # Only here is what the failed attempt held free again.
        free_cached_memory()
        return False
