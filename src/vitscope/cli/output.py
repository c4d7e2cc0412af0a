"""The terminal: consoles, progress bars, and what a run prints."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from vitscope.cli.run_file import NO_OPTIONS, Config
from vitscope.cli.settings import in_options
from vitscope.files.json_files import read_json
from vitscope.files.printable import printable, printable_path
from vitscope.files.storage import MARKER

if TYPE_CHECKING:
    from vitscope.results.saved_result import SavedResult


_UNWRAPPED = 10_000


class RateColumn(ProgressColumn):
    """Images per second, or another unit given by the task's field `unit`."""

    def render(self, task: Task) -> Text:
        """Render the current speed."""
        speed = task.finished_speed or task.speed
        if speed is None and task.elapsed and task.completed:
            speed = task.completed / task.elapsed
        unit = task.fields.get("unit", "images")
        if speed is None:
            return Text("")
        told = f"{speed:.1f}" if speed >= 0.1 else f"{speed:.1g}"
        return Text(f"{told} {unit}/s", style="progress.data.speed")


class LineConsole(Console):
    """A console that also prints lines as they are, without markup and wrapping."""

    def tell(self, line: str, style: str = "") -> None:
        """Print a line."""
        self.print(Text(line, style=style), soft_wrap=True)


def make_console(*, quiet: bool = False) -> LineConsole:
    """Make the console for results: as wide as the terminal, and without one as wide as a line."""
    console = LineConsole(quiet=quiet)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNWRAPPED
    return console


def make_progress(console: Console) -> Progress:
    """Make a progress bar with count, speed and time left."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=console,
    )


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a command prints, and the options that repeat its run.

    Attributes:
        config: TOML file of options, with paths from its folder; run.toml in a result repeats its
            run. Options given as well take precedence.
        quiet: Print nothing but errors.
        json: Print nothing but each model's summary, as a line of JSON.
    """

    config: Config = NO_OPTIONS
    quiet: bool = False
    json: bool = False

    @cached_property
    def console(self) -> LineConsole:
        """For results, on standard output."""
        return make_console(quiet=self.quiet or self.json)

    @cached_property
    def bars(self) -> LineConsole:
        """For progress, on standard error."""
        return LineConsole(stderr=True, quiet=self.quiet)

    @staticmethod
    def warn(told: str) -> None:
        """Say on standard error what a result lacks, even if quiet."""
        LineConsole(stderr=True).tell(printable(in_options(told)), "yellow")

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


class OutputWithoutJson(Output):
    """What a command prints whose results are no summaries of models."""

    left_out = "json"
