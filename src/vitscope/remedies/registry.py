"""All remedies by the names of the command line."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from vitscope.errors import UsageError
from vitscope.remedies.directions import ProjectDirection
from vitscope.remedies.head import AttentiveHead
from vitscope.remedies.registers import TestTimeRegisters
from vitscope.remedies.remedy import Remedy, tell_value
from vitscope.remedies.sinks import SwitchSinks
from vitscope.remedies.tokens import HideTokens, PositionMean, ReplaceTokens, Skip


@dataclass(frozen=True)
class Entry:
    """A remedy that can be asked for by name."""

    kind: type[Remedy]
    fixed: Mapping[str, str | bool]  # settings that the name stands for
    meaning: str  # what it does, in one line


REMEDIES: Mapping[str, Entry] = {
    "zero": Entry(ReplaceTokens, {"by": "zero"}, "tokens replaced by 0"),
    "mean": Entry(ReplaceTokens, {"by": "mean"}, "tokens replaced by their mean over images"),
    "noise": Entry(ReplaceTokens, {"by": "noise"}, "tokens replaced by their mean plus noise"),
    "shuffle": Entry(ReplaceTokens, {"by": "shuffle"}, "tokens replaced by those of another image"),
    "mask": Entry(HideTokens, {"how": "mask"}, "tokens hidden from attention"),
    "unread": Entry(HideTokens, {"how": "unread"}, "tokens that get attention but are not read"),
    "interpolate": Entry(
        ReplaceTokens,
        {"by": "interpolate", "tokens": "high_norm"},
        "high-norm patches replaced by the mean of their neighbours",
    ),
    "clip": Entry(
        ReplaceTokens,
        {"by": "clip", "tokens": "high_norm"},
        "high-norm patches scaled to the median norm",
    ),
    "skip": Entry(Skip, {}, "the skip connection of [CLS] closed, scaled, or replaced by its mean"),
    "test-time-registers": Entry(
        TestTimeRegisters, {}, "a new token takes what neurons write to high-norm patches"
    ),
    "position-mean": Entry(
        PositionMean, {}, "the mean of the patches at each place of the grid removed"
    ),
    "sinks": Entry(SwitchSinks, {}, "attention sinks of one kind switched off in their heads"),
    "project-direction": Entry(
        ProjectDirection, {}, "the direction that the blocks amplify, removed from patches along it"
    ),
    "attentive-head": Entry(
        AttentiveHead, {}, "a head that reads patches alone, distilled from the global feature"
    ),
}
"""All remedies by name."""

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "block numbers such as 0+1",
}
_READERS: Mapping[type, Callable[[str], Any]] = {
    bool: {"true": True, "false": False}.__getitem__,
    int: int,
    float: float,
    tuple: lambda value: tuple(map(int, value.split("+"))),
}


def parse_remedy(text: str) -> Remedy:
    """Make a remedy of its name and settings.

    Args:
        text: Such as "mean" or "mask:tokens=cls,layers=0+1": a name of `REMEDIES`, then settings.

    Returns:
        The remedy, not yet fitted.

    Raises:
        UsageError: If there is no such remedy or setting, or a value is not one of its.
    """
    name, _, rest = text.partition(":")
    if name == "shift-average":
        raise UsageError(
            "shift-average is the mean of several runs, which no attention row makes, so it cannot "
            "be audited: call average_views(vit, pixels) of vitscope.remedies.views for its "
            "features"
        )
    if name not in REMEDIES:
        raise UsageError(f"no remedy is called {name!r}: choose from {', '.join(REMEDIES)}")
    entry = REMEDIES[name]
    hints = list_settings(name)
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in hints:
            raise UsageError(
                f"the remedy {name} has no setting {key!r}: choose from {', '.join(hints)}"
            )
        settings[key] = _parse(f"{key} of {name}", value, hints[key])
    return entry.kind(**{**entry.fixed, **settings})


def list_settings(name: str) -> dict[str, Any]:
    """The settings of a remedy and their types."""
    entry = REMEDIES[name]
    hints = get_type_hints(entry.kind)
    names = [field.name for field in fields(entry.kind)]
    free = {key: hints[key] for key in names if key not in entry.fixed}
    return {key: hint for key, hint in free.items() if _tell_kinds(hint)}


def tell_settings(name: str) -> str:
    """The settings of a remedy with their values, in words."""
    entry = REMEDIES[name]
    defaults: dict[str, Any] = {field.name: field.default for field in fields(entry.kind)}
    defaults |= entry.fixed
    return "; ".join(
        f"{key} [{_tell_kinds(hint)}]"
        if defaults[key] is None
        else f"{key}={tell_value(defaults[key])} [{_tell_kinds(hint)}]"
        for key, hint in list_settings(name).items()
    )


def _tell_kinds(hint: Any) -> str:
    kinds = [kind for kind in _list_kinds(hint) if kind is not NoneType]
    return "|".join(_KINDS.get(kind, kind) for kind in kinds)


def _list_kinds(hint: Any) -> list[Any]:
    # The members of a union, and what a Literal may be.
    if hint in {bool, int, float, NoneType} or isinstance(hint, str):
        return [hint]
    if get_origin(hint) is tuple:
        return [tuple]
    return [kind for part in get_args(hint) for kind in _list_kinds(part)]


def _parse(what: str, value: str, hint: Any) -> Any:
    for kind in _list_kinds(hint):
        if value == kind:
            return value
        with suppress(ValueError, KeyError):
            return _READERS[kind](value)
    expected = _tell_kinds(hint).replace("|", " or ")
    raise UsageError(f"{what} was given as {value!r}: expected {expected}")
