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
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vitscope.errors import ResultError, VitscopeError
from vitscope.files.printable import printable

T = TypeVar("T")
Reader = Callable[[object], Any]

LARGEST = 1e300
"""Largest number allowed, so that arithmetic on two of them stays finite."""
MOST = 2**53
"""Largest count allowed, so that JSON readers with only floats read it exactly."""
_LONGEST_PLACE, _LONGEST_VALUE = 100, 60


class Mark(ABC):
    """A constraint on an annotated value."""

    @abstractmethod
    def _explain(self, value: Any) -> str:
        """Describe what is wrong with the value, as a clause; empty if nothing is."""


@dataclass(frozen=True)
class Within(Mark):
    """The number has bounds."""

    low: int
    high: int

    def _explain(self, value: float) -> str:
        inside = self.low <= value <= self.high
        return "" if inside else f"expected {self.low} to {self.high}, found {value}"


@dataclass(frozen=True)
class Defined(Mark):
    """The number is not undefined."""

    def _explain(self, value: float) -> str:
        return "expected a number, found null" if math.isnan(value) else ""


@dataclass(frozen=True)
class NotEmpty(Mark):
    """The array or object is not empty."""

    def _explain(self, value: Collection[Any]) -> str:
        return "" if value else "expected at least one entry, found none"


@dataclass(frozen=True)
class Keys(Mark):
    """The object has the given keys."""

    names: tuple[str, ...]

    def _explain(self, value: Mapping[str, Any]) -> str:
        return next((f"{name} is missing" for name in self.names if name not in value), "")


Finite = Annotated[float, Defined()]
"""A number that is not undefined."""


class _DamageError(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.place: list[str] = []  # innermost first


def read_typed(kind: type[T], content: object, name: str) -> T:
    """Build a dataclass from JSON."""
    hint: Any = kind
    try:
        built: T = _make_reader(hint)(content)
    except _DamageError as damage:
        place = printable(".".join(reversed(damage.place)))[:_LONGEST_PLACE]
        where = f" at {place}" if place else ""
        raise ResultError(f"{name} is damaged{where}: {damage.reason}") from None
    return built


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


@cache
def _make_reader(hint: Any) -> Reader:
    if hint in _PLAIN:
        return _PLAIN[hint]
    if is_dataclass(hint) and isinstance(hint, type):
        return _make_dataclass_reader(hint)
    return _MAKERS[get_origin(hint)](*get_args(hint))


def _expected(what: str, found: object) -> _DamageError:
    if isinstance(found, (dict, list)):
        shown = "an object" if isinstance(found, dict) else "an array"
    else:
        shown = "null" if found is None else printable(repr(found))
    shown = shown if len(shown) <= _LONGEST_VALUE else f"{shown[:_LONGEST_VALUE]} …"
    return _DamageError(f"expected {what}, found {shown}")


def _read_number(content: object) -> float:
    if content is None:
        return math.nan
    if (
        not isinstance(content, (int, float))
        or isinstance(content, bool)
        or not abs(content) <= LARGEST
    ):
        raise _expected("a number", content)
    return float(content)


def _read_count(content: object) -> int:
    if not isinstance(content, int) or isinstance(content, bool) or not 0 <= content <= MOST:
        raise _expected("a count", content)
    return content


def _read_text(content: object) -> str:
    if not isinstance(content, str):
        raise _expected("a text", content)
    return printable(content)


def _read_flag(content: object) -> bool:
    if not isinstance(content, bool):
        raise _expected("true or false", content)
    return content


_PLAIN: dict[Any, Reader] = {
    float: _read_number,
    int: _read_count,
    str: _read_text,
    bool: _read_flag,
    Any: lambda content: content,
}


def _read_at(place: object, read: Reader, content: object) -> Any:
    try:
        return read(content)
    except _DamageError as damage:
        damage.place.append(str(place))
        raise


def _make_dataclass_reader(kind: Any) -> Reader:
    readers = {name: _make_reader(hint) for name, hint in list_fields(kind).items()}
    required = {
        field.name
        for field in fields(kind)
        if field.default is MISSING and field.default_factory is MISSING
    }

    def read(content: object) -> Any:
        if not isinstance(content, dict):
            raise _expected("an object", content)
        values = {}
        for name, read_field in readers.items():
            if name in content:
                values[name] = _read_at(name, read_field, content[name])
            elif name in required:
                raise _DamageError(f"{name} is missing")
        try:
            return kind(**values)
        except VitscopeError as error:  # constraints of the class itself
            raise _DamageError(printable(str(error))) from None

    return read


def _make_literal_reader(*choices: str) -> Reader:
    def read(content: object) -> Any:
        if not isinstance(content, str) or content not in choices:
            raise _expected(" or ".join(map(repr, choices)), content)
        return content

    return read


def _make_optional_reader(*hints: Any) -> Reader:
    (hint,) = (hint for hint in hints if hint is not type(None))
    read_defined = _make_reader(hint)
    return lambda content: None if content is None else read_defined(content)


def _make_tuple_reader(*hints: Any) -> Reader:
    any_length = hints[-1] is ...
    items = [Finite if hint is float else hint for hint in hints if hint is not ...]
    readers = [_make_reader(hint) for hint in items]

    def read(content: object) -> Any:
        if not isinstance(content, list):
            raise _expected("an array", content)
        used = readers * len(content) if any_length else readers
        if len(content) != len(used):
            raise _DamageError(f"expected {len(used)} entries, found {len(content)}")
        pairs = enumerate(zip(used, content, strict=True))
        return tuple(_read_at(index, read_item, item) for index, (read_item, item) in pairs)

    return read


def _make_mapping_reader(_: Any, hint: Any) -> Reader:
    read_value = _make_reader(hint)

    def read(content: object) -> Any:
        if not isinstance(content, dict):
            raise _expected("an object", content)
        return {printable(key): _read_at(key, read_value, item) for key, item in content.items()}

    return read


def _make_marked_reader(hint: Any, *marks: Mark) -> Reader:
    read_any = _make_reader(hint)

    def read(content: object) -> Any:
        value = read_any(content)
        for mark in marks:
            if reason := mark._explain(value):
                raise _DamageError(reason)
        return value

    return read


_MAKERS: dict[Any, Callable[..., Reader]] = {
    Annotated: _make_marked_reader,
    Literal: _make_literal_reader,
    Union: _make_optional_reader,
    UnionType: _make_optional_reader,
    Mapping: _make_mapping_reader,
    dict: _make_mapping_reader,
    tuple: _make_tuple_reader,
}
