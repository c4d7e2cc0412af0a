"""What patches have in common at a place of the grid, removed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

from jaxtyping import Float64
from torch import Tensor

from vitscope.models.base import ViTAdapter
from vitscope.remedies.editor import Editor, Running, Tokens
from vitscope.remedies.remedy import ReadImages, Remedy
from vitscope.remedies.statistics import Layers, check_size, measure_tokens, select_layers


@dataclass(frozen=True, eq=False)
class MeanTokens:
    """The mean token at each position, by block."""

    by_layer: Mapping[int, Float64[Tensor, "token dim"]]

    def save(self) -> dict[str, Tensor]:
        """All that was measured."""
        return {str(layer): tensor.contiguous() for layer, tensor in self.by_layer.items()}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Restore what was saved."""
        return cls({int(layer): tensor for layer, tensor in sorted(tensors.items())})

    def tell(self) -> str:
        """What was measured, in words."""
        layers = ", ".join(map(str, sorted(self.by_layer)))
        return f"mean tokens at the input of block {layers}"


@dataclass(frozen=True, eq=False, kw_only=True)
class PositionMean(Remedy):
    r"""Remove the mean of the patches at each place of the grid, less their overall mean.

    x_j becomes x_j − (G_j − mean_j G), with G the mean over the measured images.

    Attributes:
        layers: Blocks at whose input it is removed: "last", "all", or block numbers.
        means: What was measured, in each block after the removal in those before it.

    Source:
        The artefact map that DVT (Yang et al., ECCV 2024) shares between images, in closed form.
    """

    name: ClassVar[str] = "position-mean"
    is_affine: ClassVar[bool] = True
    layers: Layers = "last"
    means: MeanTokens | None = None

    def measure(self, vit: ViTAdapter, read: ReadImages) -> Self:
        """Measure the mean tokens, in one pass over the images for each block."""
        found: dict[int, Tensor] = {}
        for layer in select_layers(vit, self.layers):
            so_far = replace(self, layers=tuple(found), means=MeanTokens(dict(found)))
            with so_far.applied(vit) as edited:
                found[layer] = measure_tokens(edited, read, [layer]).mean[layer]
        return replace(self, means=MeanTokens(found))

    def edit(self, editor: Editor) -> None:
        """Remove the means at the input of each chosen block."""
        layers = select_layers(editor.vit, self.layers)
        self.require(self.means)
        for layer in layers:
            editor.edit_stream(layer, partial(self._remove, layer))

    def _remove(self, layer: int, tokens: Tokens, running: Running) -> Tokens:
        assert self.means is not None
        check_size(self.means.by_layer[layer], tokens)
        artefact = running.take_patches(self.means.by_layer[layer].unsqueeze(0))
        left = tokens.clone()
        running.take_patches(left).sub_((artefact - artefact.mean(dim=1)).to(tokens))
        return left
