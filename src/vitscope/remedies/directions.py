"""Defect directions: where the linear part of a model drives every token, and patches without it.

Source: SINDER (Wang et al., ECCV 2024), without its training.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, NamedTuple, Self

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import normalize

from vitscope.errors import UsageError
from vitscope.models.base import ViTAdapter
from vitscope.models.stream import compute_norms
from vitscope.remedies.editor import Editor, Running, Tokens
from vitscope.remedies.linear import linearise_blocks
from vitscope.remedies.remedy import ReadImages, Remedy
from vitscope.remedies.statistics import Layers, fit_high_norm, iter_passes, select_layers
from vitscope.results.number_text import write_percent


@dataclass(frozen=True, eq=False)
class Directions:
    """The defect direction of every depth from 1: after the first block, and so on."""

    by_depth: Mapping[int, Float64[Tensor, " dim"]]  # unit vectors; their sign has no meaning
    # by depth, the first singular value over the second: near 1 there is no direction
    dominance: Mapping[int, float]

    def save(self) -> dict[str, Tensor]:
        """All that was computed."""
        depths = sorted(self.by_depth)
        # The same numbers for either sign.
        signed = [self.by_depth[depth] for depth in depths]
        rows = [row * row[row.abs().argmax()].sign() for row in signed]
        sizes = [self.dominance[depth] for depth in depths]
        return {
            "depths": torch.tensor(depths),
            "directions": torch.stack(rows),
            "dominance": torch.tensor(sizes, dtype=torch.float64),
        }

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Restore what was saved."""
        depths = tensors["depths"].tolist()
        rows, sizes = tensors["directions"], tensors["dominance"].tolist()
        return cls(dict(zip(depths, rows, strict=True)), dict(zip(depths, sizes, strict=True)))

    def tell(self) -> str:
        """What was computed, in words."""
        told = (f"{size:.3g} at depth {depth}" for depth, size in sorted(self.dominance.items()))
        return (
            "defect directions; the first singular value over the second, near 1 where there is "
            f"none: {', '.join(told)}"
        )


def find_directions(vit: ViTAdapter) -> Directions:
    """Find the defect direction of every depth from the weights alone."""
    # The first left singular vector of A_ℓ ⋯ A_0, where
    #
    #     A = (γ₂ W₂ W diag(w₂) C + I) (γ₁ W_O W_V diag(w₁) C + I),  C = I − 11ᵀ/d
    #
    # is the linear part of a block and W the linear map nearest to its MLP's neurons, which SINDER
    # samples: in closed form if these are known, or fitted to normal tokens.
    product = torch.eye(vit.info.embed_dim, dtype=torch.float64)
    directions, dominance = {}, {}
    for depth, block in enumerate(linearise_blocks(vit), start=1):
        product = block.multiply() @ product
        product = product / torch.linalg.matrix_norm(product)
        left, sizes, _ = torch.linalg.svd(product)
        directions[depth] = left[:, 0].clone()
        dominance[depth] = float(sizes[0] / sizes[1])
    return Directions(directions, dominance)


def compute_alignment(
    tokens: Float[Tensor, "*batch dim"], direction: Float64[Tensor, " dim"]
) -> Float[Tensor, "*batch"]:
    """|cos| of each token with a direction: a map, if the tokens are patches."""
    alignment: Tensor = (normalize(tokens, dim=-1) @ direction.to(tokens)).abs()
    return alignment


class DepthAlignment(NamedTuple):
    """Patches and the predicted direction at one depth, over images."""

    depth: int  # from 1: after the first block
    mean: float  # mean |cos| of patches with the direction
    highest: float  # the largest |cos|
    variance_share: float  # share of the patches' variance along the direction
    num_defects: int  # number of high-norm patches, by the threshold
    # degrees from the predicted direction to the mean direction of these patches; None without any
    angle: float | None


def measure_directions(
    vit: ViTAdapter, read: ReadImages, directions: Directions
) -> list[DepthAlignment]:
    """The patches of images beside the directions, by depth."""
    found = fit_high_norm(vit, read)
    sums = {
        depth: _Sums(direction, found[depth].threshold)
        for depth, direction in directions.by_depth.items()
    }
    for running, run in iter_passes(vit, read):
        for depth, each in sums.items():
            each.add(running.layout.take_patches(run.streams[depth]))
    return [each.finish(depth) for depth, each in sums.items()]


