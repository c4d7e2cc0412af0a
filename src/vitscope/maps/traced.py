"""The traced map: an image's difference from reference images, followed back to its patches."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.errors import UsageError
from vitscope.maps.checks import check_gap, check_known, check_traced
from vitscope.maps.functions import AttentionBackward, CaughtFunctions
from vitscope.maps.method import MapInput, MapMethod, MapValues
from vitscope.maps.rules import FROZEN, SECANT, Rules
from vitscope.models.base import Pixels


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """What becomes a number of the output, at every depth."""

    # ⟨m_i, x_i − x_i'⟩ of each token at each depth, mean over references. At every depth they sum
    # to `total`
    parts: Float[Tensor, "batch depth token"]
    total: Float[Tensor, " batch"]  # s(x) − s(x'), mean over references
    # what came through the values of each block's attention
    through_values: Float[Tensor, "batch block"]
    through_routing: Float[Tensor, "batch block"]  # what came through its weights
    # largest distance between the sum of the parts and the total, over depths and references,
    # relative to the total
    gap: Float[Tensor, " batch"]


_SMALL_TOTAL = 0.1
"""Below this a gap is relative to it: a total near zero says nothing about rounding."""


def trace_output(given: MapInput, *, rules: Rules = SECANT) -> Trace:
    """Follow s(x) − s(x') back to the tokens at every depth, averaged over the references x'.

    Only secant rules make the parts sum to the total, which is verified at every depth.
    """
    vit, target, references = given.vit, given.target, given.compare("a trace")
    others, inputs = references.traced
    num_references = len(others.feature)
    weights = _weigh_references(given.identity, references.pixels, given.dtype)
    shape = (num_references, len(given.pixels), len(vit.encoder_blocks))
    through_values = given.own.feature.new_zeros(shape)
    through_routing = torch.zeros_like(through_values)

    def take(item: AttentionBackward) -> None:
        # Sums alone are kept: one attention's weights are in memory at a time.
        if item.block is not None:
            through_values[functions.reference, :, item.block] = item.through_values
            through_routing[functions.reference, :, item.block] = item.through_routing

    functions = CaughtFunctions(rules, inputs, on_attention=take)
    run = given.run_caught(functions)
    own = run.detach()
    found, totals = [], []
    for index in range(num_references):
        functions.reference = chosen = slice(index, index + 1)
        multipliers = torch.autograd.grad(
            run.feature,
            run.streams,
            target.pull(own.feature, others.feature[chosen]),
            retain_graph=index + 1 < num_references,
        )
        pairs = zip(multipliers, own.streams, others.streams, strict=True)
        found.append(torch.stack([(m * (x - y[chosen])).sum(dim=-1) for m, x, y in pairs], dim=1))
        totals.append(target.measure(own.feature) - target.measure(others.feature[chosen]))
    parts, total = torch.stack(found), torch.stack(totals)
    distance = (parts.sum(dim=-1) - total.unsqueeze(-1)).abs().amax(dim=-1)
    gap = (distance / total.abs().clamp(min=_SMALL_TOTAL)).amax(dim=0)
    if rules is SECANT:
        check_gap(gap, run.feature, vit)
    else:
        check_known(run.feature, vit)
    return Trace(
        parts=_average(weights, parts),
        total=_average(weights, total),
        through_values=_average(weights, through_values),
        through_routing=_average(weights, through_routing),
        gap=gap,
    )


def _weigh_references(
    pixels: Pixels,
    references: Float[Tensor, "reference channel height width"],
    dtype: torch.dtype,
) -> Float[Tensor, "reference batch"]:
    # An image that is itself among the references is compared with the others.
    others = (pixels.unsqueeze(0) != references.unsqueeze(1)).flatten(2).any(dim=2)
    count = others.sum(dim=0)
    if not count.all():
        raise UsageError(
            "an image is its own and only reference, from which it does not differ: give others"
        )
    return others.to(dtype) / count


def _average(
    weights: Float[Tensor, "reference batch"], values: Float[Tensor, "reference batch *rest"]
) -> Float[Tensor, "batch *rest"]:
    return torch.einsum("rb,rb...->b...", weights, values)


def _place_trace(
    choose: Callable[[Float[Tensor, "batch depth token"]], Tensor], given: MapInput
) -> MapValues:
    trace = given.once(trace_output)
    return MapValues(values=choose(trace.parts), total=trace.total)


_traced = partial(
    MapMethod,
    unit="part of s(x) − s(reference)",
    compares=True,
    signed=True,
    targeted=True,
    check=check_traced,
)

METHODS = (
    _traced(
        name="traced",
        title="Traced",
        compute=partial(_place_trace, lambda parts: parts[:, 0]),
        cost="about 10",
        source="vitscope: secant multipliers from the output to depth 0",
    ),
    _traced(
        name="traced_mean",
        title="Traced, mean over depths",
        compute=partial(_place_trace, lambda parts: parts.mean(dim=1)),
        cost="about 10",
        source="vitscope: as traced, each token's part at every depth",
    ),
    _traced(
        name="frozen",
        title="Frozen trace",
        compute=lambda given: MapValues(values=trace_output(given, rules=FROZEN).parts[:, 0]),
        cost="about 9",
        source="DecompX (ACL 2023), LibraGrad (CVPR 2025): attention and gates held",
    ),
)
