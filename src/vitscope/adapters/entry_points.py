"""Adapters provided by other installed packages."""

from importlib.metadata import EntryPoint
from typing import Protocol, runtime_checkable

from torch import nn

from vitscope.errors import UsageError
from vitscope.models.base import ViTAdapter
from vitscope.plugins import name_package, plain_faults


@runtime_checkable
class Library(Protocol):
    """Interface of an entry point's class, which is constructed without arguments."""

    def load(self, name: str) -> ViTAdapter:
        """Load the model whose id is LIBRARY:NAME."""
        ...

    def wrap(self, module: nn.Module) -> ViTAdapter:
        """Adapt a module of the library."""
        ...


def load_from(point: EntryPoint, name: str) -> ViTAdapter:
    """Load a model through an entry point."""
    with plain_faults(point):
        return _check_adapter(point, _make_library(point).load(name))


def wrap_by(point: EntryPoint, module: nn.Module) -> ViTAdapter:
    """Adapt a module through an entry point."""
    with plain_faults(point):
        return _check_adapter(point, _make_library(point).wrap(module))


def _make_library(point: EntryPoint) -> Library:
    library = point.load()()
    if not isinstance(library, Library):
        raise UsageError(
            f"{point.value} of the package {name_package(point)} is no adapter: expected a class "
            "with the methods load(name) and wrap(module)"
        )
    return library


def _check_adapter(point: EntryPoint, adapter: object) -> ViTAdapter:
    if not isinstance(adapter, ViTAdapter):
        raise UsageError(
            f"{point.value} of the package {name_package(point)} returned a "
            f"{type(adapter).__name__}: expected a ViTAdapter"
        )
    return adapter
