"""Attention sinks: tokens that most queries attend to, what kind they are, and heads without them.

Source: Fesser et al. (2026, arXiv 2606.08105): a sink either switches a head off or broadcasts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vitscope.errors import UsageError
from vitscope.layout import GROUPS, TokenLayout
from vitscope.maps.attention_calls import BlockAttentions
from vitscope.maps.functions import read_fused
from vitscope.maps.passes import RunningPass
from vitscope.models.base import ViTAdapter
from vitscope.models.stream import compute_norms
from vitscope.remedies.attention import Hiding
from vitscope.remedies.editor import Editor, Running, Tokens
from vitscope.remedies.remedy import ReadImages, Remedy
from vitscope.remedies.statistics import Layers, iter_passes, select_layers

SinkKind = Literal["none", "no-op", "broadcast", "unclear"]

_IMAGES_AT_ONCE = 4
"""Images whose attention weights of one block are in memory at a time."""


class HeadSink(NamedTuple):
    """The sink of one head, over images.

    The score of token j is c_j = Σ_i A_ij, the attention that it gets from all queries; the sink of
    an image is the token with the highest.
    """

    layer: int  # index of the block
    head: int  # index of the head
    concentration: float  # mean score of the sink, over the mean of the median score
    value_ratio: float  # mean norm of the sink's value vector, over the mean of the median norm
    # mean share of the first singular value in what the head reads: σ₁² / Σ σ² of A V
    rank_one_share: float
    group: str  # the group of tokens that the sink is in most often
    position: int | None  # where in the sequence; None if the sink is a patch, whose place varies
    # "none" without a sink; "no-op" if it has a small value vector, which switches the head off;
    # "broadcast" if its value vector is at least as large as the median and the head writes about
    # the same to all tokens; "unclear" otherwise
    kind: SinkKind


@dataclass(frozen=True, eq=False)
class HeadSinks:
    """The sinks of all heads of all blocks, in order."""

    found: tuple[HeadSink, ...]
    num_images: int

    def save(self) -> dict[str, Tensor]:
        """All that was measured."""
        places = [
            (s.layer, s.head, -1 if s.position is None else s.position, _KINDS.index(s.kind))
            for s in self.found
        ]
        numbers = [(s.concentration, s.value_ratio, s.rank_one_share) for s in self.found]
        groups = [_GROUPS.index(sink.group) for sink in self.found]
        return {
            "places": torch.tensor(places),
            "numbers": torch.tensor(numbers, dtype=torch.float64),
            "groups": torch.tensor(groups),
            "num_images": torch.tensor(self.num_images),
        }

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Restore what was saved."""
        places, numbers, groups = (
            tensors[name].tolist() for name in ("places", "numbers", "groups")
        )
        rows = zip(places, numbers, groups, strict=True)
        found = (
            (layer, head, *of_head, _GROUPS[group], None if place < 0 else place, _KINDS[kind])
            for (layer, head, place, kind), of_head, group in rows
        )
        return cls(tuple(map(HeadSink._make, found)), int(tensors["num_images"]))

    def tell(self) -> str:
        """What was measured, in words."""
        lines = [f"sinks of {len(self.found)} heads in {self.num_images} images"]
        lines += [
            f"block {s.layer}, head {s.head}: {s.kind} at {s.group}, concentration "
            f"{s.concentration:.3g}, value {s.value_ratio:.2g}, rank one {s.rank_one_share:.2g}"
            for s in self.found
            if s.kind != "none"
        ]
        return "\n".join(lines)


_KINDS: Sequence[SinkKind] = ("none", "no-op", "broadcast", "unclear")
_GROUPS = (*GROUPS, "others")


