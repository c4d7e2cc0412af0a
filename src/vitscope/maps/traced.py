"""The traced map: an image's difference from reference images, followed back to its patches."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.errors import ImbalanceError, UnsupportedModelError, UsageError
from vitscope.maps.functions import AttentionBackward, CaughtFunctions
from vitscope.maps.method import MapInput, MapMethod, MapValues
from vitscope.maps.passes import run_blocks
from vitscope.maps.references import References
from vitscope.maps.rules import FROZEN, SECANT, Rules
from vitscope.maps.targets import Target
from vitscope.models.base import Pixels, ViTAdapter


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """What becomes a number of the output, at every depth.

    Attributes:
        parts: ⟨m_i, x_i − x_i'⟩ of each token at each depth, mean over references. At every depth
            they sum to `total`.
        total: s(x) − s(x'), mean over references.
        through_values: What came through the values of each block's attention.
        through_routing: What came through its weights.
        gap: Largest distance between the sum of the parts and the total, over depths and
            references, relative to the total.
    """

    parts: Float[Tensor, "batch depth token"]
    total: Float[Tensor, " batch"]
    through_values: Float[Tensor, "batch block"]
    through_routing: Float[Tensor, "batch block"]
    gap: Float[Tensor, " batch"]


_SMALL_TOTAL = 0.1
"""Below this a gap is relative to it: a total near zero says nothing about rounding."""

GAPS = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Largest gap accepted in each precision."""

DRIFT = 1e-4
"""Largest distance accepted between the feature of the traced pass and the model's own."""


def trace_output(
    vit: ViTAdapter,
    pixels: Pixels,
    target: Target,
    references: References,
    *,
    rules: Rules = SECANT,
) -> Trace:
    """Follow s(x) − s(x') back to the tokens at every depth, for a batch of images.

    Args:
        vit: The model, in float32 or float64.
        pixels: Preprocessed images, on the model's device.
        target: The number that is explained.
        references: The references x'; the trace is the mean over them.
        rules: Backward rules. Only the secant ones make the parts sum to the total.

    Returns:
        The trace.

    Raises:
        ImbalanceError: If the parts of secant rules do not sum to the total at some depth.
        UnsupportedModelError: If operations of a block were not caught.
    """
    depth = len(vit.encoder_blocks)
    items: list[AttentionBackward] = []
    functions = CaughtFunctions(rules, references.inputs, on_attention=items.append)
    run = run_blocks(vit, pixels, functions=functions)
    check_caught(functions, vit)
    num_references = len(references.run.feature)
    weights = _weigh_references(pixels, references.pixels).to(run.feature)
    parts, totals, gaps = [], [], []
    routes: list[Tensor] = []
    for index in range(num_references):
        functions.reference = slice(index, index + 1)
        items.clear()
        other = references.run.feature[functions.reference]
        multipliers = torch.autograd.grad(
            run.feature,
            run.streams,
            target.pull(run.feature.detach(), other),
            retain_graph=index + 1 < num_references,
        )
        part = torch.stack(
            [
                (m * (stream.detach() - reference[functions.reference])).sum(dim=-1)
                for m, stream, reference in zip(
                    multipliers, run.streams, references.run.streams, strict=True
                )
            ],
            dim=1,
        )
        total = target.measure(run.feature.detach()) - target.measure(other)
        distance = (part.sum(dim=-1) - total.unsqueeze(1)).abs().amax(dim=1)
        gaps.append(distance / total.abs().clamp(min=_SMALL_TOTAL))
        parts.append(part)
        totals.append(total)
        routes.append(_order_routes(items, depth, total))
    gap = torch.stack(gaps).amax(dim=0)
    if rules is SECANT:
        _check_gap(gap, vit)
    through = torch.einsum("rb,rblk->blk", weights, torch.stack(routes))
    return Trace(
        parts=torch.einsum("rb,rbln->bln", weights, torch.stack(parts)),
        total=(weights * torch.stack(totals)).sum(dim=0),
        through_values=through[:, :, 0],
        through_routing=through[:, :, 1],
        gap=gap,
    )


def _weigh_references(
    pixels: Pixels, references: Float[Tensor, "reference channel height width"]
) -> Float[Tensor, "reference batch"]:
    # An image that is itself among the references is compared with the others.
    others = (pixels.unsqueeze(0) != references.unsqueeze(1)).flatten(2).any(dim=2)
    count = others.sum(dim=0)
    if not count.all():
        raise UsageError(
            "an image is its own and only reference, from which it does not differ: give others"
        )
    return others / count


def _order_routes(
    items: list[AttentionBackward], depth: int, total: Float[Tensor, " batch"]
) -> Float[Tensor, "batch block 2"]:
    routes = total.new_zeros(len(total), depth, 2)
    for item in items:
        if item.block is not None:
            routes[:, item.block, 0] = item.through_values
            routes[:, item.block, 1] = item.through_routing
    return routes


def check_caught(functions: CaughtFunctions, vit: ViTAdapter) -> None:
    """Refuse a pass in which an operation of a block went unseen: two norms, attention, an MLP."""
    expected = {"norm": 2, "attention": 1, "activation": 1}
    for block in range(len(vit.encoder_blocks)):
        kinds = [call.kind for call in functions.calls if call.block == block]
        for kind, least in expected.items():
            found = kinds.count(kind) + (kinds.count("read") if kind == "attention" else 0)
            if found < least:
                raise UnsupportedModelError(
                    f"in block {block} of {vit.info.id} {found} of {least} calls of kind {kind!r} "
                    "were seen: its code computes them in a way that cannot be traced (compiled, "
                    "scripted or fused by another library); use the library's plain modules"
                )


def _check_gap(gap: Float[Tensor, " batch"], vit: ViTAdapter) -> None:
    tolerance = GAPS[gap.dtype]
    worst = float(gap.max())
    if not worst <= tolerance:
        raise ImbalanceError(
            f"the traced parts of {vit.info.id} differ from what they explain by {worst:.1e} of it "
            f"(tolerance {tolerance:.0e}): an operation of the model has no exact backward rule"
        )


def _trace(given: MapInput, name: str, rules: Rules = SECANT) -> Trace:
    return trace_output(given.vit, given.pixels, given.target, given.compare(name), rules=rules)


def _trace_to_pixels(given: MapInput) -> MapValues:
    trace = _trace(given, "traced")
    return MapValues(values=trace.parts[:, 0], total=trace.total)


def _trace_over_depths(given: MapInput) -> MapValues:
    trace = _trace(given, "traced_mean")
    return MapValues(values=trace.parts.mean(dim=1), total=trace.total)


def _trace_frozen(given: MapInput) -> MapValues:
    return MapValues(values=_trace(given, "frozen", FROZEN).parts[:, 0])


METHODS = (
    MapMethod(
        name="traced",
        title="Traced",
        compute=_trace_to_pixels,
        signed=True,
        targeted=True,
        cost="5 to 9",
        source="vitscope: secant multipliers from the output to depth 0",
    ),
    MapMethod(
        name="traced_mean",
        title="Traced, mean over depths",
        compute=_trace_over_depths,
        signed=True,
        targeted=True,
        cost="5 to 9",
        source="vitscope: as traced, each token's part at every depth",
    ),
    MapMethod(
        name="frozen",
        title="Frozen trace",
        compute=_trace_frozen,
        signed=True,
        targeted=True,
        cost="5 to 9",
        source="DecompX (ACL 2023), LibraGrad (CVPR 2025): attention and gates held",
    ),
)
