"""Tokens that the attention of a block does not see, or sees without reading."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vitscope.errors import UnsupportedModelError
from vitscope.maps.functions import MATMULS, SOFTMAXES, split_packed
from vitscope.models.blocks import Heads

_UNSEEN = -1e30
"""Added to a logit: a weight of exactly 0 in any precision, and no NaN where all are unseen."""


@dataclass(frozen=True)
class Hiding:
    """How tokens are hidden.

    Attributes:
        how: "mask" takes their attention away and renormalises, "unread" keeps it and drops what
            it would read.
        rows: Whose attention: that of the "cls" row, or of "all" tokens.
    """

    how: Literal["mask", "unread"]
    rows: Literal["cls", "all"] = "all"


class HiddenTokens:
    """The tokens that are hidden in each block while a model runs."""

    def __init__(self) -> None:
        """Start with no tokens."""
        self.by_layer: dict[int, Hiding] = {}
        self._places: dict[int, Bool[Tensor, "batch key"]] = {}
        self._layer: int | None = None
        self._query: int | None = None
        self._num_edited = 0

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Hide them in the forward that runs in the context."""
        self._layer = None
        if not self.by_layer:
            yield
            return
        with _Mode(self):
            yield

    def enter(self, layer: int, places: Bool[Tensor, "batch key"], query: int | None) -> None:
        """Start a block."""
        self._layer, self._query, self._num_edited = layer, query, 0
        self._places[layer] = places

    def leave(self) -> None:
        """End a block, whose attention must have been edited."""
        layer, self._layer = self._layer, None
        if self._num_edited != 1:
            raise UnsupportedModelError(
                f"{self._num_edited} attentions were found in block {layer}, expected 1: vitscope "
                "cannot hide tokens from the attention of this model; call set_attn_implementation"
                "('sdpa') on a model of transformers, or choose another edit"
            )

    @property
    def is_inside(self) -> bool:
        """Whether a block with hidden tokens is running."""
        return self._layer is not None

    @property
    def _hiding(self) -> Hiding:
        assert self._layer is not None
        return self.by_layer[self._layer]

    def edit_fused(self, call: Callable[..., Tensor], *given: Any, **named: Any) -> Tensor:
        """Run fused attention without what is hidden."""
        query, key, value, *others = given
        assert self._layer is not None
        hidden = self._places[self._layer][:, None]  # a head's axis
        self._num_edited += 1
        if self._hiding.how == "mask":
            mask = others.pop(0) if others else named.pop("attn_mask", None)
            added = self._make_bias(hidden, query)
            if mask is not None:
                added = added + _as_bias(mask, query)
            return call(query, key, value, added, *others, **named)
        if self._hiding.rows == "all":
            return call(query, key, value.masked_fill(hidden[..., None], 0), *others, **named)
        read: Tensor = call(query, key, value, *others, **named)
        row = slice(self._query, (self._query or 0) + 1)
        unread = value.masked_fill(hidden[..., None], 0)
        mask = others.pop(0) if others else named.pop("attn_mask", None)
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., row, :]
        of_row = call(query[..., row, :], key, unread, mask, *others, **named)
        read = read.clone()
        read[..., row, :] = of_row
        return read

    def edit_logits(self, logits: Tensor) -> Tensor:
        """Logits of an attention that the model's code computes step by step."""
        if self._hiding.how != "mask":
            return logits
        assert self._layer is not None
        self._num_edited += 1
        return logits + self._make_bias(self._places[self._layer][:, None], logits)

    def edit_weights(self, weights: Tensor) -> Tensor:
        """Weights of such an attention, as values are multiplied by them."""
        if self._hiding.how != "unread":
            return weights
        assert self._layer is not None
        self._num_edited += 1
        hidden = self._places[self._layer][:, None, None]
        if self._hiding.rows == "all":
            return weights.masked_fill(hidden, 0)
        read = weights.clone()
        read[:, :, self._query] = weights[:, :, self._query].masked_fill(hidden[:, :, 0], 0)
        return read

    def edit_heads(self, layer: int, heads: Heads) -> Heads:
        """The account of the [CLS] row: the same edit of its logits or values."""
        hidden = self._places[layer][:, None]
        if self.by_layer[layer].how == "unread":
            return heads._replace(values=heads.values.masked_fill(hidden[..., None], 0))
        bias = torch.zeros(hidden.shape, dtype=heads.keys.dtype, device=heads.keys.device)
        bias = bias.masked_fill(hidden, _UNSEEN)
        return heads._replace(bias=bias if heads.bias is None else heads.bias + bias)

    def _make_bias(self, hidden: Bool[Tensor, "batch 1 key"], like: Tensor) -> Tensor:
        bias = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        bias = bias.masked_fill(hidden, _UNSEEN)[..., None, :]
        if self._hiding.rows == "all":
            return bias
        of_rows = bias.expand(-1, -1, like.shape[-2], -1).clone()
        others = torch.arange(like.shape[-2], device=like.device) != self._query
        of_rows[:, :, others] = 0
        return of_rows


def _as_bias(mask: Tensor, query: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)


class _Mode(TorchFunctionMode):
    """Edits the attention of the block that is running, whatever library it is of."""

    def __init__(self, hidden: HiddenTokens) -> None:
        super().__init__()
        self._hidden = hidden

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named, hidden = dict(kwargs or {}), self._hidden
        if not hidden.is_inside:
            return function(*args, **named)
        if function is functional.scaled_dot_product_attention:
            return hidden.edit_fused(function, *args, **named)
        if function is functional.multi_head_attention_forward:
            return _run_packed(hidden, *args, **named)
        if function in SOFTMAXES and _is_attention(args, named):
            logits, *others = args or (named.pop("input"),)
            weights = function(hidden.edit_logits(logits), *others, **named)
            weights._is_attention = True
            return weights
        if function in MATMULS and getattr(args[0] if args else None, "_is_attention", False):
            return function(hidden.edit_weights(args[0]), *args[1:], **named)
        return function(*args, **named)


def _is_attention(args: tuple[Any, ...], named: dict[str, Any]) -> bool:
    logits = args[0] if args else named["input"]
    return bool(logits.ndim == 4)


def _run_packed(
    hidden: HiddenTokens,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    attn_mask: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    heads, join = split_packed(query, key, value, *args)
    attend = functional.scaled_dot_product_attention
    return join(hidden.edit_fused(attend, *heads, attn_mask=attn_mask)), None