class _Sums:
    """Sums over patches at one depth."""

    def __init__(self, direction: Float64[Tensor, " dim"], threshold: float | None) -> None:
        self._direction = direction
        self._threshold = torch.inf if threshold is None else threshold
        self._count = self._num_defects = 0
        self._alignment = self._highest = 0.0
        self._total, self._defects = torch.zeros(2, len(direction), dtype=torch.float64)
        self._squares = torch.zeros(2, dtype=torch.float64)
        self._origin: Tensor | None = None

    def add(self, tokens: Tokens) -> None:
        """Add the patches of a batch."""
        rows = tokens.detach().flatten(0, 1).cpu().double()
        alignment = compute_alignment(rows, self._direction).clamp(max=1)
        self._count += len(rows)
        self._alignment += float(alignment.sum())
        self._highest = max(self._highest, float(alignment.max()))
        defects = rows[compute_norms(rows) >= self._threshold]
        self._num_defects += len(defects)
        self._defects += normalize(defects, dim=-1).sum(dim=0)
        if self._origin is None:  # squares of what is left of it lose no digits
            self._origin = rows.mean(dim=0)
        rows = rows - self._origin
        self._total += rows.sum(dim=0)
        along = (rows @ self._direction).square().sum()
        self._squares += torch.stack([along, rows.square().sum()])

    def finish(self, depth: int) -> DepthAlignment:
        """The numbers of all batches."""
        mean = self._total / self._count
        of_mean = torch.stack([(mean @ self._direction).square(), mean.square().sum()])
        along, all_variance = (self._squares / self._count - of_mean).tolist()
        defect = compute_alignment(self._defects, self._direction).clamp(max=1)
        return DepthAlignment(
            depth=depth,
            mean=self._alignment / self._count,
            highest=self._highest,
            variance_share=along / all_variance,
            num_defects=self._num_defects,
            angle=float(defect.acos().rad2deg()) if self._num_defects else None,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class ProjectDirection(Remedy):
    r"""Remove the defect direction u from the patches that lie along it.

    x_j becomes x_j − u uᵀ x_j where |cos(x_j, u)| is more than `deviations` standard deviations
    above the mean of the image's patches.

    Attributes:
        layers: Blocks at whose input it is removed: "last", "all" (from block 1), or block numbers
            from 1.
        deviations: Number of standard deviations. With n patches none is further than √(n − 1)
            from the mean.
        directions: Those of the model.

    Source:
        Direction and threshold: SINDER (Wang et al., ECCV 2024), which then trains; the projection
        is ours.
    """

    name: ClassVar[str] = "project-direction"
    layers: Layers = "last"
    deviations: float = 4.0
    directions: Directions | None = None

    def measure(self, vit: ViTAdapter, read: ReadImages) -> Self:
        """Find the directions; no image is read."""
        del read
        self._list_layers(vit)
        return replace(self, directions=find_directions(vit))

    def examine(self, vit: ViTAdapter, read: ReadImages) -> str:
        """The directions beside the patches of images, by depth."""
        found = measure_directions(vit, read, self.require(self.directions))
        return "\n".join(map(_tell_alignment, found))

    def edit(self, editor: Editor) -> None:
        """Project the patches at the input of each chosen block."""
        layers = self._list_layers(editor.vit)
        directions = self.require(self.directions).by_depth
        for layer in layers:
            editor.edit_stream(layer, partial(self._project, directions[layer]))

    def _list_layers(self, vit: ViTAdapter) -> tuple[int, ...]:
        layers = select_layers(vit, self.layers)
        if self.layers == "all":
            return layers[1:]
        if 0 in layers:
            raise UsageError(
                "layers has block 0, whose input no block has written: choose blocks from 1"
            )
        return layers

    def _project(
        self, direction: Float64[Tensor, " dim"], tokens: Tokens, running: Running
    ) -> Tokens:
        part, unit = running.layout.take_patches(tokens), direction.to(tokens)
        alignment = compute_alignment(part, direction)
        deviation, mean = torch.std_mean(alignment, dim=1, keepdim=True, correction=0)
        defects = alignment > mean + self.deviations * deviation
        along = (part @ unit).masked_fill(~defects, 0)
        projected = tokens.clone()
        running.layout.take_patches(projected).sub_(along.unsqueeze(-1) * unit)
        return projected


def _tell_alignment(found: DepthAlignment) -> str:
    told = "no high-norm patches"
    if found.angle is not None:
        told = f"{found.num_defects} high-norm patches, whose mean is {found.angle:.1f}° from it"
    return (
        f"direction at depth {found.depth}: {told}; |cos| of patches with it {found.mean:.2f}, at "
        f"most {found.highest:.2f}; {write_percent(found.variance_share)} of their variance"
    )
