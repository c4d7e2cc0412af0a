"""Secant multipliers: backward rules under which a difference of outputs is passed on exactly.

An operation y = f(x) is run on an image (x) and on a reference (x'). A rule turns the multiplier m
of y into multipliers of the inputs such that

    Σ_i ⟨m_i, x_i − x_i'⟩ = ⟨m, y − y'⟩

holds exactly, whatever f is. Linear operations need no rule: their transpose is the model's own
backward pass. Every function takes m and, for each input, its value at the image and at the
reference. A reference is a single item that is broadcast over the batch, or one item per image.

Where a difference is too small to divide by, the derivative at the midpoint takes the place of the
quotient. The threshold is the cube root of the precision, where the rounding error of the quotient
and the error of the derivative are equal.

Source: DeepLIFT (Shrikumar et al., ICML 2017), in closed form for the operations of a ViT.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def pull_elementwise(
    m: Tensor, function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """Y = φ(x) element by element: m (φ(x) − φ(x')) / (x − x')."""
    return m * _find_slope(function, x, y)


def _find_slope(function: Callable[[Tensor], Tensor], x: Tensor, other: Tensor) -> Tensor:
    difference = x - other
    small = difference.abs() < torch.finfo(x.dtype).eps ** (1 / 3)
    with torch.enable_grad():
        middle = ((x + other) / 2).detach().requires_grad_()
        (derivative,) = torch.autograd.grad(function(middle).sum(), middle)
    quotient = (function(x) - function(other)) / torch.where(small, 1, difference)
    return torch.where(small, derivative, quotient)


def pull_layer_norm(
    m: Tensor, x: Tensor, other: Tensor, weight: Tensor | None, eps: float
) -> Tensor:
    """Layer norm over the last axis, its bias aside: y = w ∘ c ρ with c = x − mean x.

    With ρ = (‖c‖²/d + ε)^−½, a = w ∘ m and σ = c + c':
    m_c = ½ (ρ + ρ') a − ½ ⟨a, σ⟩ (ρ ρ')² / (ρ + ρ') σ / d, and m_x = m_c − mean m_c.
    """
    c, c_other = (t - t.mean(dim=-1, keepdim=True) for t in (x, other))
    pulled = pull_rms_norm(m, c, c_other, weight, eps)
    return pulled - pulled.mean(dim=-1, keepdim=True)


def pull_rms_norm(m: Tensor, x: Tensor, other: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMS norm over the last axis: as `pull_layer_norm`, without centring."""
    scaled = m if weight is None else m * weight
    rho, rho_other = ((t.square().mean(dim=-1, keepdim=True) + eps).rsqrt() for t in (x, other))
    return _pull_scaled(scaled, x + other, rho, rho_other, x.shape[-1])


def pull_normalize(m: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """Unit length over the last axis: y = x / ‖x‖."""
    rho, rho_other = (1 / t.norm(dim=-1, keepdim=True) for t in (x, other))
    return _pull_scaled(m, x + other, rho, rho_other, 1)


def _pull_scaled(a: Tensor, total: Tensor, rho: Tensor, rho_other: Tensor, size: int) -> Tensor:
    # y = x ρ(‖x‖²/size), where ρ is an inverse square root.
    along = (a * total).sum(dim=-1, keepdim=True)
    bend = (rho * rho_other).square() / (rho + rho_other) / size
    return ((rho + rho_other) * a - along * bend * total) / 2


def pull_product(m: Tensor, a: Pair, b: Pair) -> tuple[Tensor, Tensor]:
    """Y = a ∘ b: each factor takes half of the difference (Shapley's split of two factors)."""
    return m * (b[0] + b[1]) / 2, m * (a[0] + a[1]) / 2


def pull_matmul(m: Tensor, a: Pair, b: Pair) -> tuple[Tensor, Tensor]:
    """Y = A B: m_A = ½ m (B + B')ᵀ and m_B = ½ (A + A')ᵀ m."""
    return m @ (b[0] + b[1]).mT / 2, (a[0] + a[1]).mT @ m / 2


def pull_softmax(
    m: Float[Tensor, "*batch key"],
    log_x: Float[Tensor, "*batch key"],
    log_other: Float[Tensor, "*batch key"],
) -> Float[Tensor, "*batch key"]:
    """A = softmax(l) over the last axis, from ln A at the image and at the reference.

    With the logarithmic mean Λ = (A − A') / (ln A − ln A'):
    m_l = Λ ∘ (m − Σ_k Λ_k m_k / Σ_k Λ_k), exact because Σ_k (A_k − A_k') = 0, and unchanged when a
    constant is added to all logits.
    """
    mean = _find_slope(torch.exp, log_x, log_other)
    # A key that is masked at both has ln A = −∞ and no weight.
    mean = torch.where(log_x.isneginf() | log_other.isneginf(), 0, mean)
    centre = (mean * m).sum(dim=-1, keepdim=True) / mean.sum(dim=-1, keepdim=True)
    return mean * (m - centre)
