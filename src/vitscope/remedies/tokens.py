"""Tokens replaced, hidden or repaired between blocks, and the skip connection of [CLS]."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import avg_pool2d

from vitscope.errors import UsageError
from vitscope.models.base import ViTAdapter
from vitscope.models.stream import compute_norms
from vitscope.remedies.attention import Hiding
from vitscope.remedies.editor import Editor, Places, Running, Tokens
from vitscope.remedies.remedy import ReadImages, Remedy
from vitscope.remedies.statistics import (
    Layers,
    Thresholds,
    TokenGroup,
    TokenStatistics,
    check_size,
    check_threshold,
    choose_thresholds,
    find_places,
    fit_high_norm,
    measure_tokens,
    require_group,
    select_layers,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class ChosenTokens(Remedy):
    """A remedy of some tokens at the input of some blocks.

    Attributes:
        tokens: "registers", "cls", or "high_norm": patches whose norm is at least a fitted
            threshold.
        layers: "last", "all", or block numbers.
        threshold: Least norm of a high-norm patch, in place of the fitted one.
        thresholds: Fitted thresholds by depth.
    """

    tokens: TokenGroup = "registers"
    layers: Layers = "last"
    threshold: float | None = None
    thresholds: Thresholds | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        if self.threshold is not None and self.tokens != "high_norm":
            raise UsageError(
                f"threshold was given for {self.tokens}: it is one of patches; choose the tokens "
                "high_norm, or leave it out"
            )

    @property
    def is_traced(self) -> bool:
        """See `Remedy.is_traced`."""
        return self.tokens != "high_norm"

    def measure(self, vit: ViTAdapter, read: ReadImages) -> Self:
        """Fit the thresholds of high-norm patches, if they are not given."""
        layers = self.list_layers(vit)
        if not self._needs_thresholds:
            return self
        otherwise = "choose other layers, or give threshold"
        found = choose_thresholds(vit, fit_high_norm(vit, read), layers, otherwise=otherwise)
        return replace(self, thresholds=found)

    def list_layers(self, vit: ViTAdapter) -> tuple[int, ...]:
        """The blocks, after a check that the model has the tokens."""
        require_group(vit, self.tokens)
        return select_layers(vit, self.layers)

    def edit(self, editor: Editor) -> None:
        """Edit the tokens of each chosen block."""
        layers = self.list_layers(editor.vit)
        if self._needs_thresholds:
            self.require(self.thresholds)
        for layer in layers:
            self.edit_layer(editor, layer)

    @abstractmethod
    def edit_layer(self, editor: Editor, layer: int) -> None:
        """Declare the edit of one block."""

    @property
    def _needs_thresholds(self) -> bool:
        return self.tokens == "high_norm" and self.threshold is None

    def find(self, layer: int, tokens: Tokens, running: Running) -> Places:
        """Which tokens of each image are meant."""
        known = {} if self.thresholds is None else self.thresholds.by_depth
        least = known.get(layer, torch.inf) if self.threshold is None else self.threshold
        return find_places(self.tokens, least, tokens, running)


@dataclass(frozen=True, eq=False, kw_only=True)
class ReplaceTokens(ChosenTokens):
    r"""Replace tokens at the input of blocks.

    Attributes:
        by: What takes their place:

            - "zero": 0. Alone it misleads: a model needs plausible tokens there, not these.
            - "mean": the mean token at that position and depth over the measured images.
            - "noise": that mean, plus normal noise of the standard deviation of each dimension.
            - "shuffle": the token at that position of another image, the same one at all blocks.
            - "interpolate": for patches, the mean of those of the 8 neighbours on the grid that are
              not replaced; the token itself if all are.
            - "clip": for patches, the token scaled to the median norm of the others.
        statistics: What was measured.

    Source:
        Zeroing, mean, noise and shuffled registers: Parodi et al. (2026, arXiv 2604.14433).
        Interpolation: SC-CLIP (2024, arXiv 2411.15869), with the fitted threshold in place of its
        outlier detection.
    """

    name: ClassVar[str] = "replace"
    named_by: ClassVar[str] = "by"
    by: Literal["zero", "mean", "noise", "shuffle", "interpolate", "clip"] = "zero"
    statistics: TokenStatistics | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by in {"interpolate", "clip"} and self.tokens != "high_norm":
            raise UsageError(
                f"{self.by} was asked for {self.tokens}: it repairs patches; choose the tokens "
                "high_norm, or another replacement"
            )

    @property
    def implied(self) -> tuple[str, ...]:
        """See `Remedy.implied`."""
        return ("tokens",) if self.by in {"interpolate", "clip"} else ()

    @property
    def is_traced(self) -> bool:
        """See `Remedy.is_traced`."""
        return super().is_traced and self.by in {"zero", "mean"}

    def measure(self, vit: ViTAdapter, read: ReadImages) -> Self:
        """Measure the tokens that replace others."""
        fitted = super().measure(vit, read)
        if self.by not in {"mean", "noise", "shuffle"}:
            return fitted
        layers = select_layers(vit, self.layers)
        return replace(fitted, statistics=measure_tokens(vit, read, layers))

    def edit_layer(self, editor: Editor, layer: int) -> None:
        """Replace the tokens at the input of a block."""
        if self.by in {"mean", "noise", "shuffle"}:
            self.require(self.statistics)
        editor.edit_stream(layer, partial(self._replace, layer))

    def _replace(self, layer: int, tokens: Tokens, running: Running) -> Tokens:
        places = self.find(layer, tokens, running)
        others = self._make(layer, places, tokens, running)
        return torch.where(places.unsqueeze(-1), others.to(tokens), tokens)

    def _make(self, layer: int, places: Places, tokens: Tokens, running: Running) -> Tensor:
        if self.by == "zero":
            return torch.zeros_like(tokens)
        if self.by == "interpolate":
            return _interpolate(places, tokens, running)
        if self.by == "clip":
            return _clip(places, tokens, running)
        known = self.statistics
        assert known is not None
        check_size(known.mean[layer], tokens)
        if self.by == "shuffle":
            return known.lend(layer, running)
        mean = known.mean[layer].expand(tokens.shape)
        if self.by == "mean":
            return mean
        noise = [_draw(seed + layer, mean.shape[1:]) for seed in running.seeds]
        return mean + torch.stack(noise) * known.deviation[layer]


@dataclass(frozen=True, eq=False, kw_only=True)
class HideTokens(ChosenTokens):
    """Hide tokens from the attention of blocks.

    Attributes:
        how: "mask" takes their attention away and renormalises the rest; "unread" keeps it and
            drops what it would read.
        rows: Whose attention: that of the "cls" row, or of "all" tokens.
    """

    name: ClassVar[str] = "hide"
    named_by: ClassVar[str] = "how"
    how: Literal["mask", "unread"] = "mask"
    rows: Literal["cls", "all"] = "all"

    def edit_layer(self, editor: Editor, layer: int) -> None:
        """Hide the tokens from the attention of a block."""
        editor.hide_tokens(layer, partial(self.find, layer), Hiding(self.how, self.rows))


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
        artefact = running.layout.take_patches(self.means.by_layer[layer].unsqueeze(0))
        left = tokens.clone()
        running.layout.take_patches(left).sub_((artefact - artefact.mean(dim=1)).to(tokens))
        return left


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
                editor.edit_skip(layer, partial(_replace_row, mean))
            else:
                editor.edit_skip(layer, partial(torch.mul, self.scale))


def _draw(seed: int, shape: torch.Size) -> Tensor:
    generator = torch.Generator().manual_seed(seed % 2**63)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _interpolate(places: Places, tokens: Tokens, running: Running) -> Tokens:
    rows, columns = running.layout.grid
    sound = (~running.layout.take_patches(places)).to(tokens.dtype).reshape(-1, 1, rows, columns)
    grid = running.layout.take_patches(tokens).mT.reshape(len(tokens), -1, rows, columns)
    # Sums of 3 x 3, whose centre is not sound where it matters; autocast does not round them.
    add = partial(avg_pool2d, kernel_size=3, stride=1, padding=1, divisor_override=1)
    count = add(sound)
    mean = torch.where(count > 0, add(grid * sound) / count.clamp(min=1), grid)
    others = tokens.clone()
    running.layout.take_patches(others)[:] = mean.flatten(2).mT
    return others


def _clip(places: Places, tokens: Tokens, running: Running) -> Float[Tensor, "batch token dim"]:
    norms = compute_norms(running.layout.take_patches(tokens))
    sound = ~running.layout.take_patches(places)
    # Not by `nanquantile`, whose gradient is NaN.
    ordered = norms.masked_fill(~sound, torch.inf).sort(dim=1).values
    count = sound.sum(dim=1, keepdim=True)
    middle = torch.cat([(count - 1).clamp(min=0) // 2, count // 2], dim=1)
    median = ordered.gather(1, middle).mean(dim=1, keepdim=True)
    # An image whose patches are all high has no others.
    factor = torch.where(count > 0, median, norms) / norms.masked_fill(norms == 0, 1)
    others = tokens.clone()
    running.layout.take_patches(others).mul_(factor.unsqueeze(-1).to(tokens.dtype))
    return others


def _replace_row(
    mean: Float[Tensor, " dim"], row: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch dim"]:
    return mean.to(row).expand_as(row)
