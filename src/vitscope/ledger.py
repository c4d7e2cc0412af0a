"""From a trace to a ledger that balances: who wrote what on the [CLS] row.

- The ledger is additive by construction: t = Σ_g c_g + bias and r = skip + Σ_g c_g + bias.
- The check is external: t and r are compared with the model's own tensors.
- Every function is pure and works on one batch; none needs the model or the images.

Source: Lappe & Giese (NeurIPS 2025), eq. 1 to 3 and 6.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vitscope.errors import ImbalanceError, NonFiniteError, UsageError
from vitscope.short_repr import ShortRepr
from vitscope.trace import AttentionTail, ClsTrace

_CPU = torch.device("cpu")

ScalarPath = tuple[str, ...]
"""Name of a quantity as a path: ("cosine", "residual", "skip")."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Ledger(ShortRepr):
    """The itemised row of one block for a batch of images, on the CPU.

    Attributes:
        layer: Index of the block.
        groups: Names of the token groups, in the order of every `group` axis.
        attention_mass: Σ_{i in g} a_h[i] per head; sums to 1 over groups.
        group_values: Σ_{i in g} a_h[i] v_h[i] divided by the group's mass: the values of the
            group's own softmax. Times `attention_mass` they are the paper's eq. 2.
        patch_attention: Mean over heads of the attention a_h[i] on each patch.
        contributions: c_g, what each group wrote on the row (eq. 3).
        skip: x[cls]; None for a pooling query.
        bias: γ ∘ b_O, the term that belongs to no token.
        tail: The map that turns values into `contributions`.
        balance_error: ‖t − t_model‖ / ‖t_model‖ per image; NaN if the forward stopped before t.
        residual_error: ‖r − r_model‖ / ‖r_model‖ per image; NaN likewise.
    """

    layer: int
    groups: tuple[str, ...]
    attention_mass: Float[Tensor, "batch head group"]
    group_values: Float[Tensor, "batch head group head_dim"]
    patch_attention: Float[Tensor, "batch patch"]
    contributions: Float[Tensor, "batch group dim"]
    skip: Float[Tensor, "batch dim"] | None
    bias: Float[Tensor, " dim"]
    tail: AttentionTail
    balance_error: Float[Tensor, " batch"]
    residual_error: Float[Tensor, " batch"]

    @cached_property
    def attention_total(self) -> Float[Tensor, "batch dim"]:
        """The attention branch t = Σ_g c_g + bias: what the attention module writes."""
        return self.contributions.sum(dim=1) + self.bias

    @cached_property
    def residual_total(self) -> Float[Tensor, "batch dim"]:
        """The residual stream r = skip + t (eq. 6); t itself for a pooling query."""
        return self.attention_total if self.skip is None else self.skip + self.attention_total

    @property
    def residual_terms(self) -> dict[str, Float[Tensor, "batch dim"]]:
        """The terms of r that depend on the image: each group, skip, and non_patch.

        `non_patch` = r − c_patches − bias; absent if patches are the only term.
        """
        terms = {name: self.contributions[:, i] for i, name in enumerate(self.groups)}
        if self.skip is not None:
            terms["skip"] = self.skip
        others = [term for name, term in terms.items() if name != "patches"]
        if others:
            terms["non_patch"] = torch.stack(others).sum(dim=0)
        return terms

    def group_contribution(self, group: str) -> Float[Tensor, "batch dim"]:
        """Contribution c_g of one group.

        Args:
            group: One of `groups`.

        Returns:
            c_g.

        Raises:
            UsageError: If the ledger has no such group.
        """
        if group not in self.groups:
            raise UsageError(f"group {group!r}: expected one of {', '.join(self.groups)}")
        return self.contributions[:, self.groups.index(group)]


