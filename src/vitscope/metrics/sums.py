"""Sums over images: their protocol, and all sums of an audit.

To add one, write a class with these methods and a line in `Manifest._list_sums`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

S = TypeVar("S")
_NUM_REPEATED = "num_repeated"


@dataclass(frozen=True, eq=False)
class Batch:
    """Measurements of some images at one layer."""

    # features of the [CLS] row by name, on the CPU
    features: Mapping[str, Float[Tensor, "batch _"]]
    blocks: Sequence[int]  # jackknife block of each image
    # states of the special tokens by name; empty for a pooling query
    states: Mapping[str, Float[Tensor, "_ token _"]] = field(default_factory=dict)
    # norm of each patch token at every depth of the model, the same for all layers
    patch_norms: Float[Tensor, "_ depth patch"] = field(
        default_factory=lambda: torch.empty(0, 0, 0)
    )


@runtime_checkable
class Sums(Protocol):
    """Sums or counts over images; those of disjoint sets merge into those of the union.

    Merging is exact up to float64 rounding, in any order and grouping.

    Attributes:
        name: Prefix of their saved tensors within the layer.
    """

    name: ClassVar[str]

    def update(self, batch: Batch, /) -> None:
        """Add a batch."""

    def merge(self, other: Any, /) -> None:
        """Add the sums, of the same kind, of a disjoint set of images."""

    def save(self) -> Mapping[str, Tensor]:
        """The tensors to save, in addition to files in their own folder."""
        ...

    def load(self, tensors: Mapping[str, Tensor], folder: Path, /) -> None:
        """Restore saved sums; `ValueError` or `KeyError` if they are not sound."""

    def summarize(self) -> dict[str, Any]:
        """Fields of the layer's summary."""
        ...


class AuditSums:
    """All sums of an audit, by audited layer; those of the whole model are in the last layer."""

    def __init__(self, by_layer: Mapping[int, Sequence[Sums]]) -> None:
        """Start with sums of the same images, or of none."""
        self.by_layer = by_layer
        self.num_repeated = 0
        """Images left out as copies of others."""

    def find(self, kind: type[S]) -> dict[int, S]:
        """The sums of one class, by layer."""
        return {layer: one for layer, one in self._iter_all() if isinstance(one, kind)}

    def update(self, layer: int, batch: Batch) -> None:
        """Add a batch at a layer."""
        for sums in self.by_layer[layer]:
            sums.update(batch)

    def merge(self, other: "AuditSums") -> None:
        """Add the sums of a disjoint set of images."""
        for (_, ours), (_, theirs) in zip(self._iter_all(), other._iter_all(), strict=True):
            ours.merge(theirs)
        self.num_repeated += other.num_repeated

    def save(self) -> dict[str, Tensor]:
        """The tensors to save, in addition to files in the layers' folders."""
        tensors = {_NUM_REPEATED: torch.tensor(self.num_repeated)}
        for layer, sums in self._iter_all():
            tensors |= {_place(layer, sums) + name: one for name, one in sums.save().items()}
        return tensors

    def load(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Restore saved sums; `folder` has a folder per layer."""
        self.num_repeated = int(tensors[_NUM_REPEATED])
        for layer, sums in self._iter_all():
            place = _place(layer, sums)
            own = {k.removeprefix(place): v for k, v in tensors.items() if k.startswith(place)}
            sums.load(own, folder / f"{layer:03d}")

    def summarize(self, layer: int) -> dict[str, Any]:
        """Fields of a layer's summary."""
        return {k: v for sums in self.by_layer[layer] for k, v in sums.summarize().items()}

    def _iter_all(self) -> Iterator[tuple[int, Sums]]:
        return ((layer, one) for layer, sums in self.by_layer.items() for one in sums)


def _place(layer: int, sums: Sums) -> str:
    return f"{layer:03d}/{sums.name}/"
