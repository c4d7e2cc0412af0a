"""What patches have in common at a place of the grid, removed."""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

from vitscope.models.base import ViTAdapter
from vitscope.remedies.editor import Editor, Running, Tokens
from vitscope.remedies.remedy import ReadImages, Remedy
from vitscope.remedies.statistics import TokenStatistics, measure_tokens
from vitscope.remedies.tokens import Layers


@dataclass(frozen=True, eq=False, kw_only=True)
class PositionMean(Remedy):
    r"""Remove the mean of the patches at each place of the grid, less their overall mean.

    x_j becomes x_j − (G_j − mean_j G), with G the mean over the measured images.

    Attributes:
        layers: Blocks at whose input it is removed: "last", "all", or block numbers.
        statistics: What was measured.

    Source:
        The artefact map that DVT (Yang et al., ECCV 2024) shares between images, in closed form.
    """

    name: ClassVar[str] = "position-mean"
    layers: Layers = "last"
    statistics: TokenStatistics | None = None

    def fitted(self, vit: ViTAdapter, read: ReadImages) -> Self:
        """Measure the mean tokens."""
        layers = Editor(vit, self.name).select_layers(self.layers)
        return replace(self, statistics=measure_tokens(vit, read, layers))

    def edit(self, editor: Editor) -> None:
        """Remove the means at the input of each chosen block."""
        self.require(self.statistics)
        for layer in editor.select_layers(self.layers):
            editor.edit_stream(layer, partial(self._remove, layer))

    def _remove(self, layer: int, tokens: Tokens, running: Running) -> Tokens:
        assert self.statistics is not None
        patches = running.find_patches(tokens)
        part = slice(patches.start, patches.stop)
        artefact = self.statistics.mean[layer][part]
        left = tokens.clone()
        left[:, part] -= (artefact - artefact.mean(dim=0)).to(tokens)
        return left
