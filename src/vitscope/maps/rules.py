"""Backward rules of the nonlinear operations of a ViT: secant and frozen.

A rule takes the multiplier m of an operation's output to multipliers of its inputs. Each input
comes as a pair: its value at the image and at a reference, which is one item broadcast over the
batch or one per image. Linear operations need no rule: theirs is the transpose, as in the model's
own backward pass.

**Secant** rules pass on a difference exactly: Σ_i ⟨m_i, x_i − x_i'⟩ = ⟨m, y − y'⟩ for every
operation y, where x' and y' are the values at the reference. Source: DeepLIFT (Shrikumar et al.,
ICML 2017), here in closed form for norms, attention and gates.

Compared with the image itself, secant rules are the true derivatives.

**Frozen** rules ignore the reference: attention weights, the scale of norms and the slopes φ(z) / z
of activations keep their values at the image, so that the network is affine. Source: DecompX
(Modarressi et al., ACL 2023); LibraGrad (Mehri et al., CVPR 2025).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Function = Callable[[Tensor], Tensor]


class Pair(NamedTuple):
    """A tensor at the image and at the reference."""

    image: Tensor
    reference: Tensor


def apply_to_both(function: Callable[..., Tensor], *pairs: Pair) -> Pair:
    """A function at the image and at the reference; computed once if that is the image itself."""
    image = function(*(pair.image for pair in pairs))
    if all(pair.image is pair.reference for pair in pairs):
        return Pair(image, image)
    return Pair(image, function(*(pair.reference for pair in pairs)))


@dataclass(frozen=True)
class Rules:
    """One rule for each kind of nonlinear operation."""

    elementwise: Callable[[Tensor, Function, Pair], Tensor]  # y = φ(x)
    # y = x (‖x‖² / d + ε)^−½ over the last axis; d and ε are the last two arguments
    rms_norm: Callable[[Tensor, Pair, int, float], Tensor]
    product: Callable[[Tensor, Pair, Pair], tuple[Tensor, Tensor]]  # y = a ∘ b, of one shape
    # y = x ∘ ρ, with ρ the scale of a norm that is computed step by step
    scale: Callable[[Tensor, Pair, Pair], tuple[Tensor, Tensor]]
    # Y = A B, a product of two tensors that both depend on the tokens
    matmul: Callable[[Tensor, Pair, Pair], tuple[Tensor, Tensor]]
    # Y = A V, the values read with attention weights A
    read: Callable[[Tensor, Pair, Pair], tuple[Tensor, Tensor]]
    softmax: Callable[[Tensor, Pair], Tensor]  # A = softmax(l) over the last axis, from ln A

    def layer_norm(
        self, m: Tensor, x: Pair, weight: Tensor | None, eps: float
    ) -> Float[Tensor, "*batch dim"]:
        """Layer norm over the last axis: an RMS norm between two centrings, and the weight."""
        centred = Pair(*(t - t.mean(dim=-1, keepdim=True) for t in x))
        scaled = m if weight is None else m * weight
        pulled = self.rms_norm(scaled, centred, x.image.shape[-1], eps)
        result: Tensor = pulled - pulled.mean(dim=-1, keepdim=True)
        return result

    def attention(
        self,
        m: Tensor,
        queries: Pair,
        keys: Pair,
        values: Pair,
        bias: Tensor | None,
        scale: float,
        read: Callable[[Tensor, Pair, Pair], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """softmax(κ Q Kᵀ + bias) V, with the weights computed anew; `read` is the rule of A V."""
        logs = apply_to_both(partial(attend, bias=bias, scale=scale), queries, keys)
        weights = apply_to_both(torch.exp, logs)
        of_weights, of_values = read(m, weights, values)
        of_logits = self.softmax(of_weights, logs)
        transposed = Pair(*(k.mT for k in keys))
        of_queries, of_keys = self.matmul(of_logits * scale, queries, transposed)
        return of_queries, of_keys.mT, of_values


def attend(
    query: Float[Tensor, "batch head query head_dim"],
    key: Float[Tensor, "batch head key head_dim"],
    bias: Tensor | None,
    scale: float,
) -> Float[Tensor, "batch head query key"]:
    """Logarithms of attention weights, softmax(κ Q Kᵀ + bias)."""
    logits = (query * scale) @ key.mT
    return (logits if bias is None else logits + bias).log_softmax(dim=-1)


def _differentiate(function: Function, x: Tensor) -> Tensor:
    if function is torch.exp:
        return x.exp()
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        (derivative,) = torch.autograd.grad(function(at).sum(), at)
    return derivative


def find_secant(function: Function, x: Pair) -> Tensor:
    """(φ(x) − φ(x')) / (x − x'), or φ' at the midpoint where the two are too close.

    Hardswish bends at ±3 as well: there, of two inputs within 6e-6, the derivative is an estimate.
    """
    # In place: it takes longer to allocate numbers of all pairs of tokens than to subtract them.
    middle = _differentiate(function, (x.image + x.reference).div_(2))
    if x.image is x.reference:
        return middle
    difference = x.image - x.reference
    # Below the cube root of the precision the quotient's rounding error exceeds the error of the
    # derivative at the midpoint.
    small = difference.abs() < torch.finfo(difference.dtype).eps ** (1 / 3)
    if function is not torch.exp:  # ReLU has no derivative between two signs, however close
        small &= (x.image < 0) == (x.reference < 0)
    rise = function(x.image).sub_(function(x.reference))
    return torch.where(small, middle, rise.div_(difference.masked_fill_(small, 1)))


def _secant_rms_norm(m: Tensor, x: Pair, size: int, eps: float) -> Tensor:
    # With ρ = (‖x‖²/d + ε)^−½ and σ = x + x':
    # ½ (ρ + ρ') m − ½ ⟨m, σ⟩ (ρ ρ')² / (ρ + ρ') σ / d.
    rho, other = ((t.square().sum(dim=-1, keepdim=True) / size + eps).rsqrt() for t in x)
    total = x.image + x.reference
    along = (m * total).sum(dim=-1, keepdim=True)
    bend = (rho * other).square() / (rho + other) / size
    return ((rho + other) * m - along * bend * total) / 2


def _secant_product(m: Tensor, a: Pair, b: Pair) -> tuple[Tensor, Tensor]:
    # Each factor takes half of the difference: Shapley's split of two.
    return m * (b.image + b.reference) / 2, m * (a.image + a.reference) / 2


def _secant_matmul(m: Tensor, a: Pair, b: Pair) -> tuple[Tensor, Tensor]:
    of_a = m @ (b.image + b.reference).mT
    return of_a.div_(2), (a.image + a.reference).mT @ m / 2


def _secant_softmax(m: Tensor, logs: Pair) -> Tensor:
    # With the logarithmic mean Λ = (A − A') / (ln A − ln A'): Λ ∘ (m − Σ Λ m / Σ Λ). It is exact
    # because A and A' sum to one, and it stays the same when a constant is added to all logits.
    mean = find_secant(torch.exp, logs)
    masked = logs.image.isneginf() | logs.reference.isneginf()
    mean.masked_fill_(masked, 0)
    return mean * (m - (mean * m).sum(dim=-1, keepdim=True) / mean.sum(dim=-1, keepdim=True))


SECANT = Rules(
    elementwise=lambda m, function, x: m * find_secant(function, x),
    rms_norm=_secant_rms_norm,
    product=_secant_product,
    scale=_secant_product,
    matmul=_secant_matmul,
    read=_secant_matmul,
    softmax=_secant_softmax,
)


def _frozen_elementwise(m: Tensor, function: Function, x: Pair) -> Tensor:
    zero = x.image == 0
    slope = function(x.image) / torch.where(zero, 1, x.image)
    return m * torch.where(zero, _differentiate(function, x.image), slope)


FROZEN = Rules(
    elementwise=_frozen_elementwise,
    rms_norm=lambda m, x, size, eps: (
        m * (x.image.square().sum(dim=-1, keepdim=True) / size + eps).rsqrt()
    ),
    product=lambda m, a, b: (m * b.image / 2, m * a.image / 2),
    scale=lambda m, x, rho: (m * rho.image, torch.zeros_like(x.image)),
    matmul=lambda m, a, b: (m @ b.image.mT / 2, a.image.mT @ m / 2),
    read=lambda m, weights, _: (torch.zeros_like(weights.image), weights.image.mT @ m),
    softmax=lambda m, _: torch.zeros_like(m),
)
