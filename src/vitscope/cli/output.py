"""What a run prints."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter
from rich.console import RenderableType

from vitscope.cli.console import LineConsole, make_console
from vitscope.cli.run_file import NO_OPTIONS, Config
from vitscope.cli.settings import in_options
from vitscope.files.json_files import read_json
from vitscope.files.printable import printable, printable_path
from vitscope.files.storage import MARKER

if TYPE_CHECKING:
    from vitscope.results.saved_result import SavedResult


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Terminal:
    """What a command prints, and the options that repeat its run.

    Attributes:
        config: TOML file of options, with paths from its folder; run.toml in a result repeats its
            run. Options given as well take precedence.
        quiet: Print nothing but errors.
    """

    config: Config = NO_OPTIONS
    quiet: bool = False

    @cached_property
    def console(self) -> LineConsole:
        """For results, on standard output."""
        return make_console(quiet=self.quiet)

    @cached_property
    def bars(self) -> LineConsole:
        """For progress, on standard error."""
        return LineConsole(stderr=True, quiet=self.quiet)

    @staticmethod
    def warn(told: str) -> None:
        """Say on standard error what a result lacks, even if quiet."""
        LineConsole(stderr=True).tell(printable(in_options(told)), "yellow")


@dataclass(frozen=True, kw_only=True)
class Output(Terminal):
    """What a command that saves results prints.

    Attributes:
        json: Print nothing but each model's summary, as a line of JSON.
    """

    json: bool = False

    @cached_property
    def console(self) -> LineConsole:
        """For results, on standard output."""
        return make_console(quiet=self.quiet or self.json)

    def conclude(
        self,
        result: "SavedResult",
        make: Callable[[Any], RenderableType],
        *,
        place: str = "",
        soft_wrap: bool = False,
    ) -> None:
        """Print a result and where it is, and save the options of its run with it."""
        self.config.save(result.folder)
        if self.json:
            sys.stdout.write(json.dumps(read_json(result.folder / MARKER)) + "\n")
        self.console.print(make(result.summary), soft_wrap=soft_wrap)
        if told := self.config.tell_changes(result):
            self.console.tell(told, "dim")
        place = place or printable_path(result.folder)
        self.console.tell(f"“{printable(result.name)}” written to {place}\n")
