"""Whether maps depend on what they should: the weights and the target, but not on noise."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import nn

from vitscope.maps.method import MapInput, MapMethod
from vitscope.maps.references import make_references
from vitscope.maps.targets import TargetChoice
from vitscope.metrics.faithfulness import compute_sensitivity
from vitscope.metrics.rank_correlation import correlate_ranks
from vitscope.models.random_weights import draw_weight

_NUM_DRAWS = 10
_LARGEST_NOISE = 0.02


@dataclass(frozen=True, eq=False, kw_only=True)
class Sanity:
    """Spearman's ρ of maps with what they would be otherwise, image by image.

    It is NaN where a map is constant.
    """

    maps: tuple[str, ...]  # names of the maps
    # with the map of the model whose last k + 1 blocks have random weights: k = 0 is the last block
    # alone, the last k all blocks at once. A map that keeps more than 0.5 at the end describes the
    # image rather than the model
    randomised: Float64[np.ndarray, "image map block"]
    # with the map of another target: 1 if a map does not depend on it
    other_target: Float64[np.ndarray, "image map"]


def measure_sanity(
    given: MapInput, methods: Sequence[MapMethod], other_target: TargetChoice
) -> Sanity:
    """Rank correlations over patches with the maps of random weights, and of another target.

    Every map is made once for each block and twice more. The target of a random model is chosen by
    that model's own features, compared with its own features of `given.references.pixels`. The
    model is left as it was.

    Source:
        Adebayo et al., *Sanity Checks for Saliency Maps* (NeurIPS 2018).
    """
    own = _map_patches(given, methods)
    other = _map_patches(replace(given, choice=other_target), methods)
    steps = []
    blocks = given.vit.encoder_blocks
    with given.vit.undisturbed(), _restored(blocks):
        for index in reversed(range(len(blocks))):
            _randomise(blocks[index], torch.Generator().manual_seed(given.seed + index))
            references = given.references
            if references is not None:
                references = make_references(given.vit, [references.pixels])
            random = _map_patches(replace(given, references=references), methods)
            steps.append(_correlate(own, random))
    return Sanity(
        maps=tuple(method.name for method in methods),
        randomised=np.stack(steps, axis=-1),
        other_target=_correlate(own, other),
    )


def measure_sensitivity(
    given: MapInput, methods: Sequence[MapMethod]
) -> Float64[np.ndarray, "image map"]:
    """`compute_sensitivity` of each map of each image to noise of at most 0.02 on the pixels.

    Every map is made once without noise and for ten draws; the target is held.
    """
    generators = [given.make_generator(image) for image in range(len(given.pixels))]
    own = _map_patches(given, methods)
    disturbed = []
    for _ in range(_NUM_DRAWS):
        noise = torch.stack(
            [torch.rand(given.pixels.shape[1:], generator=each) for each in generators]
        )
        moved = given.pixels + (_LARGEST_NOISE * (2 * noise - 1)).to(given.pixels)
        held = replace(given, pixels=moved, original=given.identity, choice=lambda *_: given.target)
        disturbed.append(_map_patches(held, methods))
    return _compare(compute_sensitivity, own, np.stack(disturbed, axis=2))


def _map_patches(
    given: MapInput, methods: Sequence[MapMethod]
) -> Float64[np.ndarray, "image map patch"]:
    maps = [given.take_patches(method.compute(given).values).double().cpu() for method in methods]
    return torch.stack(maps, dim=1).numpy()


def _compare(
    measure: Callable[[Any, Any], float],
    own: Float64[np.ndarray, "image map patch"],
    others: Float64[np.ndarray, "image map *other patch"],
) -> Float64[np.ndarray, "image map"]:
    images = zip(own, others, strict=True)
    return np.array([[measure(*pair) for pair in zip(*image, strict=True)] for image in images])


_correlate = partial(_compare, lambda first, second: correlate_ranks(first, second).rho)


@contextmanager
def _restored(blocks: Sequence[nn.Module]) -> Iterator[None]:
    weights = [weight for block in blocks for weight in block.parameters()]
    before = [weight.detach().clone() for weight in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, kept in zip(weights, before, strict=True):
                weight.copy_(kept)
        torch.clear_autocast_cache()


@torch.no_grad()
def _randomise(block: nn.Module, generator: torch.Generator) -> None:
    for name, weight in block.named_parameters():
        weight.copy_(draw_weight(name, weight.shape, generator))
    torch.clear_autocast_cache()  # which holds casts of the weights before
