"""Process-wide settings of Pillow, correct while it decodes and restored afterwards."""

import ctypes
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Lock

import PIL
from PIL import ImageFile

_FILTER = ("ignore", None, Warning, re.compile(r"PIL\b"), 0)


class _Switches:
    """Settings made by the first decoding thread and restored by the last."""

    def __init__(self) -> None:
        self.start_anew()

    def start_anew(self) -> None:
        # A forked process has none of the decoding threads, one of which may hold the lock.
        self._lock = Lock()
        self._num_decoding = 0
        self._made = ExitStack()

    @contextmanager
    def made(self) -> Iterator[None]:
        """Make the settings for the duration of the context, in any number of threads."""
        with self._lock:
            if self._num_decoding == 0:
                for change in (_refuse_halves, _ignore_warnings, _silence_log, _silence_libtiff):
                    self._made.enter_context(change())
            self._num_decoding += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_decoding -= 1
                if self._num_decoding == 0:
                    self._made.close()


@contextmanager
def _refuse_halves() -> Iterator[None]:
    found, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    yield
    # If someone has set it meanwhile, keep that.
    ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES or found


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    # Not by `warnings.catch_warnings`, which also clears Python's record of shown warnings.
    found = warnings.filters
    found.insert(0, _FILTER)  # type: ignore[attr-defined]
    yield
    # A caller's catch_warnings that began or ended meanwhile has replaced the list.
    for filters in (found, warnings.filters):
        with suppress(ValueError):
            filters.remove(_FILTER)  # type: ignore[attr-defined]


@contextmanager
def _silence_log() -> Iterator[None]:
    # Without any handler Python prints errors; the caller's handlers still receive them.
    logger, nowhere = logging.getLogger("PIL"), logging.NullHandler()
    logger.addHandler(nowhere)
    yield
    logger.removeHandler(nowhere)


@contextmanager
def _silence_libtiff() -> Iterator[None]:
    library = _load_libtiff()
    found = library.TIFFSetErrorHandler(None) if library else None
    yield
    if library:
        library.TIFFSetErrorHandler(found)


@cache
def _load_libtiff() -> ctypes.CDLL | None:
    # Only the library in Pillow's wheel: whether Pillow uses one of the system is unknown.
    home = Path(PIL.__file__).parent
    for path in (*home.parent.glob("pillow.libs/libtiff*"), *home.glob(".dylibs/libtiff*")):
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(path))
            library.TIFFSetErrorHandler.argtypes = [ctypes.c_void_p]
            library.TIFFSetErrorHandler.restype = ctypes.c_void_p
            return library
    return None


_switches = _Switches()
set_for_decoding = _switches.made
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_switches.start_anew)
