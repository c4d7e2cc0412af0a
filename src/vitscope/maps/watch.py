"""The model's own run on images, watched for all that maps of attention weights are made of."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitscope.layout import TokenLayout
from vitscope.maps.attention_calls import AttentionCalls
from vitscope.maps.functions import read_fused
from vitscope.maps.passes import Pass, RunningPass, run_blocks
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.blocks import BlockRecorder
from vitscope.models.parts import project_packed
from vitscope.models.stream import compute_norms, take_input
from vitscope.trace import ClsTrace

Weights = Float[Tensor, "batch query key"]


class SeenAttention(NamedTuple):
    """One attention of the model's own run."""

    block: int | None  # index of its block; None outside the blocks
    weigh: Callable[[], Weights]  # computes its weights, the mean over heads


@dataclass(frozen=True, eq=False)
class OwnPass(Pass):
    """The model's run on the images themselves."""

    row: ClsTrace | None  # the analysed row; None if no row makes the global feature
    # norms of every block's input, if the global feature is [CLS]
    skip_norms: Sequence[Float[Tensor, "batch token"]]
    # norms of what every block's attention adds to it
    branch_norms: Sequence[Float[Tensor, "batch token"]]
    # in order, if they were asked for. Kept are queries and keys; or, where the model's code
    # computes the weights itself, their mean over heads
    attentions: Sequence[SeenAttention]


def watch_blocks(
    vit: ViTAdapter, pixels: Pixels, layer: int | None = None, *, keeps_attentions: bool
) -> OwnPass:
    """Run the model on images, unchanged.

    `layer` is that of the analysed row; the last one if None.
    """
    layout = vit.make_layout(pixels.shape[-2], pixels.shape[-1])
    analysed = vit.select_layer(layer) if vit.blocks else None
    watch = _Watch(vit, layout, analysed, keeps_attentions)
    run = run_blocks(vit, pixels, watch=watch.attach)
    return OwnPass(
        **vars(run),
        row=watch.row,
        skip_norms=watch.skip_norms,
        branch_norms=watch.branch_norms,
        attentions=watch.attentions,
    )


@dataclass(eq=False)
class _Watch(AttentionCalls):
    """Keeps what is handed to attentions, norms and the analysed row, and changes nothing."""

    vit: ViTAdapter
    layout: TokenLayout
    layer: int | None  # of the analysed row; None if there is none
    keeps_attentions: bool
    row: ClsTrace | None = None
    skip_norms: list[Tensor] = field(default_factory=list)
    branch_norms: list[Tensor] = field(default_factory=list)
    attentions: list[SeenAttention] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._running: RunningPass

    def attach(self, running: RunningPass) -> None:
        """Watch a forward."""
        self._running, vit = running, self.vit
        for parts in vit.blocks.values():
            if parts.mlp_norm is not None:
                running.before(parts.mlp_norm, self._keep_branch)
        for packed in _find_packed(vit.module.modules()) if self.keeps_attentions else ():
            running.before(packed, self._keep_packed)
        if self.layer is not None:
            keep = partial(setattr, self, "row")
            BlockRecorder(vit, self.layer, self.layout, keep).attach(running)
        # torch runs packed attention by another kernel while a mode is on.
        packed_blocks = any(_find_packed(block.modules()) for block in vit.encoder_blocks)
        if self.keeps_attentions and not packed_blocks:
            running.enter_context(self)

    def _keep_branch(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = self._running.streams[-1]
        self.skip_norms.append(compute_norms(stream))
        self.branch_norms.append(compute_norms(take_input(args, kwargs) - stream))

    def _keep_packed(self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # One with a mask, or with the batch in the second dimension, goes unseen.
        masks = (kwargs.get("attn_mask"), kwargs.get("key_padding_mask"))
        if attention.batch_first and masks == (None, None):
            given = dict(zip(("query", "key"), args, strict=False)) | kwargs
            self._keep(partial(_weigh_packed, attention, given["query"], given["key"]))

    def fused(self, call: Callable[..., Tensor], *given: Any, **named: Any) -> Tensor:
        self._keep(_weigh_later(*given, **named))
        return call(*given, **named)

    def packed(self, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        return call(*given, **named)  # kept by `_keep_packed`

    def read(self, call: Callable[..., Tensor], weights: Tensor, values: Tensor) -> Tensor:
        mean = weights.mean(dim=1)
        self._keep(lambda: mean)
        return call(weights, values)

    def _keep(self, weigh: Callable[[], Weights]) -> None:
        self.attentions.append(SeenAttention(self._running.block, weigh))


def _find_packed(modules: Iterable[nn.Module]) -> list[nn.Module]:
    return [module for module in modules if isinstance(module, nn.MultiheadAttention)]


def _weigh_later(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,  # noqa: ARG001 - weights do not depend on values
    *args: Any,
    **kwargs: Any,
) -> Callable[[], Weights]:
    def weigh() -> Weights:
        return read_fused(query, key, key, *args, **kwargs).weigh().mean(dim=1)

    return weigh


@torch.no_grad()
def _weigh_packed(attention: nn.MultiheadAttention, query: Tensor, key: Tensor) -> Weights:
    return _weigh_later(*project_packed(attention, query, key))()
