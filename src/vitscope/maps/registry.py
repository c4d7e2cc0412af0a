"""All map methods by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from vitscope.errors import UsageError
from vitscope.maps import attention, baselines, gradients, perturbation, traced
from vitscope.maps.chosen_target import ChosenTarget
from vitscope.maps.method import MapInput, MapMethod, MapValues
from vitscope.maps.references import tell_missing
from vitscope.maps.targets import explain_cosine, tell_without_mean
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
