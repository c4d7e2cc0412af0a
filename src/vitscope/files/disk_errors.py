"""What a disk does not take, in one line that names the place; errors of nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vitscope.errors import DiskError


@contextmanager
def plain_disk_errors(target: Path) -> Iterator[None]:
    """Say in one line that a place does not take what is written.

    Every `OSError` within counts as one of writing there: nothing else may happen within, no
    reading of what others wrote, no model and no callback.

    Args:
        target: The place; it is named instead of one within it.

    Yields:
        Nothing.

    Raises:
        DiskError: Instead of what the system or a library says.
    """
    try:
        with named_disk_errors(target):
            yield
    except (OSError, SafetensorError) as error:
        raise DiskError(_describe(target, error)) from error


@contextmanager
def named_disk_errors(target: Path) -> Iterator[None]:
    """Name one place in the errors of writes within it; any other error passes as it came.

    Args:
        target: The place.

    Yields:
        Nothing.

    Raises:
        DiskError: Naming the place.
    """
    try:
        yield
    except DiskError as error:
        if error.__cause__ is None:  # it came from another process, whose disk it was
            raise
        raise DiskError(_describe(target, error.__cause__)) from error.__cause__


def _describe(target: Path, cause: BaseException) -> str:
    reason = getattr(cause, "strerror", None) or str(cause)
    return f"cannot write {target}: {reason}; nothing of it was left behind"
