"""Write errors as one line that names the target."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError

from vitscope.errors import DiskError


@contextmanager
def plain_disk_errors(target: Path) -> Iterator[None]:
    """Turn every `OSError` while writing a target into a `DiskError`; do nothing else inside."""
    try:
        with named_disk_errors(target):
            yield
    except (OSError, SafetensorError) as error:
        _refuse(target, error)


@contextmanager
def named_disk_errors(target: Path) -> Iterator[None]:
    """Name the target in write errors of the body; all other errors pass through."""
    try:
        yield
    except DiskError as error:
        if error.__cause__ is None:  # it comes from another process, which wrote to its own disk
            raise
        _refuse(target, error.__cause__)


def _refuse(target: Path, cause: BaseException) -> NoReturn:
    reason = getattr(cause, "strerror", None) or str(cause)
    raise DiskError(f"cannot write {target}: {reason}; no partial file remains") from cause
