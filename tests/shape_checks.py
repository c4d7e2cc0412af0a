"""Checks calls of vitscope against the shapes in its annotations while tests run.

mypy checks all other types. jaxtyping's own decorator also checks those, binds arguments again and
checks each of them twice: audits of tiny models took twice as long.
"""

import dataclasses
import functools
import inspect
import typing
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import jaxtyping
from beartype.door import is_bearable
from jaxtyping import jaxtyped

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
    found_right = set()

    @functools.wraps(given)
    def call(*args, **kwargs):
        if _unchecked:
            return given(*args, **kwargs)
        given_values = [*zip(positional, args, strict=False), *kwargs.items()]
        values = [(name, value) for name, value in given_values if name in hints]
        check(values)
        result = given(*args, **kwargs)
        if "return" in hints:
            check([*values, ("return", result)])
        return result

    def check(values):
        looks = tuple((name, _look(value)) for name, value in values)
        if looks in found_right:  # ten times as fast as to check it again
            return
        with jaxtyped("context"):
            for name, value in values:
                if not is_bearable(value, hints[name]):
                    is_array = hasattr(value, "shape")
                    told = f"{value.dtype} {tuple(value.shape)}" if is_array else repr(value)
                    raise TypeError(f"{given.__qualname__}, {name}: {told}: expected {hints[name]}")
        found_right.add(looks)

    return call


def _look(value):
    """All of a value that its check depends on."""
    if hasattr(value, "shape"):
        return type(value), value.dtype, tuple(value.shape)
    if isinstance(value, dict):
        return dict, tuple((key, _look(one)) for key, one in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_look, value))
    return type(value)


def _has_shape(hint):
    parts = hint if isinstance(hint, list) else typing.get_args(hint)
    is_array = inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(_has_shape, parts))
