"""Extensions by other installed packages, found through entry points."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points

from vitscope.errors import UsageError, VitscopeError


def find_plugin(group: str, name: str) -> EntryPoint | None:
    """Find the entry point with a name in a group; None if no package declares it."""
    found = list(entry_points(group=group, name=name))
    if len(found) > 1:
        packages = ", ".join(sorted(map(name_package, found)))
        raise UsageError(
            f"several installed packages declare {name} in {group} ({packages}): uninstall all "
            "but one"
        )
    return found[0] if found else None


def name_package(point: EntryPoint) -> str:
    """Name and version of the package that declares an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


@contextmanager
def plain_faults(point: EntryPoint) -> Iterator[None]:
    """Turn unexpected errors into a `VitscopeError` that names the package at fault."""
    import torch  # here, because importing it is slow

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
