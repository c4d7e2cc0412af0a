"""Metrics of other packages, computed along with an audit's own."""

import math
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitscope.errors import ResultError, UsageError
from vitscope.files.printable import printable_path
from vitscope.files.typed_json import LARGEST
from vitscope.metrics.jackknife import Estimate
from vitscope.metrics.sums import Batch, Sums
from vitscope.plugins import find_plugin, name_package, plain_faults

GROUP = "vitscope.metrics"
"""Entry points name a class with the methods of `Sums` and no arguments; its `summarize` returns
estimates by name."""
_METHODS = ("update", "merge", "save", "load", "summarize")
_DTYPES = (torch.float64, torch.float32, torch.int64, torch.int32, torch.bool)


def find_packages(names: Iterable[str]) -> dict[str, str]:
    """Package and version of each metric, by the metric's name."""
    return {name: name_package(_find(name)) for name in names}


class OtherMetrics:
    """The sums of several metrics at one layer."""

    name: ClassVar[str] = "metrics"

    def __init__(self, packages: Mapping[str, str]) -> None:
        """Start with no images; `packages` as `find_packages` returns them."""
        self._points = {name: _find(name) for name in packages}
        for name, point in self._points.items():
            if name_package(point) != packages[name]:
                raise UsageError(
                    f"metric {name!r} needs {packages[name]}, found {name_package(point)}: install "
                    "the version that the run was started with"
                )
        self._sums = {name: _make_sums(point) for name, point in self._points.items()}
        self._has_images = False

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        self._has_images = True
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
        if self._has_images:
            # A metric that cannot be summarised fails with the first shard, not after the last.
            self.summarize()
        saved: dict[str, Tensor] = {}
        for name, sums in self._sums.items():
            with plain_faults(self._points[name]):
                found = dict(sums.save())
            for key, tensor in found.items():
                if not isinstance(tensor, Tensor) or tensor.dtype not in _DTYPES:
                    kind = getattr(tensor, "dtype", type(tensor).__name__)
                    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
                    raise self._refuse(name, f"saves {key!r} as {kind}", f"a tensor of {names}")
                # A copy: tensors that share memory are not saved.
                saved[f"{name}/{key}"] = tensor.detach().cpu().clone().contiguous()
        return saved

    def load(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Restore saved sums."""
        for name, sums in self._sums.items():
            place = f"{name}/"
            own = {k.removeprefix(place): v for k, v in tensors.items() if k.startswith(place)}
            try:
                sums.load(own, folder)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                raise ResultError(
                    f"{printable_path(folder)}: the sums of metric {name!r} cannot be read by "
                    f"{name_package(self._points[name])}: audit again"
                ) from error

    def summarize(self) -> dict[str, Any]:
        """The estimates of each metric."""
        return {"metrics": {name: self._summarize(name) for name in self._sums}}

    def _summarize(self, name: str) -> dict[str, Estimate]:
        with plain_faults(self._points[name]):
            found = dict(self._sums[name].summarize())
        for key, estimate in found.items():
            if not isinstance(key, str) or not _is_sound(estimate):
                raise self._refuse(
                    name,
                    shorten(f"found {key!r}: {estimate!r}", width=100, placeholder=" …"),
                    "an Estimate of plain numbers, finite or with a value of NaN, by name",
                )
        return found

    def _refuse(self, name: str, given: str, expected: str) -> UsageError:
        package = name_package(self._points[name])
        return UsageError(f"metric {name!r} of {package} {given}: expected {expected}")


def _is_sound(estimate: object) -> bool:
    # What reading a summary takes: an undefined value is NaN, an undefined interval None.
    if not isinstance(estimate, Estimate):
        return False
    value: Any = estimate.value
    ends: Any = estimate.ci95
    if ends is not None and not (isinstance(ends, tuple) and len(ends) == 2):
        return False
    numbers = (value, *(ends or ()))
    if any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in numbers):
        return False
    known = numbers[1:] if math.isnan(value) else numbers
    return all(abs(number) <= LARGEST for number in known)


def _find(name: str) -> EntryPoint:
    if "/" in name:
        raise UsageError(f"metric {name!r}: expected a name without a slash")
    point = find_plugin(GROUP, name)
    if point is None:
        raise UsageError(
            f"metric {name!r}: no installed package declares it (an entry point of {GROUP}): "
            "install the package that does"
        )
    return point


def _make_sums(point: EntryPoint) -> Sums:
    with plain_faults(point):
        sums: Sums = point.load()()
    if not all(callable(getattr(sums, method, None)) for method in _METHODS):
        raise UsageError(
            f"{point.value} of the package {name_package(point)} is no metric: expected a class "
            f"with the methods {', '.join(_METHODS)}"
        )
    return sums
