"""All map methods by name."""

from collections.abc import Mapping

from vitscope.errors import UsageError
from vitscope.maps import attention, baselines, gradients, perturbation, traced
from vitscope.maps.method import MapMethod
from vitscope.plugins import find_plugin, plain_faults

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
    return found
