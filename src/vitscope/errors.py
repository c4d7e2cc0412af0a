"""The errors a person sees: each says what was given, what was expected and what to do.

Exit codes follow from the class: `UsageError` and its children end the command line with 2 (asked
for something that cannot be), every other `VitscopeError` with 1 (it was asked rightly and failed).
"""


class VitscopeError(Exception):
    """Anything vitscope refuses or cannot do; the message is one line meant for a person."""


class UsageError(VitscopeError):
    """What was asked for does not exist or does not fit: a path, a size, a layer, an option."""


class UnknownModelError(UsageError):
    """No model answers to the id that was given."""


class UnsupportedModelError(VitscopeError):
    """The model is known, but one of its settings would make the decomposition wrong."""


class ModelUnreachableError(VitscopeError):
    """The weights are neither cached nor available over the network."""


class ImbalanceError(VitscopeError):
    """A ledger does not add up to what the model itself computed."""


class NonFiniteError(VitscopeError):
    """An activation is NaN or infinite.

    Attributes:
        image: Position within the batch of the first image concerned.
    """

    def __init__(self, message: str, *, image: int) -> None:
        super().__init__(message)
        self.image = image

    def __reduce__(self) -> tuple[object, ...]:
        # How it is made again where it is sent: in another process.
        return _make_non_finite, (*self.args, self.image)


def _make_non_finite(message: str, image: int) -> NonFiniteError:
    return NonFiniteError(message, image=image)


class MemoryShortageError(VitscopeError):
    """There is not enough memory for a batch; a smaller one may fit."""


class ImageReadError(VitscopeError):
    """One image cannot be read; a run skips, counts and lists it."""


class DiskError(VitscopeError):
    """The disk does not take what is written; the cause is what the system or a library said."""


class ResultError(VitscopeError):
    """A saved result is missing, damaged, or does not fit the one it is to be merged with."""
