"""Hooks that see one forward alone: not another thread's, and not one within their own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_recorded = threading.local()


@contextmanager
def one_forward() -> Iterator[None]:
    """Record one forward: hooks made outside of this context do not see it."""
    outer = getattr(_recorded, "forward", None)
    _recorded.forward = object()
    try:
        yield
    finally:
        _recorded.forward = outer


class OwnHook:
    """A hook of vitscope, for the forward that is recorded when it is made."""

    def __init__(self, hook: Callable[..., None]) -> None:
        """Tie a hook to this forward."""
        self._hook = hook
        self._forward = _current()

    def __call__(self, *given: Any) -> None:
        """Look at what passes, if it is of this forward."""
        if _current() == self._forward:
            self._hook(*given)


def _current() -> object:
    return threading.get_ident(), getattr(_recorded, "forward", None)
