"""Test-time registers: the neurons that write high-norm patches write a new token instead.

Source: Jiang et al., "Vision Transformers Don't Need Trained Registers" (NeurIPS 2025).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.maps.passes import RunningPass
from vitscope.models.base import ViTAdapter
from vitscope.models.stream import take_input
from vitscope.remedies.editor import Editor, Places, Running, Tokens, find_neurons
from vitscope.remedies.remedy import ReadImages, Remedy
from vitscope.remedies.statistics import (
    check_threshold,
    choose_thresholds,
    find_places,
    fit_high_norm,
    iter_passes,
    require_group,
)

_IMAGES_AT_ONCE = 4
"""Images whose neurons are in memory at a time."""

_PUBLISHED: Mapping[int, Sequence[int]] = {
    12: (3168,),
    13: (2400,),
    14: (2110, 1510, 1082, 2711, 2464, 147, 543, 581),
    15: (1714, 3507, 2492, 2680, 131, 720, 3499, 3062, 2625),
    16: (2301, 3576, 1940, 3463, 1244, 407, 3152, 2517, 3465),
    17: (
        *(884, 133, 1427, 3464, 2373, 2436, 841, 3574, 2129),
        *(3355, 4047, 3341, 1330, 4031, 844, 944, 464),
    ),
}
"""The neurons of `dinov2_vitl14_tt_reg` by block; all libraries number them alike."""
_PUBLISHED_FOR = (
    "24 blocks of width 1024 with a layer scale and 4096 neurons, patches of 14 px and 0 registers"
)


class Neuron(NamedTuple):
    """A neuron of an MLP and how strongly it fires where registers are, or should be."""

    layer: int
    number: int
    score: float


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons that were found, the strongest first."""

    found: tuple[Neuron, ...]
    num_images: int  # images that had such tokens

    @property
    def by_layer(self) -> dict[int, list[int]]:
        """Numbers of the neurons of each block."""
        layers = sorted({neuron.layer for neuron in self.found})
        return {k: [n.number for n in self.found if n.layer == k] for k in layers}

    def save(self) -> dict[str, Tensor]:
        """All that was measured."""
        return {
            "places": torch.tensor([neuron[:2] for neuron in self.found]),
            "scores": torch.tensor([neuron.score for neuron in self.found], dtype=torch.float64),
            "num_images": torch.tensor(self.num_images),
        }

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Restore what was saved."""
        places, scores = tensors["places"].tolist(), tensors["scores"].tolist()
        pairs = zip(places, scores, strict=True)
        found = tuple(Neuron(layer, number, score) for (layer, number), score in pairs)
        return cls(found, int(tensors["num_images"]))

    def tell(self) -> str:
        """What was measured, in words."""
        told = (f"{n.number} of block {n.layer} ({n.score:.3g})" for n in self.found)
        return (
            f"neurons, with their mean size at such tokens in {self.num_images} images: "
            f"{', '.join(told)}"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class TestTimeRegisters(Remedy):
    r"""Insert registers, and move into them what chosen neurons write to patches.

    In each of their blocks, for every image and neuron k, the new token gets scale · n_k(i*) with
    i* = argmax_i |n_k(i)| over the patches, and the patches get 0; [CLS] is untouched.

    Attributes:
        at: Where the neurons fire: at "high_norm" patches, or at the model's own "registers", which
            says what writes these.
        count: Number of new tokens; all get the same values.
        scale: Factor on the values.
        top: Number of neurons.
        depth: Depth whose high-norm patches are explained; by default the one with most of them.
        highest: Last block whose neurons are considered; by default the one before `depth`, or the
            last of all for registers.
        threshold: Least norm of a high-norm patch, in place of the fitted one.
        published: Whether the published neurons of DINOv2-L are taken, in place of a search.
        compat: "released" takes one value for all neurons of a block, over all tokens, as the
            published code does.
        neurons: The neurons that were found.

    Source:
        Jiang et al. (NeurIPS 2025). Published settings: DINOv2-L depth 23, threshold 150, highest
        17, top 50; CLIP ViT-B/16 depth 12, threshold 30, highest 5, top 10.
    """

    __test__ = False  # pytest would collect it

    name: ClassVar[str] = "test-time-registers"
    at: Literal["high_norm", "registers"] = "high_norm"
    count: int = 1
    scale: float = 1.0
    top: int = 10
    depth: int | None = None
    highest: int | None = None
    threshold: float | None = None
    published: bool = False
    compat: Literal["released"] | None = None
    neurons: Neurons | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("count", "top"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} was given as {getattr(self, name)}: expected 1 or more")
        check_threshold(self.threshold)
        finding = ("at", "top", "depth", "highest", "threshold")
        changed = [field.name for field, _ in self._list_changed() if field.name in finding]
        if self.published and changed:
            raise UsageError(
                f"{changed[0]} was given with published=true: it is a setting of the search for "
                "neurons, and the published ones are not searched for; leave one of them out"
            )
        if self.at == "registers" and not (self.depth is None and self.threshold is None):
            raise UsageError(
                "depth or threshold was given for registers: they are of high-norm patches; leave "
                "them out, or choose at=high_norm"
            )

    def measure(self, vit: ViTAdapter, read: ReadImages) -> Self:
        """Find the neurons in one pass over the images, after one for a threshold not given."""
        if self.published:
            return self
        _check_blocks(vit, self.depth, self.highest)
        if self.at == "registers":
            require_group(vit, "registers")
            return replace(self, neurons=self._find(vit, read, len(vit.encoder_blocks), 0.0))
        depth, threshold = self.depth, self.threshold
        if depth is None or threshold is None:
            found = fit_high_norm(vit, read)
            depths = range(1, len(found)) if depth is None else [depth]
            otherwise = "give depth and threshold"
            fitted = choose_thresholds(vit, found, depths, otherwise=otherwise).by_depth
            depth = max(fitted, key=lambda d: found[d].fraction or 0)
            threshold = fitted[depth] if threshold is None else threshold
        return replace(self, neurons=self._find(vit, read, depth, threshold))

    def _find(self, vit: ViTAdapter, read: ReadImages, depth: int, threshold: float) -> Neurons:
        # S(ℓ, k) = mean over images with such tokens of mean_{i ∈ O} |n_ℓk(i)|, with O the patches
        # whose norm at `depth` is at least `threshold`, or the model's own registers.
        highest = depth - 1 if self.highest is None else self.highest
        linears, neurons = [find_neurons(vit, k) for k in range(highest + 1)], list[Tensor]()

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            neurons.append(take_input(args, kwargs))

        def watch(running: RunningPass) -> None:
            for linear in linears:
                running.before(linear, keep)

        scores, count = torch.zeros((), dtype=torch.float64), 0
        for running, run in iter_passes(vit, read, _IMAGES_AT_ONCE, watch):
            places = find_places(self.at, threshold, run.streams[depth], running)
            scores = scores + torch.stack([_score(each, places) for each in neurons])
            count += int(places.any(dim=1).sum())
            neurons.clear()
        if not count:
            raise UsageError(
                f"no image has a patch with a norm of {threshold} or more at depth {depth} of "
                f"{vit.info.id}: give a lower threshold, or more images"
            )
        best = (scores / count).flatten().sort(descending=True)
        width = scores.shape[1]
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        found = [Neuron(place // width, place % width, score) for place, score in pairs]
        return Neurons(tuple(found[: self.top]), count)

    def edit(self, editor: Editor) -> None:
        """Insert the tokens and move the neurons' values."""
        editor.insert_registers(self.count)
        if self.at == "registers":
            require_group(editor.vit, "registers")
        _check_blocks(editor.vit, self.depth, self.highest)
        found = None if self.published else self.require(self.neurons)
        by_layer = _take_published(editor.vit) if found is None else found.by_layer
        for layer, numbers in by_layer.items():
            editor.edit_neurons(layer, partial(self._move, numbers))

    def _move(self, indices: Sequence[int], tokens: Tokens, running: Running) -> Tokens:
        patches = running.layout.find_patches(tokens.shape[1])
        chosen = torch.tensor(indices, device=tokens.device)
        moved = tokens.clone()
        if self.compat == "released":
            everything = tokens[:, :, chosen].flatten(1)
            largest = everything.abs().argmax(dim=1, keepdim=True)
            value = everything.gather(1, largest).expand(-1, len(indices))
        else:
            of_patches = tokens[:, patches.start : patches.stop, chosen]
            largest = of_patches.abs().argmax(dim=1, keepdim=True)
            value = of_patches.gather(1, largest).squeeze(1)
        moved[:, patches.start : patches.stop, chosen] = 0
        registers, stop = running.layout.groups.get("registers"), patches.start
        if running.layout.query is not None and registers is not None:
            stop = registers.stop
        for place in range(stop - self.count, stop):
            moved[:, place, chosen] = self.scale * value
        return moved


