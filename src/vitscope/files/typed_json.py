r"""JSON read as frozen dataclasses, by the annotations of their fields.

| annotation | JSON |
|---|---|
| `float` | a number, or null where it is undefined (NaN); in a tuple a number |
| `int` | a whole number from 0 to 2^53 |
| `str`, `bool`, `Literal[...]` | a text, true or false, one of the texts |
| `T \| None` | `T` or null |
| `tuple[T, ...]`, `tuple[T, U]` | an array |
| `Mapping[str, T]`, `dict[str, T]` | an object with any keys |
| a dataclass | an object with a key for each field, which fields with a default may lack |
| `Annotated[T, mark]` | `T` within the bounds of a mark |
| `Any` | whatever there is |

Unknown keys are ignored. `dataclasses.asdict` is the inverse.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vitscope.errors import ResultError, VitscopeError
from vitscope.files.json_files import read_json
from vitscope.files.printable import printable, printable_path

T = TypeVar("T")

LARGEST = 1e300
"""Largest number allowed, so that arithmetic on two of them stays finite."""
MOST = 2**53
"""Largest count allowed, so that JSON readers with only floats read it exactly."""
_LONGEST_PLACE, _LONGEST_VALUE = 100, 60


@dataclass(frozen=True)
class Within:
    """The number has bounds."""

    low: int
    high: int


@dataclass(frozen=True)
class Defined:
    """The number is not undefined."""


@dataclass(frozen=True)
class NotEmpty:
    """The array or object is not empty."""


@dataclass(frozen=True)
class Keys:
    """The object has the given keys."""

    names: tuple[str, ...]


Finite = Annotated[float, Defined()]
"""A number that is not undefined."""


class _DamageError(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.place: list[str] = []  # innermost first


def read_typed(kind: type[T], content: object, name: str) -> T:
    """Build a dataclass from JSON."""
    try:
        built: T = _read(kind, content)
    except _DamageError as damage:
        place = printable(".".join(reversed(damage.place)))[:_LONGEST_PLACE]
        where = f" at {place}" if place else ""
        raise ResultError(f"{name} is damaged{where}: {damage.reason}") from None
    return built


def read_typed_file(kind: type[T], path: Path) -> T:
    """Build a dataclass from a JSON file."""
    return read_typed(kind, read_json(path), printable_path(path))


@cache
def list_fields(kind: type) -> Mapping[str, Any]:
    """The fields of a dataclass with their types."""
    bound: dict[Any, Any] = {}
    for base in kind.__mro__:
        for generic in vars(base).get("__orig_bases__", ()):
            variables = getattr(get_origin(generic), "__parameters__", ())
            bound |= zip(variables, get_args(generic), strict=False)
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: _substitute(hints[field.name], bound) for field in fields(kind)}


def _substitute(hint: Any, bound: Mapping[Any, Any]) -> Any:
    if isinstance(hint, TypeVar):
        return bound[hint]
    if variables := getattr(hint, "__parameters__", ()):
        return hint[tuple(bound[variable] for variable in variables)]
    return hint


def _read(hint: Any, content: Any) -> Any:
    read, arguments = _find_reader(hint)
    if read is not None:
        return read(content, *arguments)
    if hint is Any or (hint is float and content is None):
        return math.nan if hint is float else content
    what, is_valid, convert = _PLAIN[hint]
    _expect(what, content, is_valid(content))
    return convert(content)


@cache  # a summary has thousands of values
def _find_reader(hint: Any) -> tuple[Callable[..., Any] | None, tuple[Any, ...]]:
    if is_dataclass(hint):
        return _read_dataclass, (hint,)
    return _READERS.get(get_origin(hint)), get_args(hint)


def _read_each(parts: Iterable[tuple[Any, Any, Any]]) -> dict[Any, Any]:
    # Values by place, from (place, hint, content).
    found = {}
    for place, hint, content in parts:
        try:
            found[place] = _read(hint, content)
        except _DamageError as damage:
            damage.place.append(str(place))
            raise
    return found


def _expect(what: str, found: object, is_valid: bool) -> None:
    if is_valid:
        return
    if isinstance(found, (dict, list)):
        shown = "an object" if isinstance(found, dict) else "an array"
    else:
        shown = "null" if found is None else printable(repr(found))
    shown = shown if len(shown) <= _LONGEST_VALUE else f"{shown[:_LONGEST_VALUE]} …"
    raise _DamageError(f"expected {what}, found {shown}")


def _read_dataclass(content: Any, kind: Any) -> Any:
    _expect("an object", content, isinstance(content, dict))
    hints = list_fields(kind).items()
    values = _read_each((name, hint, content[name]) for name, hint in hints if name in content)
    for field in fields(kind):
        has_default = field.default is not MISSING or field.default_factory is not MISSING
        if field.name not in values and not has_default:
            raise _DamageError(f"{field.name} is missing")
    try:
        return kind(**values)
    except VitscopeError as error:  # constraints of the class itself
        raise _DamageError(printable(str(error))) from None


def _read_literal(content: Any, *choices: str) -> Any:
    _expect(" or ".join(map(repr, choices)), content, type(content) is str and content in choices)
    return content


def _read_optional(content: Any, *hints: Any) -> Any:
    (hint,) = (hint for hint in hints if hint is not NoneType)
    return None if content is None else _read(hint, content)


def _read_array(content: Any, *hints: Any) -> Any:
    _expect("an array", content, isinstance(content, list))
    items = hints[:1] * len(content) if hints[-1] is ... else hints
    if len(content) != len(items):
        raise _DamageError(f"expected {len(items)} entries, found {len(content)}")
    defined = (Finite if hint is float else hint for hint in items)
    return tuple(_read_each(zip(range(len(items)), defined, content, strict=True)).values())


def _read_mapping(content: Any, _: Any, hint: Any) -> Any:
    _expect("an object", content, isinstance(content, dict))
    values = _read_each((key, hint, value) for key, value in content.items())
    return {printable(key): value for key, value in values.items()}


def _read_marked(content: Any, hint: Any, *marks: Any) -> Any:
    value = _read(hint, content)
    for mark in marks:
        match mark:
            case Within(low, high) if not low <= value <= high:
                raise _DamageError(f"expected {low} to {high}, found {value}")
            case Defined() if math.isnan(value):
                raise _DamageError("expected a number, found null")
            case NotEmpty() if not value:
                raise _DamageError("expected at least one entry, found none")
            case Keys(names) if missing := [name for name in names if name not in value]:
                raise _DamageError(f"{missing[0]} is missing")
    return value


_PLAIN: Mapping[Any, tuple[str, Callable[[Any], bool], Callable[[Any], Any]]] = {
    float: ("a number", lambda found: type(found) in (int, float) and abs(found) <= LARGEST, float),
    int: ("a count", lambda found: type(found) is int and 0 <= found <= MOST, int),
    str: ("a text", lambda found: type(found) is str, printable),
    bool: ("true or false", lambda found: type(found) is bool, bool),
}
"""What is expected of a value without parts, and how it is kept."""
_READERS: Mapping[Any, Callable[..., Any]] = {
    Annotated: _read_marked,
    Literal: _read_literal,
    Union: _read_optional,
    UnionType: _read_optional,
    Mapping: _read_mapping,
    dict: _read_mapping,
    tuple: _read_array,
}