def make_ledger(trace: ClsTrace) -> Ledger:
    """Decompose a row into its groups' contributions.

    Large tensors (keys, values, W_O) are multiplied on the model's device. The result, a few rows
    per image, is moved to the CPU, where float64 is always available.

    Per head and group g, with logits s and logsumexp L, the mass is exp(L_g − L) and the average
    under the group's own softmax is softmax(s_g) · v_g. Both stay finite however small the mass.

    Args:
        trace: The row as the model computed it.

    Returns:
        The ledger, in float64 if the model runs in float64, otherwise in float32.

    Raises:
        NonFiniteError: If the model's row contains NaN or infinity.
    """
    dtype = torch.promote_types(trace.logits.dtype, torch.float32)
    _check_finite(trace)
    logits = trace.logits.to(dtype)
    total = logits.logsumexp(dim=-1)
    masses, means = [], []
    for positions in trace.layout.groups.values():
        part = slice(positions.start, positions.stop)
        masses.append((logits[..., part].logsumexp(dim=-1) - total).exp())
        weights = logits[..., part].softmax(dim=-1)
        values = trace.values[:, :, part].to(dtype)
        means.append((weights.unsqueeze(-2) @ values).squeeze(-2))
    mass, group_values = torch.stack(masses, dim=-1), torch.stack(means, dim=-2)
    patches = trace.layout.groups["patches"]
    on_patches = (logits[..., patches.start : patches.stop] - total.unsqueeze(-1)).exp()
    contributions = project_values(trace.tail, mass.unsqueeze(-1) * group_values).cpu()
    bias = _tail_bias(trace.tail, dtype).cpu()
    skip = None if trace.skip is None else trace.skip.to(dtype).cpu()
    attention_total = contributions.sum(dim=1) + bias
    residual_total = attention_total if skip is None else skip + attention_total
    return Ledger(
        layer=trace.layer,
        groups=tuple(trace.layout.groups),
        attention_mass=mass.cpu(),
        group_values=group_values.cpu(),
        patch_attention=on_patches.mean(dim=1).cpu(),
        contributions=contributions,
        skip=skip,
        bias=bias,
        tail=trace.tail,
        balance_error=relative_error(attention_total, trace.branch),
        residual_error=relative_error(residual_total, trace.residual),
    )


def project_values(
    tail: AttentionTail, values: Float[Tensor, "batch head group head_dim"]
) -> Float[Tensor, "batch group dim"]:
    """γ ∘ W_O · concat_h(values_h) per group, the linear part of the attention tail."""
    flat = concat_heads(values)
    projected = flat @ tail.weight.to(values).mT
    return projected if tail.scale is None else projected * tail.scale.to(values)


def concat_heads(
    values: Float[Tensor, "batch head group head_dim"],
) -> Float[Tensor, "batch group value_dim"]:
    """Concatenate the heads of each group."""
    return values.transpose(1, 2).flatten(2)


def relative_error(
    found: Float[Tensor, "batch dim"], expected: Float[Tensor, "batch dim"] | None
) -> Float[Tensor, " batch"]:
    """‖found − expected‖ / ‖expected‖ per image, in float64; NaN if nothing is expected."""
    if expected is None:
        return torch.full(found.shape[:1], math.nan, dtype=torch.float64)
    own = expected.to(found.device).double()
    difference = (found.double() - own).norm(dim=-1)
    return torch.where(difference == 0, difference, difference / own.norm(dim=-1))


def balance_tolerance(dtype: torch.dtype, device: torch.device = _CPU) -> float:
    """Largest balance error a run accepts (docs/method.md), by precision; GPUs may use TF32."""
    if dtype == torch.float64:
        return 1e-10
    reduced = torch.backends.cuda.matmul.fp32_precision not in {"none", "ieee"}
    exact = dtype == torch.float32 and not (reduced and device.type == "cuda")
    return 1e-4 if exact else 3e-2


def check_balance(ledger: Ledger, tolerance: float) -> None:
    """Raise an `ImbalanceError` if a ledger does not add up to the model's own tensors."""
    for name, error, cause in (
        (
            "the attention branch",
            ledger.balance_error,
            "the adapter's account of this attention is incomplete (a mask, gate, inner norm or "
            "scale it does not model), or the model was altered after it was wrapped (a hook, a "
            "replaced part)",
        ),
        (
            "the residual stream",
            ledger.residual_error,
            "something acts between the attention branch and the residual sum (a hook, a post-norm "
            "or a parallel branch)",
        ),
    ):
        worst = float(error.max())
        if not worst <= tolerance:
            raise ImbalanceError(
                f"the ledger of layer {ledger.layer} does not balance: {name} differs from the "
                f"model's own by {worst:.2e} (tolerance {tolerance:.0e}); likely cause: {cause}"
            )


