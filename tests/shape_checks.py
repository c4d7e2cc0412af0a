"""Checks calls of vitscope against the shapes in its annotations while tests run.

mypy checks all other types. jaxtyping's own decorator also checks those, binds arguments again and
checks each of them twice: audits of tiny models took twice as long.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import jaxtyping
import numpy as np
from beartype.door import is_bearable
from jaxtyping import jaxtyped
from torch import Tensor

SOURCE = Path(find_spec("vitscope").origin).parent
_unchecked = False


@contextmanager
def unchecked():
    """Call without shape checks, as a user does who passes another shape than annotated."""
    global _unchecked
    _unchecked = True
    try:
        yield
    finally:
        _unchecked = False


def install():
    """Check the functions and dataclasses of all modules imported from now on."""
    jaxtyping.jaxtyped = lambda **_: checked  # the name the hook decorates with
    modules = [
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        for path in sorted(SOURCE.rglob("*.py"))
        if "from jaxtyping import" in path.read_text(encoding="utf-8")
    ]
    jaxtyping.install_import_hook(modules, None)


def checked(given):
    """A function whose shapes are checked at every call; a dataclass when it is constructed."""
    if inspect.isclass(given):
        if dataclasses.is_dataclass(given) and not hasattr(given.__init__, "__wrapped__"):
            given.__init__ = checked(given.__init__)
        return given
    hints = {name: hint for name, hint in given.__annotations__.items() if _has_shape(hint)}
    if not hints:
        return given
    positional = given.__code__.co_varnames[: given.__code__.co_argcount]
    fitting = set()  # to look there is ten times as fast as to check again

    @functools.wraps(given)
    def call(*args, **kwargs):
        if _unchecked:
            return given(*args, **kwargs)
        named = (*zip(positional, args, strict=False), *kwargs.items())
        values = {name: value for name, value in named if name in hints}
        check(values, looks := _look(values))
        result = given(*args, **kwargs)
        if "return" in hints:
            check(values | {"return": result}, (looks, _look(result)))
        return result

    def check(values, looks):
        if looks not in fitting:
            _check(values, hints, given.__qualname__)
            fitting.add(looks)

    return call


def _check(values, hints, called):
    with jaxtyped("context"):
        for name, value in values.items():
            if not is_bearable(value, hints[name]):
                told = repr(value)
                if hasattr(value, "shape"):
                    told = f"{value.dtype} {tuple(value.shape)}"
                raise TypeError(f"{called}, {name}: {told}: expected {hints[name]}")


def _look(value):
    """All of a value that its check depends on."""
    if isinstance(value, (Tensor, np.ndarray)):
        return type(value), value.dtype, value.shape
    if isinstance(value, Mapping):
        return type(value), tuple([(key, _look(one)) for key, one in value.items()])
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_look, value))
    return type(value)


def _has_shape(hint):
    parts = hint if isinstance(hint, list) else typing.get_args(hint)
    is_array = inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(_has_shape, parts))
