"""Maps made of gradients: with respect to attention weights, or to tokens."""

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.errors import UnsupportedModelError
from vitscope.maps.attention import Walk
from vitscope.maps.functions import AttentionBackward
from vitscope.maps.method import MapInput, MapMethod, MapValues, check_row
from vitscope.maps.passes import Tokens, gradients_set
from vitscope.models.base import ViTAdapter

_STEPS = (8, 16, 32, 64)
_CLOSE = 0.05
"""Integration steps are doubled until the sum is this close to what it should be."""


class _Gradient(NamedTuple):
    of_tokens: Tokens
    relevance: Float[Tensor, "batch token"]


def _go_back(given: MapInput) -> _Gradient:
    # Through all blocks, from the last to the first; on the way, by the generic form of Chefer et
    # al., R ← R + mean_h (∇A ∘ A)⁺ R, the row of [CLS].
    walk = Walk(given)

    def take(item: AttentionBackward) -> None:
        relevance = (item.of_weights * item.weights).clamp(min=0).mean(dim=1)
        if item.block is None:
            walk.start(relevance[:, 0])
        else:
            walk.vector = walk.vector + walk.multiply(relevance)

    run, m = given.differentiate(on_attention=take)
    (gradient,) = torch.autograd.grad(run.feature, run.streams[0], m)
    return _Gradient(gradient, walk.vector)


def _check_final_norm(vit: ViTAdapter) -> None:
    if vit.info.global_feature == "attention pooling":
        raise UnsupportedModelError(
            "legrad applies the final norm to the mean token of a block, which "
            f"{vit.info.id} does not do: its output comes from an attention-pooling head"
        )
    vit.embed(torch.zeros(1, vit.info.embed_dim))  # refuses logits of several tokens


def _legrad(given: MapInput) -> MapValues:
    # Each of the last two blocks has a score of its own, the target of the mean of its output
    # tokens; its map is the mean over heads and queries of (∂s/∂A)⁺.
    total = torch.zeros_like(given.tokens[..., 0])
    wanted = given.vit.info.depth - 1

    def take(item: AttentionBackward) -> None:
        nonlocal total
        if item.block == wanted:
            total = total + item.of_weights.clamp(min=0).mean(dim=(1, 2))

    run, _ = given.differentiate(on_attention=take)
    for wanted in range(given.vit.info.depth - 1, max(-1, given.vit.info.depth - 3), -1):
        with gradients_set(given.vit, True):
            feature = given.vit.embed_row(run.streams[wanted + 1].mean(dim=1))
        detached = feature.detach()
        m = given.target.pull(detached, detached)
        torch.autograd.grad(feature, run.streams[wanted], m)
    return MapValues(values=total)


def _multiply_gradient(given: MapInput) -> MapValues:
    difference = given.tokens - given.compare("gradient_input").mean_tokens
    return MapValues(values=(difference * given.once(_go_back).of_tokens).sum(dim=-1))


def _integrate(given: MapInput) -> MapValues:
    reference = given.compare("integrated_gradients").mean_tokens
    difference = given.tokens - reference
    total = given.scores - given.measure(reference.expand_as(given.tokens))
    values = torch.zeros_like(difference[..., 0])
    close = torch.zeros_like(total, dtype=torch.bool)
    for steps in _STEPS:
        mean = torch.zeros_like(difference)
        for step in range(steps):
            run, m = given.differentiate(reference + (step + 0.5) / steps * difference)
            mean += torch.autograd.grad(run.feature, run.streams[0], m)[0] / steps
        # An image that was close keeps its values, whatever other images of the batch need.
        values = torch.where(close.unsqueeze(1), values, (difference * mean).sum(dim=-1))
        close = (values.sum(dim=1) - total).abs() <= _CLOSE * total.abs()
        if close.all():
            break
    return MapValues(values=values, total=total)


def _differentiate_normed(given: MapInput) -> tuple[Tokens, Tokens]:
    # The tokens that the analysed attention reads, and the gradient by them.
    run, m = given.differentiate()
    normed = given.read_normed(run)
    (gradient,) = torch.autograd.grad(run.feature, normed, m)
    return normed.detach(), gradient


def _cdam(given: MapInput) -> MapValues:
    normed, gradient = given.once(_differentiate_normed)
    return given.place_row((normed * gradient).sum(dim=-1))


def _gradcam(given: MapInput) -> MapValues:
    # Channel weights are means over patches alone.
    normed, gradient = given.once(_differentiate_normed)
    weights = given.take_patches(gradient).mean(dim=1)
    return given.place_row((normed @ weights.unsqueeze(-1)).squeeze(-1))


_difference = partial(
    MapMethod,
    unit="part of s(x) − s(reference)",
    compares=True,
    signed=True,
    targeted=True,
)
_of_row = partial(
    MapMethod, differentiates=True, check=check_row, signed=True, targeted=True, cost="about 2"
)

METHODS = (
    MapMethod(
        name="chefer",
        title="Gradient-weighted rollout (Chefer)",
        compute=lambda given: MapValues(values=given.once(_go_back).relevance),
        differentiates=True,
        signed=False,
        targeted=True,
        cost="about 4",
        source="Chefer et al. (ICCV 2021), the generic form",
    ),
    MapMethod(
        name="legrad",
        title="LeGrad",
        compute=_legrad,
        check=_check_final_norm,
        signed=False,
        targeted=True,
        cost="about 2.5",
        source="Bousselham et al. (ICCV 2025), last two blocks as in its code",
    ),
    _difference(
        name="gradient_input",
        title="Gradient × input",
        compute=_multiply_gradient,
        differentiates=True,
        cost="about 4",
        source="Shrikumar et al. (2016), at depth 0, from the mean token",
    ),
    _difference(
        name="integrated_gradients",
        title="Integrated gradients",
        compute=_integrate,
        cost="25 to 350",
        source="Sundararajan et al. (ICML 2017), at depth 0, from the mean token",
    ),
    _of_row(
        name="cdam",
        title="CDAM",
        compute=_cdam,
        source="Brocki et al. (TMLR 2024)",
    ),
    _of_row(
        name="gradcam",
        title="Grad-CAM",
        compute=_gradcam,
        source="Selvaraju et al. (ICCV 2017), after the last block's first norm, unclamped",
    ),
)
