"""Adapters of others' packages, found by the entry points of what is installed."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, runtime_checkable

from torch import nn

from vitscope.errors import UsageError, VitscopeError
from vitscope.models.base import ViTAdapter

GROUP = "vitscope.adapters"
"""Its entries are named after the library that they adapt, and point to a class."""


@runtime_checkable
class Library(Protocol):
    """What an entry point's class must have; it is made without arguments."""

    def load(self, name: str) -> ViTAdapter:
        """Load the model whose id is LIBRARY:NAME."""
        ...

    def wrap(self, module: nn.Module) -> ViTAdapter:
        """Adapt a module of the library."""
        ...


def find_entry_point(library: str) -> EntryPoint | None:
    """The entry point of an installed package that adapts a library."""
    found = list(entry_points(group=GROUP, name=library))
    if len(found) > 1:
        packages = ", ".join(sorted(map(_name_package, found)))
        raise UsageError(
            f"several installed packages bring adapters for {library} ({packages}): uninstall all "
            "but one"
        )
    return found[0] if found else None


def load_from(point: EntryPoint, name: str) -> ViTAdapter:
    """Load a model of a library that an entry point adapts."""
    with _plain_faults(point):
        return _check_adapter(point, _make_library(point).load(name))


def wrap_by(point: EntryPoint, module: nn.Module) -> ViTAdapter:
    """Adapt a module of a library that an entry point adapts."""
    with _plain_faults(point):
        return _check_adapter(point, _make_library(point).wrap(module))


def _make_library(point: EntryPoint) -> Library:
    library = point.load()()
    if not isinstance(library, Library):
        raise UsageError(
            f"{point.value} of the package {_name_package(point)} is no adapter: expected a class "
            "with the methods load(name) and wrap(module)"
        )
    return library


def _check_adapter(point: EntryPoint, adapter: object) -> ViTAdapter:
    if not isinstance(adapter, ViTAdapter):
        raise UsageError(
            f"{point.value} of the package {_name_package(point)} returned a "
            f"{type(adapter).__name__}: expected a ViTAdapter"
        )
    return adapter


@contextmanager
def _plain_faults(point: EntryPoint) -> Iterator[None]:
    try:
        yield
    except VitscopeError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise VitscopeError(
            f"the adapter for {point.name} in the package {_name_package(point)} failed "
            f"({reason}): update the package, or tell its authors"
        ) from error


def _name_package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