def merge_groups(ledger: Ledger, part: str, into: str) -> Ledger:
    """Merge one group into another; values are averages weighted by mass, as under one softmax."""
    i, j = ledger.groups.index(into), ledger.groups.index(part)
    kept = [k for k in range(len(ledger.groups)) if k != j]
    mass, values = ledger.attention_mass.clone(), ledger.group_values.clone()
    contributions = ledger.contributions.clone()
    weighted = (mass.unsqueeze(-1) * values)[:, :, [i, j]].sum(dim=2)
    mass[..., i] += mass[..., j]
    merged = weighted / mass[..., i].unsqueeze(-1)
    # If both masses underflow to 0, the average is undefined: keep the old values.
    values[:, :, i] = torch.where(mass[..., i].unsqueeze(-1) > 0, merged, values[:, :, i])
    contributions[:, i] += contributions[:, j]
    return replace(
        ledger,
        groups=tuple(ledger.groups[k] for k in kept),
        attention_mass=mass[..., kept],
        group_values=values[:, :, kept],
        contributions=contributions[:, kept],
    )


def compute_scalars(
    ledger: Ledger, restricted: Mapping[str, Tensor] | None = None
) -> dict[ScalarPath, Float[Tensor, " batch"]]:
    """Compute every per-image number of the ledger (docs/method.md), in float64; NaN if undefined.

    Paths: ("attention_mass", group), ("patch_share",), ("largest_patch_attention",),
    ("attention_entropy",), ("contribution_norm", term), ("cosine", "attention" or "residual",
    term), ("restricted_cosine", "attention", group), ("share", term) and ("balance_error",).
    `restricted` has each group's `attention` readout; c_g + bias if None.

    Returns:
        One value per image under each path.
    """
    mass = ledger.attention_mass.double().mean(dim=1)
    masses = {name: mass[:, i] for i, name in enumerate(ledger.groups)}
    groups = {name: ledger.group_contribution(name).double() for name in ledger.groups}
    terms = {name: term.double() for name, term in ledger.residual_terms.items()}
    bias = ledger.bias.double().expand(mass.shape[0], -1)
    t, r = ledger.attention_total.double(), ledger.residual_total.double()
    scalars: dict[ScalarPath, Tensor] = {("attention_mass", n): m for n, m in masses.items()}
    scalars["patch_share",] = masses["patches"] / (
        masses["patches"] + masses.get("registers", torch.zeros_like(masses["patches"]))
    )
    on_patches = ledger.patch_attention.double()
    scalars["largest_patch_attention",] = on_patches.amax(dim=-1)
    part = on_patches / on_patches.sum(dim=-1, keepdim=True)
    entropy = torch.special.entr(part).sum(dim=-1)
    scalars["attention_entropy",] = entropy / math.log(part.shape[-1])
    itemised = {name: term for name, term in terms.items() if name != "non_patch"} | {"bias": bias}
    totals = {"attention_total": t, "residual_total": r}
    for name, vector in chain(itemised.items(), totals.items()):
        scalars["contribution_norm", name] = vector.norm(dim=-1)
    kept = restricted or {name: vector + bias for name, vector in groups.items()}
    scalars |= {("cosine", "attention", n): cosine(vector, t) for n, vector in groups.items()}
    scalars |= {("cosine", "residual", n): cosine(vector, r) for n, vector in terms.items()}
    scalars |= {("restricted_cosine", "attention", n): cosine(kept[n].double(), t) for n in groups}
    for name, vector in itemised.items():
        scalars["share", name] = (vector * r).sum(dim=-1) / (r * r).sum(dim=-1)
    scalars["balance_error",] = ledger.balance_error
    return scalars


def cosine(a: Float[Tensor, "batch dim"], b: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
    """Cosine similarity per image."""
    found: Tensor = (a * b).sum(dim=-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    return found


def _tail_bias(tail: AttentionTail, dtype: torch.dtype) -> Float[Tensor, " dim"]:
    if tail.bias is None:
        return tail.weight.new_zeros(tail.weight.shape[0], dtype=dtype)
    bias = tail.bias.detach().to(dtype)
    return bias if tail.scale is None else bias * tail.scale.to(dtype)


def _check_finite(trace: ClsTrace) -> None:
    rows = [trace.logits.flatten(1), trace.branch, trace.residual, trace.output]
    finite = [row.isfinite().all(dim=-1) for row in rows if row is not None]
    check_rows_finite(torch.stack(finite).all(dim=0), "", trace.layer)


def check_rows_finite(finite: Bool[Tensor, " batch"], what: str, layer: int) -> None:
    """Raise a `NonFiniteError` that names the first image whose row is not finite."""
    if not bool(finite.all()):
        image = int((~finite).nonzero()[0, 0])
        raise NonFiniteError(
            f"NaN or infinite activations {what}in layer {layer} for image {image} of the batch",
            image=image,
        )
