"""The options of all commands in groups, as their help shows them."""

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Annotated, TypeVar, get_type_hints

from cyclopts import Group, Parameter

Command = TypeVar("Command", bound=Callable[..., None])

_WHAT = """
folder images model layer layers size imagenet smoke families sizes checkpoints masks reference
cls_term renormalize classifier readout
"""
_OPTIONS = {
    "What": _WHAT,
    "How much": "limit num_images draws examples seed verified",
    "Output": "out overwrite resume report format heads features gallery",
    "Speed": "device dtype batch_size num_workers draft",
    "Scale": "engine address shard shard_size",
}
_GROUPS = {
    option: Group(name, sort_key=number)
    for number, (name, options) in enumerate(_OPTIONS.items(), 1)
    for option in options.split()
}


def group_options(command: Command) -> Command:
    """Give the options of a command, those of its settings included, their groups."""
    settings = [kind for kind in get_type_hints(command).values() if is_dataclass(kind)]
    for annotated in (command, *settings):
        for name, hint in get_type_hints(annotated, include_extras=True).items():
            if name in _GROUPS:
                annotated.__annotations__[name] = Annotated[hint, Parameter(group=_GROUPS[name])]
    return command
