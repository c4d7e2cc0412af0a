"""What a disk does not take, in one line that names the place; errors of nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError

from vitscope.errors import DiskError


@contextmanager
def plain_disk_errors(target: Path) -> Iterator[None]:
    """Say in one line that a place does not take what is written.

    Every `OSError` within counts as one of writing there: nothing else may happen within, no
    reading of what others wrote, no model and no callback.
    """
    try:
        with named_disk_errors(target):
            yield
    except (OSError, SafetensorError) as error:
        _refuse(target, error)


@contextmanager
def named_disk_errors(target: Path) -> Iterator[None]:
    """Name one place in the errors of writes within it; any other error passes as it came."""
    try:
        yield
    except DiskError as error:
        if error.__cause__ is None:  # it came from another process, whose disk it was
            raise
        _refuse(target, error.__cause__)


def _refuse(target: Path, cause: BaseException) -> NoReturn:
    reason = getattr(cause, "strerror", None) or str(cause)
    raise DiskError(f"cannot write {target}: {reason}; nothing of it was left behind") from cause