class _Sums:
    """Sums over images of the numbers of each head of a block."""

    def __init__(self, num_heads: int, num_tokens: int) -> None:
        self._count = 0
        self._numbers = torch.zeros(5, num_heads, dtype=torch.float64)
        self._places = torch.zeros(num_heads, num_tokens, dtype=torch.int64)

    def add(
        self,
        weights: Float[Tensor, "batch head query key"],
        values: Float[Tensor, "batch head key head_dim"],
    ) -> None:
        """Add the attention of a batch."""
        scores, norms = weights.sum(dim=-2), compute_norms(values)
        highest, place = scores.max(dim=-1, keepdim=True)
        out = (weights @ values).double().cpu()
        shares = torch.linalg.eigvalsh(out.mT @ out)  # squares of singular values, ascending
        first = shares[..., -1] / shares.sum(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
        numbers = (
            highest.squeeze(-1),
            scores.median(dim=-1).values,
            norms.gather(-1, place).squeeze(-1),
            norms.median(dim=-1).values,
            first,
        )
        self._count += len(weights)
        self._numbers += torch.stack([each.sum(dim=0).double().cpu() for each in numbers])
        self._places += (
            torch.zeros(scores.shape, dtype=torch.int64).scatter_(-1, place.cpu(), 1).sum(dim=0)
        )

    def list_heads(self, layer: int, layout: TokenLayout) -> Iterator[HeadSink]:
        """The sink of each head, without its kind."""
        groups = _name_places(layout, self._places.shape[1])
        highest, median, of_sink, of_all, first = self._numbers / self._count
        least = torch.finfo(torch.float64).tiny  # where a head has only values of 0
        ratios = of_sink / of_all.clamp(min=least)
        concentrations = highest / median.clamp(min=least)
        for head, places in enumerate(self._places):
            counts = {name: int(sum(places[i] for i in at)) for name, at in groups.items()}
            group = max(counts, key=lambda name: counts[name])
            inside = groups[group]
            position = inside[int(places[inside].argmax())]
            yield HeadSink(
                layer=layer,
                head=head,
                concentration=float(concentrations[head]),
                value_ratio=float(ratios[head]),
                rank_one_share=float(first[head]),
                group=group,
                position=None if group == "patches" else position,
                kind="none",
            )


def _name_places(layout: TokenLayout, num_tokens: int) -> Mapping[str, list[int]]:
    # A pooling head's layout may omit leading tokens that it does not pool over.
    left_out = layout.find_patches(num_tokens).start - layout.groups["patches"].start
    groups = {name: [left_out + i for i in at] for name, at in layout.groups.items()}
    return groups | ({"others": list(range(left_out))} if left_out else {})


class _SinkRecorder(BlockAttentions):
    """Adds up the attention of every block while the model runs, unchanged."""

    def __init__(self, vit: ViTAdapter) -> None:
        super().__init__()
        self.by_layer: dict[int, _Sums] = {}
        self._vit = vit

    def attach(self, running: RunningPass) -> None:
        """Watch a forward."""
        for layer, block in enumerate(self._vit.encoder_blocks):
            running.before(block, partial(self.enter, layer))
            running.after(block, self.leave)
        running.enter_context(self)

    def fused(self, call: Callable[..., Tensor], *given: Any, **named: Any) -> Tensor:
        """Add weights that are computed anew."""
        seen = read_fused(*given, **named)
        self._add(seen.weigh(), seen.value)
        return call(*given, **named)

    def read(self, call: Callable[..., Tensor], weights: Tensor, values: Tensor) -> Tensor:
        """Add the model's own weights."""
        self._add(weights, values)
        return call(weights, values)

    def _add(self, weights: Tensor, values: Tensor) -> None:
        assert self.layer is not None
        self.num_seen += 1
        if self.layer not in self.by_layer:
            self.by_layer[self.layer] = _Sums(weights.shape[1], weights.shape[-1])
        self.by_layer[self.layer].add(weights, values)


@dataclass(frozen=True, eq=False, kw_only=True)
class SwitchSinks(Remedy):
    """Switch off the sinks of one kind, each in its own heads.

    A sink that is a patch is taken to be the patch with the highest norm at the block's input.

    Attributes:
        kind: "no-op" or "broadcast".
        how: "unread" keeps the attention of the sink and drops what would be read there, so that
            the rest of the head's output is scaled by 1 − a_sink; "mask" takes the attention away
            and renormalises.
        layers: "last", "all", or block numbers.
        concentration: Least concentration of a sink.
        small_value: Largest value ratio of a "no-op".
        low_rank: Least share of the first singular value of a "broadcast".
        sinks: The sinks that were found.

    Source:
        The two kinds: Fesser et al. (2026, arXiv 2606.08105); the thresholds are ours.
    """

    name: ClassVar[str] = "sinks"
    kind: Literal["no-op", "broadcast"] = "no-op"
    how: Literal["mask", "unread"] = "unread"
    layers: Layers = "all"
    concentration: float = 10.0
    small_value: float = 0.3
    low_rank: float = 0.8
    sinks: HeadSinks | None = None

    def measure(self, vit: ViTAdapter, read: ReadImages) -> Self:
        """Find the sinks of all heads."""
        layers = select_layers(vit, self.layers)
        sinks = self.find(vit, read)
        kinds = [sink.kind for sink in sinks.found if sink.layer in layers]
        if self.kind not in kinds:
            told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in _KINDS if kind in kinds)
            raise UsageError(
                f"no head of the chosen blocks of {vit.info.id} has a sink of kind {self.kind} "
                f"(of {len(kinds)} heads: {told}): choose the other kind or other layers, or lower "
                "concentration"
            )
        return replace(self, sinks=sinks)

    def find(self, vit: ViTAdapter, read: ReadImages) -> HeadSinks:
        """Find the sink of every head of every block and its kind, in one pass over the images."""
        recorder, count = _SinkRecorder(vit), 0
        for running, _ in iter_passes(vit, read, _IMAGES_AT_ONCE, recorder.attach):
            count += len(running.pixels)
        found = [
            sink._replace(kind=self._name_kind(sink))
            for layer, sums in sorted(recorder.by_layer.items())
            for sink in sums.list_heads(layer, running.layout)
        ]
        return HeadSinks(tuple(found), count)

    def _name_kind(self, sink: HeadSink) -> SinkKind:
        if sink.concentration < self.concentration:
            return "none"
        if sink.value_ratio <= self.small_value:
            return "no-op"
        broadcasts = sink.value_ratio >= 1 and sink.rank_one_share >= self.low_rank
        return "broadcast" if broadcasts else "unclear"

    def edit(self, editor: Editor) -> None:
        """Hide the sinks from the attention of their heads."""
        layers = select_layers(editor.vit, self.layers)
        sinks = self.require(self.sinks)
        for layer in layers:
            heads = [sink for sink in sinks.found if sink.layer == layer]
            if any(sink.kind == self.kind for sink in heads):
                editor.hide_tokens(layer, partial(self._find, heads), Hiding(self.how))

    def _find(
        self, heads: Sequence[HeadSink], tokens: Tokens, running: Running
    ) -> Bool[Tensor, "batch head token"]:
        shape = (len(tokens), len(heads), tokens.shape[1])
        places = torch.zeros(shape, dtype=torch.bool, device=tokens.device)
        norms = compute_norms(running.layout.take_patches(tokens))
        highest = norms.argmax(dim=1) + running.layout.find_patches(tokens.shape[1]).start
        for sink in heads:
            if sink.kind == self.kind:
                place = highest if sink.position is None else sink.position
                places[range(len(tokens)), sink.head, place] = True
        return places
