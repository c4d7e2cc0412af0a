"""Exceptions for users: each message says what was given, what was expected and what to do.

The exit code of the command line follows from the class: 2 for `UsageError` and its subclasses
(invalid request), 1 for every other `VitscopeError` (valid request that failed).
"""

from functools import partial


def first_line(error: BaseException) -> str:
    """The first line of a library's error; advice of its own may follow."""
    return str(error).strip().partition("\n")[0]


class VitscopeError(Exception):
    """Base class of all errors raised by vitscope; the message is one line meant for a person."""


class UsageError(VitscopeError):
    """The request is invalid: a path, size, layer or option that does not exist or does not fit."""


class UnknownModelError(UsageError):
    """No model has the given id."""


class UnsupportedModelError(VitscopeError):
    """The model is known, but has a part or setting for which the decomposition would be wrong."""


class ModelUnreachableError(VitscopeError):
    """The weights are neither cached nor available over the network."""


class ImbalanceError(VitscopeError):
    """A ledger does not add up to the model's own output."""


class NonFiniteError(VitscopeError):
    """An activation is NaN or infinite, first in the image at this position of the batch."""

    def __init__(self, message: str, *, image: int) -> None:
        super().__init__(message)
        self.image = image

    def __reduce__(self) -> tuple[object, ...]:
        # Pickling must restore `image` as well.
        return partial(NonFiniteError, image=self.image), self.args


class MemoryShortageError(VitscopeError):
    """A batch does not fit in memory; a smaller one may."""


class ImageReadError(VitscopeError):
    """An image cannot be read; a run skips, counts and lists it."""


class DiskError(VitscopeError):
    """Writing to the disk failed; the cause is the error of the system or library."""


class ResultError(VitscopeError):
    """A saved result is missing, damaged, or does not fit the result it is to be merged with."""
