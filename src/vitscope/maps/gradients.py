"""Maps made of gradients with respect to tokens."""

import torch

from vitscope.maps.method import MapInput, MapMethod, MapValues, check_row
from vitscope.maps.passes import Tokens

_STEPS = (8, 16, 32, 64)
_CLOSE = 0.05
"""Integration steps are doubled until the sum is this close to what it should be."""


def _gradient_at(given: MapInput, tokens: Tokens | None = None) -> Tokens:
    run, m = given.differentiate(tokens)
    (gradient,) = torch.autograd.grad(run.feature, run.streams[0], m)
    return gradient


def _multiply_gradient(given: MapInput) -> MapValues:
    difference = given.tokens - given.compare("gradient_input").mean_tokens
    return MapValues(values=(difference * _gradient_at(given)).sum(dim=-1))


def _integrate(given: MapInput) -> MapValues:
    reference = given.compare("integrated_gradients").mean_tokens
    difference = given.tokens - reference
    total = given.scores - given.measure(reference.expand_as(given.tokens))
    values = torch.zeros_like(difference[..., 0])
    close = torch.zeros_like(total, dtype=torch.bool)
    for steps in _STEPS:
        mean = torch.zeros_like(difference)
        for step in range(steps):
            mean += _gradient_at(given, reference + (step + 0.5) / steps * difference) / steps
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
    normed, gradient = _differentiate_normed(given)
    return given.place_row((normed * gradient).sum(dim=-1))


def _gradcam(given: MapInput) -> MapValues:
    # Channel weights are means over patches alone.
    normed, gradient = _differentiate_normed(given)
    patches = given.patches
    left_out = given.num_tokens - normed.shape[1]
    weights = gradient[:, patches.start - left_out : patches.stop - left_out].mean(dim=1)
    return given.place_row((normed @ weights.unsqueeze(-1)).squeeze(-1))


METHODS = (
    MapMethod(
        name="gradient_input",
        title="Gradient × input",
        unit="part of s(x) − s(reference)",
        compute=_multiply_gradient,
        differentiates=True,
        compares=True,
        signed=True,
        targeted=True,
        cost="2",
        source="Shrikumar et al. (2016), at depth 0, from the mean token",
    ),
    MapMethod(
        name="integrated_gradients",
        title="Integrated gradients",
        unit="part of s(x) − s(reference)",
        compute=_integrate,
        compares=True,
        signed=True,
        targeted=True,
        cost="16 to 240",
        source="Sundararajan et al. (ICML 2017), at depth 0, from the mean token",
    ),
    MapMethod(
        name="cdam",
        title="CDAM",
        compute=_cdam,
        differentiates=True,
        check=check_row,
        signed=True,
        targeted=True,
        cost="1.1",
        source="Brocki et al. (TMLR 2024)",
    ),
    MapMethod(
        name="gradcam",
        title="Grad-CAM",
        compute=_gradcam,
        differentiates=True,
        check=check_row,
        signed=True,
        targeted=True,
        cost="1.1",
        source="Selvaraju et al. (ICCV 2017), after the last block's first norm, unclamped",
    ),
)
