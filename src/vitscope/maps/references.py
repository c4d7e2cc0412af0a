"""Images that maps compare with."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.errors import UsageError
from vitscope.maps.functions import CaughtFunctions, Inputs
from vitscope.maps.passes import Pass, Tokens, run_blocks
from vitscope.maps.rules import SECANT
from vitscope.models.base import Pixels, ViTAdapter


def tell_missing(name: str) -> str:
    """The sentence for a map without the references that it needs."""
    return f"{name} compares with other images, and none were given: give some as references"


NUM_TRACED = 4
"""Reference images that a trace is averaged over, at most."""

NUM_LENDERS = 4
"""Reference images that lend tokens, at most: others than the traced ones if there are enough."""


@dataclass(frozen=True, eq=False, kw_only=True)
class References:
    """A set of images, in a few numbers."""

    vit: ViTAdapter
    num_images: int  # size of the set
    mean_feature: Float[Tensor, " out"]  # μ, the mean of the global feature
    mean_tokens: Float[Tensor, "token dim"]  # the mean token at each position at depth 0
    pixels: Pixels  # the first images of the set, which maps are traced against
    # the next images, whose tokens take the place of removed ones. They are others than the traced
    # ones, so that no map knows what it is judged by; the same in a set too small
    lenders: Float[Tensor, "lender channel height width"]

    @cached_property
    def lent_tokens(self) -> Tokens:
        """The lenders' tokens at depth 0."""
        return run_blocks(self.vit, self.lenders).streams[0]

    @cached_property
    def traced(self) -> tuple[Pass, Inputs]:
        """The model's run on the traced images, and the inputs of its nonlinear operations."""
        functions = CaughtFunctions(SECANT, keep=True)
        run = run_blocks(self.vit, self.pixels, functions=functions)
        return run.detach(), functions.kept


def make_references(vit: ViTAdapter, batches: Iterable[Pixels]) -> References:
    """Summarise a set of preprocessed images."""
    features = tokens = torch.zeros((), dtype=torch.float64)
    count, first = 0, []
    for pixels in batches:
        run = run_blocks(vit, pixels)
        features = run.feature.double().sum(dim=0) + features.to(pixels.device)
        tokens = run.streams[0].double().sum(dim=0) + tokens.to(pixels.device)
        first.append(pixels[: max(0, NUM_TRACED + NUM_LENDERS - count)])
        count += len(pixels)
    if not count:
        raise UsageError("no reference images were given: expected at least one")
    dtype, kept = vit.parameter.dtype, torch.cat(first)
    return References(
        vit=vit,
        num_images=count,
        mean_feature=(features / count).to(dtype),
        mean_tokens=(tokens / count).to(dtype),
        pixels=kept[:NUM_TRACED],
        lenders=kept[NUM_TRACED:] if len(kept) > NUM_TRACED + 1 else kept,
    )
