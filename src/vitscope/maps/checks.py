"""What is verified in every pass whose backward rules were replaced."""

import re
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.errors import ImbalanceError, UnsupportedModelError
from vitscope.maps.functions import Call
from vitscope.models.base import ViTAdapter

GAPS = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Largest gap accepted in each precision."""

DRIFT = 1e-4
"""Largest distance accepted between the pass's feature and the model's own, relative to it."""

_CAUGHT = "_PulledBackward"
_LINEAR = {
    *("Add", "Alias", "Cat", "Clone", "Cumsum", "Expand", "Flip", "Index", "IndexSelect", "Mean"),
    *("Neg", "Permute", "Repeat", "ReshapeAlias", "Roll", "Select", "Slice", "Split"),
    *("SplitWithSizes", "Squeeze", "Stack", "Sub", "Sum", "Transpose", "Unbind", "UnsafeView"),
    *("Unsqueeze", "View"),
}
_BILINEAR = {"Addmm": 1, "Baddbmm": 1, "Bmm": 0, "Div": 0, "Mm": 0, "Mul": 0, "Mv": 0}
"""Products, linear if only one factor depends on the tokens, and the index of the first factor."""


_OF_BLOCK = {"norm": 2, "attention": 1, "activation": 1}


def check_caught(
    calls: Sequence[Call], vit: ViTAdapter, of_block: Mapping[str, int] = _OF_BLOCK
) -> None:
    """Refuse a pass in which an operation went unseen: a block's norms, its attention, its MLP."""
    expected: dict[int | None, Mapping[str, int]] = dict.fromkeys(
        range(len(vit.encoder_blocks)), of_block
    )
    if vit.info.depth in vit.blocks:
        expected[None] = {"attention": 1}
    for block, counts in expected.items():
        kinds = [call.kind for call in calls if call.block == block]
        for kind, least in counts.items():
            found = kinds.count(kind) + (kinds.count("read") if kind == "attention" else 0)
            if found < least:
                place = "the pooling head" if block is None else f"block {block}"
                raise UnsupportedModelError(
                    f"in {place} of {vit.info.id} {found} of {least} calls of kind {kind!r} were "
                    "seen: its code computes them in a way that cannot be traced (compiled, "
                    "scripted or fused by another library); use the library's plain modules"
                )


def check_drift(
    feature: Float[Tensor, "batch out"], own: Float[Tensor, "batch out"], vit: ViTAdapter
) -> None:
    """Refuse a pass that computed another feature than the model does by itself."""
    distance = (feature.detach() - own).norm(dim=-1) / own.norm(dim=-1)
    worst = float(distance.max())
    if not worst <= DRIFT:
        raise ImbalanceError(
            f"the traced pass of {vit.info.id} computed a feature that differs from the model's "
            f"own by {worst:.1e} of it (tolerance {DRIFT:.0e}): an operation is not computed as "
            "the library does, or not the same way twice"
        )


def check_gap(gap: Float[Tensor, " batch"], feature: Tensor, vit: ViTAdapter) -> None:
    """Refuse parts that do not sum to what they explain."""
    tolerance = GAPS[gap.dtype]
    worst = float(gap.max())
    if not worst <= tolerance:
        raise ImbalanceError(
            f"the traced parts of {vit.info.id} differ from what they explain by {worst:.1e} of it "
            f"(tolerance {tolerance:.0e}): {_describe_unknown(feature)}"
        )


def check_traced(vit: ViTAdapter) -> None:
    """Refuse edits that no trace goes through."""
    if varying := [edit.words for edit in vit.edits if not edit.is_traced]:
        raise make_untraced(varying[-1])


def make_untraced(edit: str) -> UnsupportedModelError:
    """The error of an edit that no trace goes through."""
    return UnsupportedModelError(
        f"no trace goes through the edit {edit}, which is not the same for an image and its "
        "references: leave out trace and traced maps, or this edit"
    )


def check_known(feature: Tensor, vit: ViTAdapter) -> None:
    """Refuse a pass with an operation that has no rule, where no sum would show it."""
    if find_unknown(feature):
        raise UnsupportedModelError(f"{vit.info.id} cannot be traced: {_describe_unknown(feature)}")


def _describe_unknown(feature: Tensor) -> str:
    names = ", ".join(find_unknown(feature)) or "an operation of the model"
    return f"vitscope has no exact backward rule for {names}"


def find_unknown(feature: Tensor) -> list[str]:
    """Names of operations between tokens and feature that are neither caught nor known as linear.

    They are read from autograd's graph, which also shows what scripted code computes.
    """
    assert feature.grad_fn is not None
    found, seen, waiting = set(), {feature.grad_fn}, [feature.grad_fn]
    while waiting:
        node = waiting.pop()
        inputs = [source for source, _ in node.next_functions]
        if node.name() != _CAUGHT and inputs:
            name = re.sub(r"Backward\d*$", "", node.name())
            factors = inputs[_BILINEAR.get(name, len(inputs)) :]
            if sum(factor is not None for factor in factors) > 1 or (
                name not in _LINEAR and name not in _BILINEAR
            ):
                found.add(name)
        new = [source for source in inputs if source is not None and source not in seen]
        seen.update(new)
        waiting += new
    return sorted(found)
