"""All map methods by name, and those that do not look at the model: what a map has to beat."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from vitscope.errors import UsageError
from vitscope.maps import attention, gradients, perturbation, traced
from vitscope.maps.chosen_target import ChosenTarget
from vitscope.maps.method import MapInput, MapMethod, MapValues
from vitscope.maps.references import tell_missing
from vitscope.maps.targets import explain_cosine, tell_without_mean
from vitscope.plugins import find_plugin, name_package, plain_faults

GROUP = "vitscope.maps"
"""Entry points of other packages name a `MapMethod`."""


def _centre(given: MapInput) -> MapValues:
    rows, columns = (
        torch.linspace(-1, 1, size, dtype=given.dtype) if size > 1 else torch.zeros(1)
        for size in given.layout.grid
    )
    # A standard deviation of a quarter of the grid is half of the way from the centre to its edge.
    distance = (rows[:, None].square() + columns.square()) / 0.5**2
    return given.place((-distance / 2).exp().flatten().expand(len(given.pixels), -1))


def _edges(given: MapInput) -> MapValues:
    grey = given.pixels.mean(dim=1)
    down, right = torch.gradient(grey, dim=(1, 2))
    energy = down.square() + right.square()
    pooled = torch.nn.functional.adaptive_avg_pool2d(energy.unsqueeze(1), given.layout.grid)
    return given.place(pooled.flatten(1))


def _random(given: MapInput) -> MapValues:
    draws = [
        torch.rand(len(given.patches), generator=given.make_generator(image))
        for image in range(len(given.pixels))
    ]
    return given.place(torch.stack(draws))


_baseline = partial(MapMethod, signed=False, targeted=False, cost="0")

_BASELINES = (
    _baseline(
        name="centre",
        title="Distance from the centre",
        compute=_centre,
        source="a Gaussian with a standard deviation of a quarter of the grid",
    ),
    _baseline(
        name="edges",
        title="Edges in the image",
        compute=_edges,
        source="mean squared gradient of grey values",
    ),
    _baseline(
        name="random",
        title="Random numbers",
        compute=_random,
        source="uniform, seeded by the image",
    ),
)

METHODS: Mapping[str, MapMethod] = {
    method.name: method
    for method in (
        *(*attention.METHODS, *gradients.METHODS, *traced.METHODS, *perturbation.METHODS),
        *_BASELINES,
    )
}


def find_method(name: str) -> MapMethod:
    """Find a map method: one of vitscope's, or one that an installed package declares."""
    if name in METHODS:
        return METHODS[name]
    point = find_plugin(GROUP, name)
    if point is None:
        raise UsageError(f"no map is called {name!r}: choose from {', '.join(METHODS)}")
    with plain_faults(point):
        found = point.load()
    if not isinstance(found, MapMethod):
        raise UsageError(
            f"map {name!r} is a {type(found).__name__} in its package: expected a MapMethod"
        )
    if found.name != name:
        raise UsageError(
            f"{name_package(point)} declares the map {found.name!r} as {name!r}: expected one name"
        )

    def compute(given: MapInput) -> MapValues:
        with plain_faults(point):
            return found.compute(given)

    return replace(found, compute=compute)


def find_methods(names: Sequence[str]) -> list[MapMethod]:
    """Find several, each once."""
    if isinstance(names, str):
        raise UsageError(f"maps was given as {names!r}: expected names, such as [{names!r}]")
    return [find_method(name) for name in dict.fromkeys(names)]


def list_packages(names: Iterable[str]) -> dict[str, str]:
    """Versions of the other packages that declare maps of these names."""
    points = [find_plugin(GROUP, name) for name in names if name not in METHODS]
    return {point.dist.name: point.dist.version for point in points if point and point.dist}


def check_maps(methods: Iterable[MapMethod], target: ChosenTarget, *, has_references: bool) -> None:
    """Refuse maps that cannot be made, before the work."""
    for method in methods:
        if method.check is not None:
            method.check(target.vit)
        if method.compares and not has_references:
            raise UsageError(tell_missing(method.name))
        if method.targeted and target.compares and not has_references:
            raise UsageError(tell_without_mean(target.told))
        if method.differentiates and target.choose is explain_cosine:
            raise UsageError(
                f"{method.name} follows the gradient of the target, and a cosine of the image with "
                "itself is at its maximum, where there is none: choose the target 'self', which "
                "needs references, or give a vector"
            )
