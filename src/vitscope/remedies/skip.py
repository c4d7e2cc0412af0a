"""The skip connection of the [CLS] row, scaled or replaced by its mean."""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.errors import UsageError
from vitscope.models.base import ViTAdapter
from vitscope.remedies.editor import Editor
from vitscope.remedies.remedy import ReadImages, Remedy
from vitscope.remedies.statistics import (
    Layers,
    TokenStatistics,
    measure_tokens,
    require_group,
    select_layers,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Skip(Remedy):
    r"""Close the skip connection around the attention of a block, on the [CLS] row.

    r = skip + t becomes r = λ · skip + t, or skip is replaced by its mean over images, which keeps
    the scale that the following norm expects.

    Attributes:
        scale: λ, from 0 (closed) to 1.
        by_mean: Replace the skip connection by its mean instead.
        layers: "last", "all", or block numbers.
        statistics: What was measured.

    Source:
        The readout "attention" of Lappe & Giese (NeurIPS 2025), section 3.3, made a model.
    """

    name: ClassVar[str] = "skip"
    is_affine: ClassVar[bool] = True
    is_of_row: ClassVar[bool] = True
    scale: float = 0.0
    by_mean: bool = False
    layers: Layers = "last"
    statistics: TokenStatistics | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.scale <= 1:
            raise UsageError(f"scale was given as {self.scale}: expected 0 (closed) to 1")

    def measure(self, vit: ViTAdapter, read: ReadImages) -> Self:
        """Measure the mean of the skip connection, if it is used."""
        require_group(vit, "cls")
        layers = select_layers(vit, self.layers)
        if not self.by_mean:
            return self
        return replace(self, statistics=measure_tokens(vit, read, layers))

    def edit(self, editor: Editor) -> None:
        """Edit the skip connection of each chosen block."""
        require_group(editor.vit, "cls")
        editor.require_cls()
        query = editor.vit.make_layout(*editor.vit.preprocessing.size).query
        for layer in select_layers(editor.vit, self.layers):
            if self.by_mean:
                mean = self.require(self.statistics).mean[layer][query]
                editor.edit_skip(layer, partial(_replace, mean))
            else:
                editor.edit_skip(layer, partial(torch.mul, self.scale))


def _replace(
    mean: Float[Tensor, " dim"], row: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch dim"]:
    return mean.to(row).expand_as(row)
