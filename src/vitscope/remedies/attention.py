"""Tokens that the attention of a block does not see, or sees without reading."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from vitscope.maps.attention_calls import BlockAttentions
from vitscope.maps.functions import as_bias
from vitscope.models.blocks import Heads

_UNSEEN = -1e30
"""Added to a logit: a weight of exactly 0, and no NaN where all are unseen."""


@dataclass(frozen=True)
class Hiding:
    """How tokens are hidden."""

    # "mask" takes their attention away and renormalises, "unread" keeps it and drops what it would
    # read
    how: Literal["mask", "unread"]
    # whose attention: that of the "cls" row, or of "all" tokens
    rows: Literal["cls", "all"] = "all"


class HiddenTokens(BlockAttentions):
    """The tokens that are hidden in each block while a model runs."""

    advice: ClassVar[str] = (
        "vitscope cannot hide tokens from the attention of this model; call set_attn_implementation"
        "('sdpa') on a model of transformers, or choose another edit"
    )

    def __init__(self) -> None:
        """Start with no tokens."""
        super().__init__()
        self.by_layer: dict[int, Hiding] = {}
        self._places: dict[int, Bool[Tensor, "batch heads key"]] = {}
        # Of the block that is running:
        self._hiding: Hiding
        self._hidden: Bool[Tensor, "batch heads key"]
        self._query: int | None = None

    def applied(self) -> AbstractContextManager[object]:
        """Hide them in the forward that runs in the context."""
        self.layer = None
        return self if self.by_layer else nullcontext()

    def place(self, layer: int, places: Bool[Tensor, "batch *head key"], query: int | None) -> None:
        """Start a block; places are those of every head, unless they have an axis for heads."""
        self.enter(layer)
        self._query, self._hiding = query, self.by_layer[layer]
        self._hidden = places if places.ndim == 3 else places.unsqueeze(1)
        self._places[layer] = self._hidden

    def fused(self, call: Callable[..., Tensor], *given: Any, **named: Any) -> Tensor:
        """Run fused attention without what is hidden."""
        query, key, value, *others = given
        mask = others.pop(0) if others else named.pop("attn_mask", None)
        self.num_seen += 1
        if self._hiding.how == "mask":
            added = self._make_bias(self._hidden, query)
            mask = added if mask is None else added + as_bias(mask, query)
            return call(query, key, value, mask, *others, **named)
        unread = value.masked_fill(self._hidden[..., None], 0)
        if self._hiding.rows == "all":
            return call(query, key, unread, mask, *others, **named)
        read = call(query, key, value, mask, *others, **named).clone()
        row = slice(self._query, (self._query or 0) + 1)
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., row, :]
        read[..., row, :] = call(query[..., row, :], key, unread, mask, *others, **named)
        return read

    def edit_logits(self, logits: Tensor) -> Tensor:
        """Logits of an attention that the model's code computes step by step."""
        if self._hiding.how != "mask":
            return logits
        self.num_seen += 1
        return logits + self._make_bias(self._hidden, logits)

    def read(self, call: Callable[..., Tensor], weights: Tensor, values: Tensor) -> Tensor:
        """Multiply the weights of such an attention by the values."""
        if self._hiding.how == "unread":
            self.num_seen += 1
            if self._hiding.rows == "all":
                weights = weights.masked_fill(self._hidden.unsqueeze(2), 0)
            else:
                row = weights[:, :, self._query].masked_fill(self._hidden, 0)
                weights = weights.clone()
                weights[:, :, self._query] = row
        return call(weights, values)

    def edit_heads(self, layer: int, heads: Heads) -> Heads:
        """The account of the [CLS] row: the same edit of its logits or values."""
        hidden = self._places[layer]
        if self.by_layer[layer].how == "unread":
            return heads._replace(values=heads.values.masked_fill(hidden[..., None], 0))
        bias = _make_row(hidden, heads.keys)
        return heads._replace(bias=bias if heads.bias is None else heads.bias + bias)

    def _make_bias(self, hidden: Bool[Tensor, "batch heads key"], like: Tensor) -> Tensor:
        bias = _make_row(hidden, like)[..., None, :]
        if self._hiding.rows == "all":
            return bias
        of_rows = bias.expand(-1, -1, like.shape[-2], -1).clone()
        others = torch.arange(like.shape[-2], device=like.device) != self._query
        of_rows[:, :, others] = 0
        return of_rows


def _make_row(hidden: Bool[Tensor, "batch heads key"], like: Tensor) -> Tensor:
    # float16 ends before; its least number does as well.
    unseen = max(_UNSEEN, torch.finfo(like.dtype).min)
    zeros = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return zeros.masked_fill(hidden, unseen)
