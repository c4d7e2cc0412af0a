"""Everything in one command: `python -m benchmarks --out benchmarks.md`."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from benchmarks.page import describe_machine, render_page
from benchmarks.parts import PARTS, run_part
from benchmarks.settings import Settings

app = App(name="python -m benchmarks", help=__doc__)


@app.default
def main(
    *images: Path,
    only: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    out: Path | None = None,
    threads: int | None = None,
    tiny: bool = False,
) -> int:
    """Run the benchmarks, each part in a process of its own, and print a table for each.

    Args:
        images: Folders of images; some are made on the spot where none are given.
        only: Parts to run: forward, eager, masked, gram, coverage, cka, half, throughput, passes,
            faults, verdicts, few, maps, remedies, gpu.
        out: Markdown file to write.
        threads: Threads to compute on; what torch takes by default.
        tiny: Tiny models, few images: whether everything runs. The numbers then mean nothing.

    Returns:
        0, or 1 where a part failed.
    """
    if unknown := set(only or ()) - set(PARTS):
        raise SystemExit(f"no part {', '.join(sorted(unknown))}: expected {', '.join(PARTS)}")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by every process that is started
    settings = Settings(images=images, tiny=tiny)
    print(describe_machine(), end="\n\n", flush=True)
    texts, failed = [], False
    for name in only or PARTS:
        text, error = run_part(name, settings)
        failed = failed or error
        texts.append(text)
        print(text, flush=True)
    if out is not None:
        command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
        out.write_text(render_page(texts, command), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(app())
