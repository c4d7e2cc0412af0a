"""The file of options that repeats a run: what `--config` names, and run.toml in a result.

Relative paths in it start at its own folder.
"""

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape, has_magic
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, ArgumentCollection, Parameter, Token, UnknownOptionError
from cyclopts.argument import Argument
from cyclopts.config import Dict

import vitscope
from vitscope.adapters.model_ids import LIBRARIES
from vitscope.errors import UsageError
from vitscope.files.printable import printable, printable_path
from vitscope.files.storage import MARKER, RUN_FILE, staged_file
from vitscope.images.urls import is_url, show_url
from vitscope.weights.catalogue import CATALOGUE
from vitscope.weights.folders import find_folder

if TYPE_CHECKING:
    from vitscope.results.saved_result import SavedResult

_CONFIG = "--config"
_OF_ONE_RUN = {_CONFIG, "--overwrite", "--resume", "--quiet", "--json"}
_COMMAND = re.compile(r"# (vitscope [a-z -]+), version ", re.ASCII)
_WHOLE_NUMBER = re.compile(r"0|-?[1-9]\d*", re.ASCII)

_PATHS = {"out", "folder", "masks", "judged", "reference", "one-shot", "imagenet", "checkpoints"}
_PATTERNS = {"images", "references"}


@dataclass(frozen=True)
class RunOptions:
    """All options of a run, as TOML, and the file that --config named."""

    text: str = ""
    source: str = ""

    def save(self, folder: Path, *, replace: bool = False) -> None:
        """Save them in a result; one that was kept has those of the run that made it."""
        target = folder / RUN_FILE
        if not self.text or (target.exists() and not replace):
            return
        head = [line for line in self.text.splitlines() if line.startswith("#")]
        options = move_options(tomllib.loads(self.text), Path(), folder)
        with staged_file(target, replaces=lambda _: replace) as file:
            file.write_text(_as_toml(head, options), encoding="utf-8", errors="surrogateescape")

    def tell_changes(self, result: "SavedResult") -> str:
        """What differs from the result that the file came from; empty if that cannot be told."""
        folder = Path(self.source).parent
        if not self.source or not (folder / MARKER).is_file():
            return ""
        from vitscope.results.repeats import tell_changes

        places = [folder.parent / result.folder.name]
        if isinstance(tomllib.loads(self.text).get("model"), str):
            places.append(folder)  # a model's folder may be named from elsewhere
        there = [one for one in places if one.resolve() != result.folder.resolve()]
        return next(filter(None, (tell_changes(type(result)(one), result) for one in there)), "")


NO_OPTIONS = RunOptions()


def _take_options(_: object, tokens: Sequence[Token]) -> RunOptions:
    return RunOptions(tokens[-1].value, tokens[-1].source)


Config = Annotated[
    RunOptions,
    Parameter(
        converter=_take_options, n_tokens=1, accepts_keys=False, show_default=False, metavar="PATH"
    ),
]


