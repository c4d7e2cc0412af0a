"""The terminal: consoles and progress bars."""

import os

from rich.console import Console
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
