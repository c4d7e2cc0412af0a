"""What one block hands over for the row under study: a ledger is made of it and checked by it."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.layout import TokenLayout
from vitscope.short_repr import ShortRepr


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class AttentionTail(ShortRepr):
    """The affine map from concatenated heads to the residual stream: γ ∘ (W_O · + b_O).

    Attributes:
        weight: W_O.
        bias: b_O, or None where the projection has none.
        scale: Layer scale γ, or None where the model has none.
    """

    weight: Float[Tensor, "dim value_dim"]
    bias: Float[Tensor, " dim"] | None
    scale: Float[Tensor, " dim"] | None


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenStates:
    """What a block made of its special tokens, for a batch of images.

    Attributes:
        names: Names of the tokens, the order of every `chosen` axis: those that are no patches
            ("cls", "register_0", …), then "highest_patch", the patch of the highest norm in each
            image.
        norms: Norms of the chosen tokens at the block's input.
        mean_patch_norm: Mean norm of the patches there.
        states: The chosen tokens' `hidden` state at the block's input, `normed` by the block's
            first layer norm, and their `keys` and `values`, heads side by side.
    """

    names: tuple[str, ...]
    norms: Float[Tensor, "batch chosen"]
    mean_patch_norm: Float[Tensor, " batch"]
    states: dict[str, Float[Tensor, "batch chosen _"]]


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamTrace:
    """The residual stream at every depth, from the embeddings to the last block's output.

    Attributes:
        rows: The [CLS] row at each depth; None for a model without one. This and the next are NaN
            where the model was not run so far.
        patch_norms: Norm of each patch token at each depth.
    """

    rows: Float[Tensor, "batch depth dim"] | None
    patch_norms: Float[Tensor, "batch depth patch"]

    def completed(self, row: Float[Tensor, "batch dim"]) -> "StreamTrace":
        """The stream with another row at the last depth: that of a forward left before it, or not.

        Args:
            row: The last block's output on the [CLS] row, made of the ledger.

        Returns:
            The stream; what is known of the patches is as it was, and all of it for a model
            without a [CLS] row.
        """
        if self.rows is None:
            return self
        rows = torch.cat([self.rows[:, :-1], row.to(self.rows).unsqueeze(1)], dim=1)
        return replace(self, rows=rows)


@dataclass(frozen=True, eq=False, kw_only=True)
class ClsTrace:
    """One attention row of one block, as the model itself computed it, for a batch of images.

    Attributes:
        layer: Index of the block, from 0; the number of blocks for an attention-pooling head.
        layout: Which token is what.
        logits: Scaled query-key products of the row, before the softmax.
        values: Value vectors of all tokens. Large: do not keep it beyond the batch.
        skip: x[cls], the residual stream entering the block on the row; None for a pooling query.
        tail: The map from concatenated heads to the residual stream.
        branch: What the model's attention branch wrote on the row (t), layer scale included. This
            and the next two are None where the forward was left before the attention.
        residual: The model's residual stream after the attention branch on the row (r).
        output: The block's output on the row.
        tokens: States of the special tokens; None for a pooling query.
    """

    layer: int
    layout: TokenLayout
    logits: Float[Tensor, "batch head token"]
    values: Float[Tensor, "batch head token head_dim"]
    skip: Float[Tensor, "batch dim"] | None
    tail: AttentionTail
    branch: Float[Tensor, "batch dim"] | None = None
    residual: Float[Tensor, "batch dim"] | None = None
    output: Float[Tensor, "batch dim"] | None = None
    tokens: TokenStates | None = None

    @property
    def verified(self) -> bool:
        """Whether it holds the model's own rows, which a ledger is compared with."""
        return self.branch is not None
