"""From a trace to maps: what every single token wrote on the row, to lay beside its raw attention.

Source: Lappe & Giese (NeurIPS 2025), eq. 3, token by token; Kobayashi et al. (EMNLP 2020) for norms
of value-weighted contributions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.layout import TokenLayout
from vitscope.ledger import Ledger
from vitscope.short_repr import ShortRepr
from vitscope.trace import ClsTrace


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TokenMaps(ShortRepr):
    """One number per token, for a batch of images, on the CPU.

    Attributes:
        layout: Which token is what, and the patch grid.
        attention: a_h[i], the raw attention row.
        contribution_norm: ‖c_i‖, the length of what a token wrote.
        share: ⟨c_i, r⟩ / ‖r‖², its signed share of the row; over all tokens, skip and bias the
            shares sum to 1.
        head_share: The same per head; sums to `share` over heads.
    """

    layout: TokenLayout
    attention: Float[Tensor, "batch head token"]
    contribution_norm: Float[Tensor, "batch token"]
    share: Float[Tensor, "batch token"]
    head_share: Float[Tensor, "batch head token"]

    def on_grid(self, values: Float[Tensor, "*batch token"]) -> Float[Tensor, "*batch row column"]:
        """Lay the patches of a map out as they lie in the image.

        Args:
            values: One of the maps, tokens last.

        Returns:
            Its patch tokens as (rows, columns).
        """
        patches = self.layout.groups["patches"]
        of_patches = values[..., patches.start : patches.stop]
        return of_patches.reshape(*of_patches.shape[:-1], *self.layout.grid)


def make_token_maps(
    trace: ClsTrace, ledger: Ledger, images: Sequence[int] | None = None
) -> TokenMaps:
    """Decompose a row into single tokens: c_i = γ ∘ W_O · concat_h(a_h[i] v_h[i]).

    Args:
        trace: The row as the model computed it.
        ledger: Its ledger, which tells r.
        images: Images of the batch to make maps of, in this order; all of them if None.

    Returns:
        The maps, in the ledger's precision.
    """
    chosen = slice(None) if images is None else list(images)
    dtype, device = ledger.contributions.dtype, trace.values.device
    tail = trace.tail
    weight = tail.weight.to(dtype)
    if tail.scale is not None:
        weight = weight * tail.scale.to(dtype).unsqueeze(1)
    attention = trace.logits[chosen].to(dtype).softmax(dim=-1)
    weighted = attention.unsqueeze(-1) * trace.values[chosen].to(dtype)
    written = weighted.transpose(1, 2).flatten(2) @ weight.mT
    r = ledger.residual_total[chosen].to(device)
    # What each head's values are worth along r, so that no token's vector is formed per head.
    batch, heads, _, head_dim = weighted.shape
    worth = (r @ weight).reshape(batch, heads, head_dim)
    head_share = torch.einsum("bhnd,bhd->bhn", weighted, worth) / (r * r).sum(dim=-1)[:, None, None]
    return TokenMaps(
        layout=trace.layout,
        attention=attention.cpu(),
        contribution_norm=written.norm(dim=-1).cpu(),
        share=head_share.sum(dim=1).cpu(),
        head_share=head_share.cpu(),
    )
