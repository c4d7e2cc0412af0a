"""Metrics of other packages, computed along with an audit's own."""

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from vitscope.errors import ResultError, UsageError
from vitscope.metrics.jackknife import Estimate
from vitscope.metrics.sums import Batch, Sums
from vitscope.plugins import find_plugin, name_package, plain_faults

GROUP = "vitscope.metrics"
"""Entry points name a class with the methods of `Sums` and no arguments; its `summarize` returns
estimates by name."""
_METHODS = ("update", "merge", "save", "load", "summarize")


def find_packages(names: Iterable[str]) -> dict[str, str]:
    """Package and version of each metric, by the metric's name."""
    return {name: name_package(_find(name)) for name in names}


class OtherMetrics:
    """The sums of several metrics at one layer."""

    name: ClassVar[str] = "metrics"

    def __init__(self, names: Iterable[str]) -> None:
        """Start with no images."""
        self._points = {name: _find(name) for name in names}
        self._sums = {name: _make_sums(point) for name, point in self._points.items()}

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        for name, sums in self._sums.items():
            with plain_faults(self._points[name]):
                sums.update(batch)

    def merge(self, other: "OtherMetrics") -> None:
        """Add the sums of a disjoint set of images."""
        for name, sums in self._sums.items():
            with plain_faults(self._points[name]):
                sums.merge(other._sums[name])

    def save(self) -> dict[str, Tensor]:
        """The tensors to save."""
        saved: dict[str, Tensor] = {}
        for name, sums in self._sums.items():
            with plain_faults(self._points[name]):
                saved |= {f"{name}/{key}": tensor for key, tensor in sums.save().items()}
        return saved

    def load(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Restore saved sums."""
        for name, sums in self._sums.items():
            place = f"{name}/"
            own = {k.removeprefix(place): v for k, v in tensors.items() if k.startswith(place)}
            try:
                sums.load(own, folder)
            except Exception as error:
                raise ResultError(
                    f"the sums of {name} cannot be read by the package "
                    f"{name_package(self._points[name])}: install the version that made them"
                ) from error

    def summarize(self) -> dict[str, Any]:
        """The estimates of each metric."""
        return {"metrics": {name: self._summarize(name) for name in self._sums}}

    def _summarize(self, name: str) -> dict[str, Estimate]:
        point = self._points[name]
        with plain_faults(point):
            found = dict(self._sums[name].summarize())
        for key, estimate in found.items():
            if not isinstance(key, str) or not isinstance(estimate, Estimate):
                raise UsageError(
                    f"{name} of the package {name_package(point)} found {key!r}: "
                    f"{type(estimate).__name__}: expected estimates by name"
                )
        return found


def _find(name: str) -> EntryPoint:
    point = find_plugin(GROUP, name)
    if point is None:
        raise UsageError(
            f"metric {name!r}: no installed package declares it (an entry point of {GROUP}): "
            "install the package that it is of"
        )
    return point


def _make_sums(point: EntryPoint) -> Sums:
    with plain_faults(point):
        sums = point.load()()
    if not all(callable(getattr(sums, method, None)) for method in _METHODS):
        raise UsageError(
            f"{point.value} of the package {name_package(point)} is no metric: expected a class "
            f"with the methods {', '.join(_METHODS)}"
        )
    made: Sums = sums
    return made
