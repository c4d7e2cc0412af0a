"""Tensors of one block on the analysed row, from which a ledger is made and verified."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.layout import TokenLayout
from vitscope.short_repr import ShortRepr


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class AttentionTail(ShortRepr):
    """The affine map from concatenated heads to the residual stream: γ ∘ (W_O · + b_O)."""

    weight: Float[Tensor, "dim value_dim"]  # W_O
    bias: Float[Tensor, " dim"] | None  # b_O; None if the projection has no bias
    scale: Float[Tensor, " dim"] | None  # layer scale γ; None if the block has none


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenStates:
    """States of a block's special tokens, for a batch of images."""

    # names of the tokens, in the order of every `chosen` axis: all tokens but the patches ("cls",
    # "register_0", …), then "highest_patch", the patch with the highest norm in each image
    names: tuple[str, ...]
    norms: Float[Tensor, "batch chosen"]  # norms of the chosen tokens at the block's input
    mean_patch_norm: Float[Tensor, " batch"]  # mean norm of the patches at the block's input
    # `hidden` states of the chosen tokens at the block's input, `normed` after the block's first
    # layer norm, and their `keys` and `values` with heads concatenated
    states: dict[str, Float[Tensor, "batch chosen _"]]


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamTrace:
    """The residual stream at every depth, from the embeddings to the last block's output."""

    # the [CLS] row at each depth; None for a model without one. Rows and norms are NaN at depths
    # the forward did not reach
    rows: Float[Tensor, "batch depth dim"] | None
    patch_norms: Float[Tensor, "batch depth patch"]  # norm of each patch token at each depth

    def completed(self, row: Float[Tensor, "batch dim"]) -> "StreamTrace":
        """The stream with a row of the ledger at the last depth, whether or not it was reached."""
        if self.rows is None:
            return self
        rows = torch.cat([self.rows[:, :-1], row.to(self.rows).unsqueeze(1)], dim=1)
        return replace(self, rows=rows)


@dataclass(frozen=True, eq=False, kw_only=True)
class ClsTrace:
    """One attention row of one block, as computed by the model, for a batch of images."""

    layer: int  # index of the block, from 0; the number of blocks for an attention-pooling head
    layout: TokenLayout  # which token is what
    # scaled query-key products of the row, before the softmax
    logits: Float[Tensor, "batch head token"]
    # value vectors of all tokens. Large: do not keep them beyond the batch
    values: Float[Tensor, "batch head token head_dim"]
    # x[cls], the residual stream entering the block on the row; None for a pooling query
    skip: Float[Tensor, "batch dim"] | None
    tail: AttentionTail  # the map from concatenated heads to the residual stream
    # Output of the attention branch on the row (t), layer scale included. `branch`, `residual` and
    # `output` are None if the forward stopped before the attention
    branch: Float[Tensor, "batch dim"] | None = None
    # the residual stream after the attention branch on the row (r)
    residual: Float[Tensor, "batch dim"] | None = None
    output: Float[Tensor, "batch dim"] | None = None  # the block's output on the row
    tokens: TokenStates | None = None  # states of the special tokens; None for a pooling query

    @property
    def verified(self) -> bool:
        """Whether the trace contains the model's own rows, against which a ledger is verified."""
        return self.branch is not None