def _take_published(vit: ViTAdapter) -> Mapping[int, Sequence[int]]:
    info, first = vit.info, vit.blocks.get(0)
    scale = "no" if first is None or first.tail.scale is None else "a"
    found = (
        f"{info.depth} blocks of width {info.embed_dim} with {scale} layer scale and "
        f"{find_neurons(vit, 0).in_features} neurons, patches of {info.patch_size[0]} px and "
        f"{info.num_registers} registers"
    )
    if found != _PUBLISHED_FOR:
        raise UnsupportedModelError(
            f"the published neurons are those of DINOv2-L ({_PUBLISHED_FOR}), and {info.id} has "
            f"{found}: leave published=true out, and its own are searched for"
        )
    return _PUBLISHED


def _check_blocks(vit: ViTAdapter, depth: int | None, highest: int | None) -> None:
    count = len(vit.encoder_blocks)
    if depth is not None and not 1 <= depth <= count:
        raise UsageError(f"depth was given as {depth}: expected one from 1 to {count}")
    if highest is not None and not 0 <= highest < count:
        raise UsageError(f"highest was given as {highest}: expected a block from 0 to {count - 1}")


def _score(neurons: Tensor, places: Places) -> Float[Tensor, " neuron"]:
    # Sum over images of the mean |n| at their places; images without any add 0.
    counts = places.sum(dim=1).clamp(min=1)
    sizes = neurons.abs() * places.unsqueeze(-1)
    return (sizes.double().sum(dim=1) / counts.unsqueeze(-1)).sum(dim=0).cpu()
