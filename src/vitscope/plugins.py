"""What other installed packages add, found by the entry points that they declare."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points

import torch

from vitscope.errors import UsageError, VitscopeError


def find_plugin(group: str, name: str) -> EntryPoint | None:
    """The entry point of a name that an installed package declares in a group."""
    found = list(entry_points(group=group, name=name))
    if len(found) > 1:
        packages = ", ".join(sorted(map(name_package, found)))
        raise UsageError(
            f"several installed packages declare {name} in {group} ({packages}): uninstall all "
            "but one"
        )
    return found[0] if found else None


def name_package(point: EntryPoint) -> str:
    """The package that declares an entry point, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


@contextmanager
def plain_faults(point: EntryPoint) -> Iterator[None]:
    """Blame what fails inside on the package that it is of."""
    try:
        yield
    except (VitscopeError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise VitscopeError(
            f"{point.name} of the package {name_package(point)} failed ({reason}): update the "
            "package, or tell its authors"
        ) from error
