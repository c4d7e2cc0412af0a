"""The program: its commands, exit codes and error output.

Exit codes: 0 done, 1 failed, 2 bad usage.
"""

import os
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from io import TextIOWrapper
from typing import Any, TextIO, cast

from cyclopts import App, CycloptsError, Parameter

import vitscope
from vitscope.cli.make_maps import explain, judge
from vitscope.cli.models import models
from vitscope.cli.remedy import remedy
from vitscope.cli.reproduce import reproduce
from vitscope.cli.run_file import add_config
from vitscope.cli.run_models import audit, demo, one_shot
from vitscope.cli.serve import serve
from vitscope.cli.settings import group_options, in_options
from vitscope.cli.use_results import cite, figures, merge, report
from vitscope.errors import UsageError, VitscopeError
from vitscope.extras import tell_unexpected
from vitscope.files.printable import printable


def _show_default(value: Any) -> str | None:
    """What the help says of a default."""
    # It goes without saying that a switch is off.
    return None if value is None or value is False or value == "" else str(value)


app = App(
    name="vitscope",
    version=vitscope.__version__,
    version_flags=("--version", "-V"),
    help=(
        "Tells you whether the attention maps of your Vision Transformer can be believed: how "
        "much of its global feature really comes from where its [CLS] attention points."
    ),
    help_epilogue="Start with:  vitscope demo",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
    config=add_config,
    default_parameter=Parameter(negative=(), show_default=_show_default),
)
_DEBUG = "VITSCOPE_DEBUG"

for _command in (audit, demo, one_shot, models, explain, judge, merge, figures, report, cite):
    app.command(group_options(_command))
app.command(group_options(reproduce))
app.command(remedy)
app.command(group_options(serve))
app.register_install_completion_command(
    help="Install completion of commands and options for this shell (bash, zsh, fish, PowerShell)."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    # SIGTERM cleans up like Ctrl-C; characters the terminal cannot show are replaced.
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    output = _Output(sys.stdout)
    with redirect_stdout(cast("TextIO", output)):
        code = _run(arguments)
        output.flush()
    if output.error is not None and not isinstance(output.error, BrokenPipeError):
        reason = output.error.strerror
        return _fail(f"standard output cannot be written to ({reason}); all results are saved", 1)
    return code


class _Output:
    """Standard output that ignores further writes once one has failed: the run continues."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or pathlib.Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - to the end
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        if self.error is None:
            try:
                act()
            except OSError as error:
                self.error = error
                # Otherwise Python would try to flush the rest of the buffer at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        app(arguments)
    except CycloptsError as error:
        return _fail(str(error), 2)
    except VitscopeError as error:
        return _fail(str(error), 2 if isinstance(error, UsageError) else 1, error)
    except KeyboardInterrupt as error:
        told = "stopped" if _notes_of(error) else "stopped; unfinished work was removed"
        return _fail(told, 1, error)
    except Exception as error:
        if os.environ.get(_DEBUG):
            raise
        return _fail(f"{tell_unexpected(error)} (set {_DEBUG}=1 to see where)", 1, error)
    return 0


def _notes_of(error: BaseException | None) -> list[str]:
    # They say what remains of the work.
    return getattr(error, "__notes__", [])


def _fail(message: str, code: int, error: BaseException | None = None) -> int:
    message = "; ".join([message, *_notes_of(error)])
    line = f"vitscope: {printable(in_options(' '.join(message.split())))}"
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")
    return code
