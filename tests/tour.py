"""Generates the outputs and images of the tour, the README and the page of figures.

python tests/tour.py    runs the commands of docs/index.md and those below (some minutes), and
                        rewrites docs/tour/

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

from PIL import Image
from rich.console import Console

from page_blocks import ROOT, read_blocks
from vitscope import AuditResult
from vitscope.figures import plot
from vitscope.figures.draw import save_figure
from vitscope.images.scenes import make_scenes
from vitscope.terminal import make_report

SHOWN = ROOT / "docs" / "tour"
WIDTH = 84
FIGURES = ("variance_share", "fig5b_layer_similarity")
DINO, PLANTED = "vitscope-demo/dinov2-small", "scenes/scenes-v1"
CAT = "vitscope-demo/images/chelsea_whole.jpg"
OF_DINO, OF_SCENES = ("--model", "dinov2-small"), ("--model", "scenes:v1")
COMMANDS = (
    ("demo", "--scenes", "--no-report", "--out", "scenes"),
    (
        *("audit", "vitscope-demo/images", *OF_DINO, "--layers", "all", "--trace", "20"),
        *("--limit", "120", "--gallery", "0", "--no-report", "--out", "layers"),
    ),
    ("explain", CAT, *OF_DINO, "--heads", "--out", "heads"),
    ("judge", "scenes/scenes/images", *OF_SCENES, "--limit", "20", "--out", "judged"),
    ("one-shot", "classes", *OF_SCENES, "--out", "one-shot"),
    (
        *("remedy", "compare", "scenes/scenes/images", *OF_SCENES, "--limit", "200"),
        *("--remedy", "shuffle", "--remedy", "skip", "--remedy", "attentive-head"),
        *("--gallery", "0", "--out", "remedies"),
    ),
)
"""What docs/figures.md shows besides the tour's own results."""
PLOTS = {
    "patch_share": [PLANTED],
    "anatomy": [PLANTED],
    "restricted_cka": [DINO, PLANTED],
    "one_shot": ["one-shot/scenes-v1"],
    "norms": [DINO, PLANTED],
    "residual_cka": [DINO, PLANTED],
    "attention_mass": [DINO, PLANTED],
    "sources_by_layer": ["layers/dinov2-small"],
    "shares_by_depth": ["layers/dinov2-small"],
    "routes_by_block": ["layers/dinov2-small"],
    "gram_ledger": [PLANTED],
    "directions": [PLANTED],
    "interdependence": [PLANTED],
    "covariates": [PLANTED],
    "heads_by_layer": ["heads/dinov2-small"],
    "high_norm_fraction": [DINO, PLANTED],
    "high_norm_layers": [DINO],
    "map_scores": ["judged/scenes-v1"],
    "map_curves": ["judged/scenes-v1"],
    "judged_maps": ["judged/scenes-v1"],
    "remedies": ["remedies/scenes-v1/comparison"],
}
"""Figures of docs/figures.md, by the name that `plot` takes, and the results that they are of."""


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
    shrink(home / "cat" / "figures" / "chelsea_whole.png", SHOWN / "explained.png")


def shrink(image, to):
    """Half the size, in 256 colours that are close to all of the image's."""
    half = Image.open(image).convert("RGB").reduce(2)
    few = half.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(to, optimize=True)


def sort_scenes(home):
    """Scenes in a folder for each class."""
    scenes = make_scenes("shortcut", 160, seed=20_000, noise=130.0)
    for number, (pixels, label) in enumerate(zip(scenes.images, scenes.labels, strict=True)):
        folder = home / "classes" / f"glyph-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


def run_others(home):
    sort_scenes(home)
    for words in COMMANDS:
        run(home, *words)


def draw_plots(home):
    for name, results in PLOTS.items():
        save_figure(plot(name, [home / result for result in results]), home / f"{name}.png")
        shrink(home / f"{name}.png", SHOWN / f"{name}.png")


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
        for step in (
            *(run_commands, draw_demo, copy_figures, image_report),
            *(run_others, draw_plots),
        ):
            step(home)


if __name__ == "__main__":
    main()
