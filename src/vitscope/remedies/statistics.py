"""What remedies need to know of a model's tokens over images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.maps.passes import Pass, RunningPass, run_blocks
from vitscope.metrics.estimates import HighNormTokens
from vitscope.metrics.patch_norms import PatchNormCounts
from vitscope.metrics.sums import Batch
from vitscope.models.base import ViTAdapter
from vitscope.models.stream import compute_norms
from vitscope.remedies.editor import Places, Running, Tokens
from vitscope.remedies.remedy import ReadImages

Layers = Literal["last", "all"] | tuple[int, ...]
TokenGroup = Literal["registers", "cls", "high_norm"]

NUM_LENDERS = 16
"""Images whose tokens are kept, to stand in those of others."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenStatistics:
    """Tokens at the inputs of blocks, over images."""

    num_images: int  # number of images
    mean: Mapping[int, Float64[Tensor, "token dim"]]  # by block, the mean token at each position
    # by block, the standard deviation of each dimension at each position
    deviation: Mapping[int, Float64[Tensor, "token dim"]]
    lent: Mapping[int, Float[Tensor, "lender token dim"]]  # by block, the tokens of a few images
    lenders: tuple[int, ...]  # a number for each of these images

    def save(self) -> dict[str, Tensor]:
        """All that was measured."""
        counts = {"num_images": torch.tensor(self.num_images)}
        parts = {"mean": self.mean, "deviation": self.deviation, "lent": self.lent}
        layers = {
            f"{name}/{layer}": tensor.contiguous()
            for name, part in parts.items()
            for layer, tensor in sorted(part.items())
        }
        return counts | {"lenders": torch.tensor(self.lenders)} | layers

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Restore what was saved."""
        by_layer: dict[str, dict[int, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, layer = key.partition("/")
            if layer:
                by_layer.setdefault(name, {})[int(layer)] = tensor
        return cls(
            num_images=int(tensors["num_images"]),
            lenders=tuple(tensors["lenders"].tolist()),
            **by_layer,
        )

    def tell(self) -> str:
        """What was measured, in words."""
        layers = ", ".join(map(str, sorted(self.mean)))
        return f"tokens at the input of block {layers}, over {self.num_images} images"

    def lend(self, layer: int, running: Running) -> Float[Tensor, "batch token dim"]:
        """Tokens of another image for each image, the same one at every block and in any batch."""
        chosen = []
        for seed in running.seeds:
            others = [i for i, lender in enumerate(self.lenders) if lender != seed]
            chosen.append(others[seed % len(others)])
        return self.lent[layer][chosen]


def iter_passes(
    vit: ViTAdapter,
    read: ReadImages,
    at_once: int | None = None,
    watch: Callable[[RunningPass], None] | None = None,
) -> Iterator[tuple[Running, Pass]]:
    """Run a model on images, `at_once` or a batch at a time; refuses if there are none."""
    is_empty = True
    for pixels in read():
        for part in torch.split(pixels, at_once or len(pixels)):
            is_empty = False
            running = Running(vit.make_layout(*part.shape[-2:]), part)
            yield running, run_blocks(vit, part, watch=watch)
    if is_empty:
        raise UsageError("there are no images to measure the remedy on: give some")


@dataclass(eq=False)
class _Sums:
    total: Tensor
    squares: Tensor
    lent: list[Tensor] = field(default_factory=list)


def measure_tokens(vit: ViTAdapter, read: ReadImages, layers: Sequence[int]) -> TokenStatistics:
    """Measure the tokens that enter some blocks, in one pass over the images."""
    sums: dict[int, _Sums] = {}
    count, lenders = 0, list[int]()
    for running, run in iter_passes(vit, read):
        seeds = running.seeds
        new = [i for i, seed in enumerate(seeds) if seed not in {*lenders, *seeds[:i]}]
        new = new[: NUM_LENDERS - len(lenders)]
        lenders += [seeds[i] for i in new]
        count += len(seeds)
        for layer in layers:
            tokens = run.streams[layer].detach().cpu()
            exact = tokens.double()
            if layer not in sums:
                sums[layer] = _Sums(*torch.zeros(2, *exact.shape[1:], dtype=torch.float64))
            # Squares of what is left of the first image's tokens lose no digits.
            sums[layer].lent.append(tokens[new])
            origin = sums[layer].lent[0][0].double()
            sums[layer].total += (exact - origin).sum(dim=0)
            sums[layer].squares += (exact - origin).square().sum(dim=0)
    if len(lenders) < 2:  # whose mean would be itself
        raise UsageError(
            "the remedy is measured on tokens of several images, and one was given: give two or "
            "more different ones"
        )
    lent = {layer: torch.cat(each.lent) for layer, each in sums.items()}
    shift = {layer: each.total / count for layer, each in sums.items()}
    return TokenStatistics(
        num_images=count,
        mean={layer: lent[layer][0].double() + shift[layer] for layer in sums},
        deviation={
            layer: (each.squares / count - shift[layer].square()).clamp(min=0).sqrt()
            for layer, each in sums.items()
        },
        lent=lent,
        lenders=tuple(lenders),
    )


def fit_high_norm(vit: ViTAdapter, read: ReadImages) -> list[HighNormTokens]:
    """The fitted threshold of every depth, in one pass over the images."""
    counts = PatchNormCounts()
    for running, run in iter_passes(vit, read):
        norms = [compute_norms(running.layout.take_patches(stream)).cpu() for stream in run.streams]
        counts.update(Batch({}, [0] * len(norms[0]), patch_norms=torch.stack(norms, dim=1)))
    return [counts.fit(depth) for depth in range(counts.num_depths)]


def check_threshold(threshold: float | None) -> None:
    """Refuse a threshold that no norm can be below."""
    if threshold is not None and not threshold > 0:
        raise UsageError(f"threshold was given as {threshold}: expected a norm above 0")


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Least norms of high-norm patches, by depth."""

    by_depth: Mapping[int, float]

    def save(self) -> dict[str, Tensor]:
        """All that was measured."""
        depths = sorted(self.by_depth)
        norms = [self.by_depth[depth] for depth in depths]
        return {"depths": torch.tensor(depths), "norms": torch.tensor(norms, dtype=torch.float64)}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Restore what was saved."""
        pairs = zip(tensors["depths"].tolist(), tensors["norms"].tolist(), strict=True)
        return cls(dict(pairs))

    def tell(self) -> str:
        """What was measured, in words."""
        told = (f"{norm:.4g} at depth {depth}" for depth, norm in sorted(self.by_depth.items()))
        return f"high-norm patches have a norm of at least {', '.join(told)}"


def choose_thresholds(
    vit: ViTAdapter, found: Sequence[HighNormTokens], depths: Sequence[int], *, otherwise: str
) -> Thresholds:
    """The thresholds of some depths; if none has high-norm tokens, refuses and says what to do."""
    fitted = {d: found[d].threshold for d in depths if found[d].threshold is not None}
    if not fitted:
        where = [d for d, each in enumerate(found) if each.threshold is not None]
        elsewhere = f"; they are at depth {', '.join(map(str, where))}" if where else ""
        raise UsageError(
            f"no high-norm patches were found in {found[0].num_images} images at depth "
            f"{', '.join(map(str, depths))} of {vit.info.id}{elsewhere}: there is nothing to edit; "
            f"{otherwise}"
        )
    return Thresholds({depth: float(value) for depth, value in fitted.items() if value})


def check_size(mean: Float64[Tensor, "place dim"], tokens: Tokens) -> None:
    """Refuse images of another size than those measured, whose places are others."""
    if len(mean) != tokens.shape[1]:
        raise UsageError(
            f"the remedy was measured on images with {len(mean)} tokens, and these have "
            f"{tokens.shape[1]}: measure it at the input size that it is applied at"
        )


def find_places(group: TokenGroup, least: float, tokens: Tokens, running: Running) -> Places:
    """Which tokens of each image belong to a group; high-norm patches have `least` or more."""
    if group != "high_norm":
        return running.find_group(group, tokens)
    places = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    norms = compute_norms(running.layout.take_patches(tokens))
    running.layout.take_patches(places)[:] = norms >= least
    return places


def require_group(vit: ViTAdapter, group: TokenGroup) -> None:
    """Refuse tokens that a model does not have."""
    groups = vit.make_layout(*vit.preprocessing.size).groups
    if group != "high_norm" and group not in groups:
        name = {"cls": "[CLS] token", "registers": "registers"}[group]
        raise UnsupportedModelError(
            f"{vit.info.id} has no {name} to edit: its tokens are {', '.join(groups)}; choose "
            "other tokens, or a model that has them"
        )


def select_layers(vit: ViTAdapter, layers: Layers) -> tuple[int, ...]:
    """Indices of the encoder blocks that are chosen, in order."""
    depth = len(vit.encoder_blocks)
    if layers == "all":
        return tuple(range(depth))
    chosen = (-1,) if layers == "last" else layers
    for layer in chosen:
        if not -depth <= layer < depth:
            raise UsageError(
                f"{vit.info.id} has no block {layer}: choose from 0 to {depth - 1}, or "
                f"from {-depth} to -1"
            )
    return tuple(sorted({layer % depth for layer in chosen}))
