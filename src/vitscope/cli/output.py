"""What a run prints, and the file of options that repeats it."""

import json
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, ArgumentCollection, Parameter, Token
from cyclopts.argument import Argument
from cyclopts.config import Dict
from rich.console import Console, RenderableType
from rich.text import Text

import vitscope
from vitscope.cli.console import make_console
from vitscope.errors import UsageError
from vitscope.files.json_files import read_json
from vitscope.files.printable import printable, printable_path
from vitscope.files.storage import MARKER, RUN_FILE, staged_file
from vitscope.images.urls import is_url, show_url

if TYPE_CHECKING:
    from vitscope.results.saved_result import SavedResult

_CONFIG = "--config"
_OF_ONE_RUN = {_CONFIG, "--overwrite", "--resume", "--quiet", "--json"}
_WHOLE_NUMBER = re.compile(r"0|-?[1-9]\d*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a command prints, and the options that repeat its run.

    Attributes:
        config: TOML file with options of this command, such as run.toml in a result, which repeats
            its run. Options given here as well take precedence.
        quiet: Print nothing but errors.
        json: Print each model's summary as one line of JSON, and nothing else on standard output.
    """

    config: Annotated[str, Parameter(metavar="PATH")] = ""
    quiet: bool = False
    json: bool = False

    @cached_property
    def console(self) -> Console:
        """For results, on standard output."""
        return make_console(quiet=self.quiet or self.json)

    @cached_property
    def bars(self) -> Console:
        """For progress, on standard error."""
        return Console(stderr=True, quiet=self.quiet)

    @staticmethod
    def warn(told: str) -> None:
        """Say on standard error what a result lacks, even if quiet."""
        text = Text(printable(told), style="yellow")
        Console(stderr=True).print(text, soft_wrap=True)

    def conclude(
        self,
        result: "SavedResult",
        make: Callable[[Any], RenderableType],
        *,
        soft_wrap: bool = False,
    ) -> None:
        """Print a result, and save the options of its run with it.

        A result that was kept has those of the run that made it.
        """
        if self.config and not (result.folder / RUN_FILE).exists():
            with staged_file(result.folder / RUN_FILE) as file:
                file.write_text(self.config, encoding="utf-8", errors="surrogateescape")
        if self.json:
            sys.stdout.write(json.dumps(read_json(result.folder / MARKER)) + "\n")
        self.console.print(make(result.summary), soft_wrap=soft_wrap)


def add_config(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Add the options of the file that --config names; its value becomes all options, as TOML."""
    config = next((one for one in arguments if one.name == _CONFIG), None)
    if config is None:
        return
    if config.tokens:
        path = config.tokens[-1].value
        options = _read_options(path)
        for argument in arguments:
            if not argument.name.startswith(("-", "*")):  # has a place instead of a name
                given = options.pop(argument.name.lower(), [])
                if not argument.tokens:
                    values = given if isinstance(given, list) else [given]
                    argument.tokens += [Token(value=str(value)) for value in values]
        for command in reversed(commands):  # else an option named as a command is left out
            options = {command: options}
        Dict(options, source=path)(app, commands, arguments)
    config.tokens[:] = [Token(keyword=_CONFIG, value=_write_options(commands, arguments))]


def _read_options(path: str) -> dict[str, Any]:
    try:
        # As it was written: paths need not be UTF-8.
        return tomllib.loads(Path(path).read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{printable_path(Path(path))} cannot be read ({printable(str(reason))}): expected a "
            'TOML file of options such as model = ["dinov2-small"]'
        ) from None


def _write_options(commands: Sequence[str], arguments: ArgumentCollection) -> str:
    # Values are written as JSON, which TOML reads alike but for one character.
    lines = [f"# vitscope {' '.join(commands)}, version {vitscope.__version__}"]
    given = [token.value for argument in arguments for token in argument.tokens]
    if any(_without_secret(value) != value for value in given):
        lines.append("# URLs are shown without user, password and query: give these again.")
    for argument in arguments:
        if argument.tokens and argument.name not in _OF_ONE_RUN:
            values = [_as_value(argument, token) for token in argument.tokens]
            value = json.dumps(values if len(values) > 1 else values[0], ensure_ascii=False)
            name = argument.name.lstrip("-").lower()
            lines.append(f"{name} = {value}".replace("\x7f", r"\u007f"))
    return "\n".join(lines) + "\n"


def _as_value(argument: Argument, token: Token) -> bool | int | str:
    if argument.hint is bool:
        given = token.implicit_value
        return given if isinstance(given, bool) else token.value.lower() == "true"
    if _WHOLE_NUMBER.fullmatch(token.value):
        return int(token.value)
    return _without_secret(token.value)


def _without_secret(value: str) -> str:
    return show_url(value) if is_url(value) else value
