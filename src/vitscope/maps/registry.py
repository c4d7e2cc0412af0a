"""All map methods by name."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from vitscope.errors import UsageError
from vitscope.maps import attention, baselines, gradients, perturbation, traced
from vitscope.maps.method import MapInput, MapMethod, MapValues
from vitscope.maps.references import tell_missing
from vitscope.maps.targets import (
    WITHOUT_MEAN,
    TargetChoice,
    explain_cosine,
    explain_self,
    find_target,
)
from vitscope.models.base import ViTAdapter
from vitscope.plugins import find_plugin, name_package, plain_faults

GROUP = "vitscope.maps"
"""Entry points of other packages name a `MapMethod`."""

METHODS: Mapping[str, MapMethod] = {
    method.name: method
    for module in (attention, gradients, traced, perturbation, baselines)
    for method in module.METHODS
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


def check_maps(
    methods: Iterable[MapMethod],
    vit: ViTAdapter,
    target: str | Tensor | TargetChoice | None,
    *,
    has_references: bool,
) -> TargetChoice:
    """Refuse maps that cannot be made, before the work; returns what the others explain."""
    choice = find_target(target, has_references=has_references)
    for method in methods:
        if method.check is not None:
            method.check(vit)
        if method.compares and not has_references:
            raise UsageError(tell_missing(method.name))
        if method.targeted and choice is explain_self and not has_references:
            raise UsageError(WITHOUT_MEAN)
        if method.differentiates and choice is explain_cosine:
            raise UsageError(
                f"{method.name} follows the gradient of the target, and a cosine of the image with "
                "itself is at its maximum, where there is none: give references, for the target "
                "'self', or a vector as target"
            )
    return choice
