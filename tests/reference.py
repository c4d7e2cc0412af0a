"""A plain float64 reference for adapters: full attention, token by token.

It shares no code with the package: attention is computed for every pair of tokens and each token's
contribution separately, from queries, keys and values that the caller computed from the model's
weights with its own code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Reference:
    """One block's row, computed the slow way."""

    attention: Tensor  # (batch, head, token)
    token_values: Tensor  # (batch, token, value_dim): a_h[i] v_h[i], heads concatenated
    token_contributions: Tensor  # (batch, token, dim): c_i
    bias: Tensor  # (dim,)
    skip: Tensor | None  # (batch, dim)

    @property
    def t(self) -> Tensor:
        return self.token_contributions.sum(dim=1) + self.bias

    @property
    def r(self) -> Tensor:
        return self.t if self.skip is None else self.skip + self.t


def make_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    out_weight: Tensor,
    out_bias: Tensor | None,
    layer_scale: Tensor | None,
    stream: Tensor | None,
    query: int,
    bias: Tensor | None = None,
) -> Reference:
    """q (batch, head, query token, head_dim); k, v (batch, head, token, head_dim); stream = x.

    `bias` (head, query token, token) is added to the scaled products.
    """
    q, k, v, out_weight = q.double(), k.double(), v.double(), out_weight.double()
    dim = out_weight.shape[0]
    gamma = torch.ones(dim).double() if layer_scale is None else layer_scale.double()
    out_bias = torch.zeros(dim).double() if out_bias is None else out_bias.double()
    full = torch.einsum("bhqd,bhkd->bhqk", q, k).mul(scale)
    full = full if bias is None else full + bias
    full = (full - full.amax(dim=-1, keepdim=True)).exp()
    full = full / full.sum(dim=-1, keepdim=True)
    attention = full[:, :, query]
    weighted = torch.einsum("bhn,bhnd->bnhd", attention, v).flatten(2)
    return Reference(
        attention=attention,
        token_values=weighted,
        token_contributions=torch.einsum("bnv,dv->bnd", weighted, out_weight) * gamma,
        bias=out_bias * gamma,
        skip=None if stream is None else stream.double()[:, query],
    )


def assert_ledger_matches(ledger, layout, reference: Reference, tolerance: float = 1e-10) -> None:
    """Masses, values, contributions, skip and bias agree, each relative to the size of r."""
    size = reference.r.norm(dim=-1).min()
    for i, (name, positions) in enumerate(layout.groups.items()):
        part = slice(positions.start, positions.stop)
        mass = reference.attention[..., part].sum(dim=-1)
        assert ledger.groups[i] == name
        assert (ledger.attention_mass[..., i].double() - mass).abs().max() <= tolerance
        own = (ledger.attention_mass[..., i : i + 1] * ledger.group_values[:, :, i]).flatten(1)
        values = reference.token_values[:, part].sum(dim=1)
        assert (own.double() - values).norm(dim=-1).max() <= tolerance * values.norm(dim=-1).max()
        expected = reference.token_contributions[:, part].sum(dim=1)
        difference = (ledger.contributions[:, i].double() - expected).norm(dim=-1).max()
        assert difference <= tolerance * size
    assert (ledger.bias.double() - reference.bias).norm() <= tolerance * size
    if reference.skip is None:
        assert ledger.skip is None
    else:
        assert (ledger.skip.double() - reference.skip).norm(dim=-1).max() <= tolerance * size
    for total, expected in (
        (ledger.attention_total, reference.t),
        (ledger.residual_total, reference.r),
    ):
        assert (total.double() - expected).norm(dim=-1).max() <= tolerance * size