def add_config(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Add the options of the file that --config names; its value becomes all options, as TOML."""
    config = next((one for one in arguments if one.name == _CONFIG), None)
    if config is None:
        return
    path = ""
    if config.tokens:
        path = config.tokens[-1].value
        options = move_options(_read_options(path), Path(path).parent, Path())
        for argument in arguments:
            if not argument.name.startswith(("-", "*")):  # has a place instead of a name
                given = options.pop(argument.name.lower(), [])
                if not argument.tokens:
                    values = given if isinstance(given, list) else [given]
                    argument.tokens += [Token(value=str(value)) for value in values]
        for command in reversed(commands):  # else an option named as a command is left out
            options = {command: options}
        try:
            Dict(options, source=path)(app, commands, arguments)
        except UnknownOptionError:
            _check_command(path, commands)
            raise
    config.tokens[:] = [
        Token(keyword=_CONFIG, value=_tell_options(commands, arguments), source=path)
    ]


def _check_command(path: str, commands: Sequence[str]) -> None:
    found = _COMMAND.match(_read_text(path))
    if found is not None and found[1] != f"vitscope {' '.join(commands)}":
        raise UsageError(
            f"{printable_path(Path(path))} has options of {found[1]}: run {found[1]} --config "
            f"{quote(path)} --out NEW"
        ) from None


def _read_text(path: str) -> str:
    # As it was written: paths need not be UTF-8.
    return Path(path).read_text(encoding="utf-8", errors="surrogateescape")


def _read_options(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(_read_text(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{printable_path(Path(path))} cannot be read ({printable(str(reason))}): expected a "
            'TOML file of options such as model = ["dinov2-small"]'
        ) from None


def _tell_options(commands: Sequence[str], arguments: ArgumentCollection) -> str:
    head = [f"# vitscope {' '.join(commands)}, version {vitscope.__version__}"]
    given = [token.value for argument in arguments for token in argument.tokens]
    if any(_without_secret(value) != value for value in given):
        head.append("# URLs are shown without user, password and query: give these again.")
    options: dict[str, Any] = {}
    for argument in arguments:
        if argument.tokens and argument.name not in _OF_ONE_RUN:
            values = [_as_value(argument, token) for token in argument.tokens]
            name = argument.name.lstrip("-").lower()
            options[name] = values if len(values) > 1 else values[0]
    return _as_toml(head, options)


def _as_toml(head: Sequence[str], options: Mapping[str, Any]) -> str:
    # Values are written as JSON, which TOML reads alike but for one character.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in options.items()]
    return "\n".join([*head, *lines, ""]).replace("\x7f", r"\u007f")


def _as_value(argument: Argument, token: Token) -> bool | int | str:
    if argument.hint is bool:
        given = token.implicit_value
        return given if isinstance(given, bool) else token.value.lower() == "true"
    is_path = argument.name.lstrip("-").lower() in MOVES
    if not is_path and _WHOLE_NUMBER.fullmatch(token.value):
        return int(token.value)
    return _without_secret(token.value)


def _without_secret(value: str) -> str:
    return show_url(value) if is_url(value) else value


def move_options(options: Mapping[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """Options with relative paths that start at another folder."""
    return {
        name: [_move_option(name, each, old, new) for each in value]
        if isinstance(value, list)
        else _move_option(name, value, old, new)
        for name, value in options.items()
    }


def _move_option(name: str, value: Any, old: Path, new: Path) -> Any:
    move = MOVES.get(name.replace("_", "-"))
    return move(value, old, new) if move is not None and isinstance(value, str) else value


def _move_path(value: str, old: Path, new: Path, *, wildcards: bool = False) -> str:
    rest = os.path.expanduser(value)  # noqa: PTH111 - which raises where there is no home
    if not rest or os.path.isabs(rest) or is_url(rest):  # noqa: PTH117 - the text stays as it is
        return rest
    base = old.resolve()
    # ".." is the folder above, also of a link.
    while (first := rest.partition("/"))[0] in {".", ".."}:
        base, rest = (base.parent if first[0] == ".." else base), first[2]
    folder = _find_way(base, new.resolve())
    if not rest:
        return folder
    if wildcards and has_magic(rest) and not os.path.lexists(base / rest):
        folder = escape(folder)  # its own name is taken literally
    if folder == "." and not rest.startswith("~"):  # which alone would be somebody's home
        return rest
    return os.path.join(folder, rest)  # noqa: PTH118 - as above


def _find_way(folder: str | Path, start: str | Path) -> str:
    # What has nothing in common with the start moves without it.
    try:
        common = Path(os.path.commonpath([folder, start]))
    except ValueError:  # another drive
        return str(folder)
    return str(folder) if common == common.parent else os.path.relpath(folder, start)


def _move_model(value: str, old: Path, new: Path) -> str:
    library, _, name = value.partition(":")
    if library in LIBRARIES and LIBRARIES[library].takes_file:
        base, at, file = name.partition("@")
        base = _move_model(base, old, new) if library == "ph-reg" else base
        return f"{library}:{base}{at}{_move_path(file, old, new)}"
    is_path = value.startswith((".", "~")) or find_folder(str(old / value)) is not None
    if not is_path or value in CATALOGUE:
        return value
    moved = _move_path(value, old, new)
    # Without "./" it could be a name of the catalogue or of a hub.
    return moved if os.path.isabs(moved) or moved.startswith(".") else f"./{moved}"  # noqa: PTH117


def _move_rest(start: str, value: str, old: Path, new: Path) -> str:
    # What follows the start, which is a pattern, is a path.
    found = re.match(start, value, re.DOTALL)
    return value if found is None else found[0] + _move_path(value[found.end() :], old, new)


MOVES: Mapping[str, Callable[[str, Path, Path], str]] = {
    **dict.fromkeys(_PATHS, _move_path),
    **dict.fromkeys(_PATTERNS, partial(_move_path, wildcards=True)),
    "log": partial(_move_rest, "tensorboard:"),
    "model": _move_model,
    "remedy": partial(_move_rest, r"(?=.*\.safetensors\Z)"),
    "target": partial(_move_rest, r"image:|(?!logit:)(?=.*\.(safetensors|npy|pth?)\Z)"),
}
"""Options that are paths or may hold one, and how these are moved."""
