"""Tables on a terminal and in a Markdown page; the machine they were made on."""

import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_LIBRARIES = ("vitscope", "torch", "torchvision", "timm", "transformers", "numpy")


@dataclass(frozen=True)
class Table:
    """Rows under named columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]  # a text for each column


@dataclass(frozen=True)
class Section:
    """What one part found."""

    title: str
    how: str  # how it was measured
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()  # what to know about them, a line each


def print_results(about: str | None, describe: Callable[[Path], Section]) -> int:
    """The command of a module: prints a section for each of the results it is given."""
    from cyclopts import App  # here: a measured process need not hold it

    app = App(name=f"python -m benchmarks.{Path(sys.argv[0]).stem}", help=about)

    @app.default
    def main(*results: Path) -> int:
        """Print a section for each result.

        Args:
            results: Folders of results.

        Returns:
            0.
        """
        for folder in results:
            print(render_section(describe(folder)))
        return 0

    return app()


def render_section(section: Section) -> str:
    """A section in Markdown that reads well as it is."""
    parts = [f"## {section.title}", section.how, *map(_render_table, section.tables)]
    if section.notes:
        parts.append("\n".join(f"- {note}" for note in section.notes))
    return "\n\n".join(parts) + "\n"


def _render_table(table: Table) -> str:
    rows = [list(table.columns), *map(list, table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(c.ljust(w) for c, w in zip(row, widths, strict=True))} |" for row in rows
    )


def render_page(sections: Iterable[str], command: str) -> str:
    """The whole page."""
    return "\n".join([_HEADER.format(command=command, machine=describe_machine()), *sections])


def describe_machine() -> str:
    """The machine and the versions, as a Markdown list."""
    import torch  # here, because it reads the number of threads when it is first imported

    from vitscope.runs.resources import list_versions

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = ", ".join(f"{k} {v}" for k, v in list_versions().items() if k in _LIBRARIES)
    lines = [
        f"processor: {_name_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory",
        f"torch runs on {torch.get_num_threads()} threads, capability "
        f"{torch.backends.cpu.get_cpu_capability()}",
        f"GPU: {gpu}",
        f"{platform.system()}, {' '.join(platform.libc_ver())}, Python {platform.python_version()}",
        versions,
    ]
    return "\n".join(f"- {line}" for line in lines)


def _name_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "unknown")


_HEADER = """\
# Benchmarks

Made by `{command}`. Seconds depend on the machine; the ratios are what to look at. Weights are
random unless stated otherwise: speed and memory do not depend on them.

{machine}

For a ratio, both sides run in turn in one process, batch by batch or round by round, each once
untimed first. It is written `median (lowest to highest)` of the rounds. Peak memory is the peak
resident memory of a process that does one thing only; *added* is what the work took after
everything was imported, loaded and decoded.

Findings behind defaults, with DINOv2-S at 224 px on two cores:

- The float32 forward pass runs at 88 % of the machine's matrix peak. torch.compile gains 2 % and
  is not used.
- Decoding takes 3.4 ms per image, the forward pass 69 ms, and worker processes cost more than they
  save. On a CPU images are decoded in the main process unless `--num-workers` is set.
- Draft decoding of JPEG changes pixels visibly and is off by default.
"""
