"""Generates the outputs shown in the tour and the README by running their commands.

python tests/tour.py    runs the commands of docs/index.md (some minutes) and rewrites docs/tour/

Needs real weights from the packages of the demo extra, and chromium for the image of the report.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console

from page_blocks import ROOT, read_blocks
from vitscope import AuditResult
from vitscope.terminal import make_report

SHOWN = ROOT / "docs" / "tour"
WIDTH = 84
FIGURES = ("variance_share", "fig5b_layer_similarity")
LAYERS = "sources_by_layer"


def run(home, *words):
    """What a command writes to standard output."""
    done = subprocess.run(
        [Path(sys.executable).with_name("vitscope"), *words],
        cwd=home,
        env=os.environ | {"COLUMNS": str(WIDTH), "HF_HUB_OFFLINE": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def run_commands(home):
    """Run the tour's commands, writing each output that it shows to a file named by the command."""
    blocks = read_blocks(ROOT / "docs" / "index.md")
    for block in [block for block in blocks if "--8<--" in block.code]:
        (words,) = (command.split() for command in block.commands)
        lines = [line.rstrip() for line in run(home, *words[1:]).strip().splitlines()]
        (SHOWN / f"{words[1]}.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")


def draw_demo(home):
    console = Console(record=True, width=WIDTH, file=StringIO())
    console.print(make_report(AuditResult.load(home / "vitscope-demo" / "dinov2-small").summary))
    drawn = console.export_svg(title="vitscope demo")
    # Without the web font, because an image fetches nothing.
    local = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    (SHOWN / "demo.svg").write_text(local, encoding="utf-8")


def copy_figures(home):
    for name in FIGURES:
        shutil.copyfile(home / "figures" / f"{name}.svg", SHOWN / f"{name}.svg")
    image = home / "cat" / "figures" / "chelsea_whole.png"
    shutil.copyfile(image, SHOWN / "explained.png")


def draw_layers(home):
    """The figure of docs/figures.md."""
    every = ("--layers", "all", "--limit", "120", "--gallery", "0", "--out", "layers")
    run(home, "audit", "vitscope-demo/images", "--model", "dinov2-small", *every)
    run(home, "figures", "layers", "--out", "of-layers", "--format", "svg")
    shutil.copyfile(home / "of-layers" / f"{LAYERS}.svg", SHOWN / f"{LAYERS}.svg")


def image_report(home):
    subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            "--window-size=1200,1000",
            f"--screenshot={SHOWN / 'report.png'}",
            (home / "report.html").as_uri(),
        ],
        check=True,
        capture_output=True,
    )


def main():
    shutil.rmtree(SHOWN, ignore_errors=True)
    SHOWN.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for step in (run_commands, draw_demo, copy_figures, draw_layers, image_report):
            step(home)


if __name__ == "__main__":
    main()
