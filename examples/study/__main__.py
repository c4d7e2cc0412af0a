"""What does it cost a model to use its patches? Trains, audits and compares models of equal cost.

    python examples/study --preset cpu --out study

Prints the plan and an estimate of its time, trains what is missing in the folder, and writes the
table, the verdicts on the hypotheses (`findings.md`) and `figures/`. The same command resumes.
docs/study.md explains the question, the variants and what was found.
"""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from data import make_training_set, write_test_images
from figures import draw_figures
from findings import Row, judge_hypotheses, read_judged, read_rows
from plan import PRESETS, Cell, Preset
from rich.console import Console
from rich.progress import track
from training import Classifier
from variants import VARIANTS, describe_costs, make_variant

from measuring import run_cell

# For imports, audits, a trace and the like, besides forward passes, on one core of a CPU.
_SECONDS_OF_MEASURES = 30


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(
        "study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="smoke", help="which grid is trained")
    parser.add_argument("--out", type=Path, default=Path("study"), help="folder of the study")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds, instead of the preset's")
    parser.add_argument("--jobs", type=int, help="models trained at a time; by default one a core")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda"
    )
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    if options.seeds:
        preset = replace(preset, seeds=tuple(options.seeds))
    jobs = options.jobs or os.cpu_count() or 1
    run(preset, options.out, options.device, jobs)


def run(preset: Preset, out: Path, device: str, jobs: int) -> None:
    """Train and measure what is missing, then write what was found."""
    console = Console()
    cells = preset.list_cells()
    _check_folder(preset, out)
    missing = [cell for cell in cells if not (out / "cells" / cell.name / "cell.json").exists()]
    console.print(
        _describe_plan(preset, cells, missing, device, jobs), markup=False, soft_wrap=True
    )
    write_test_images(out / "scenes", preset.task, preset.audit_images, preset.noise)
    if missing:
        _run_cells(missing, preset, out, device, min(jobs, len(missing)), console)
    rows = read_rows(out)
    text = write_findings(rows, out)
    console.print(text, markup=False, soft_wrap=True)
    for figure in draw_figures(rows, out):
        console.print(f"wrote {figure}", markup=False)


def _check_folder(preset: Preset, out: Path) -> None:
    """Refuse a folder of another preset; other seeds of the same are welcome."""
    settings = json.dumps(asdict(preset) | {"seeds": None}, indent=1)
    file = out / "preset.json"
    if not file.exists():
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(settings)
    elif file.read_text() != settings:
        raise SystemExit(f"{out} is a study of another preset: choose another folder with --out")


def _run_cells(
    cells: Sequence[Cell], preset: Preset, out: Path, device: str, jobs: int, console: Console
) -> None:
    if jobs == 1:
        for cell in track(cells, "training", console=console):
            run_cell(cell, preset, out, device)
        return
    # A new interpreter each: CUDA does not survive a fork.
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        running = [pool.submit(run_cell, cell, preset, out, device) for cell in cells]
        for done in track(as_completed(running), "training", len(running), console=console):
            done.result()


def _describe_plan(
    preset: Preset, cells: Sequence[Cell], missing: Sequence[Cell], device: str, jobs: int
) -> str:
    lines = [f"{len(cells)} models, {len(missing)} of them to train, on {device}:"]
    lines += [f"  {variant:5} {VARIANTS[variant]}" for variant in (*preset.main, *preset.others)]
    lines.append("Parameters and operations of an image, and how they differ from V0's:")
    counts = Counter((cell.depth, cell.variant) for cell in cells)
    for (depth, variant), count in sorted(counts.items()):
        costs, base = (
            describe_costs(make_variant(name, depth=depth, width=preset.width, heads=preset.heads))
            for name in (variant, "V0")
        )
        lines.append(
            f"  {depth:2} blocks, {variant:5} {count:3} models: {costs.parameters:,} "
            f"({costs.parameters / base.parameters - 1:+.1%}), {costs.flops / 1e6:,.1f} MFLOP "
            f"({costs.flops / base.flops - 1:+.1%})"
        )
    if missing:
        minutes = _estimate_seconds(preset, missing, device) / min(jobs, len(missing)) / 60
        lines.append(f"About {max(1, round(minutes))} min, {jobs} at a time, with a core each.")
    return "\n".join(lines)


def _estimate_seconds(preset: Preset, cells: Sequence[Cell], device: str) -> float:
    """Time some training steps of each depth, and multiply."""
    torch.set_num_threads(1)
    by_depth = {
        cell.depth: _time_step(replace(cell, variant="V0"), preset, device) for cell in cells
    }
    # A training step takes about three times as long as its forward pass.
    measured = 2 * preset.classified_images + preset.audit_images
    measured += preset.audits * preset.callback_images
    steps = preset.steps + measured / preset.batch_size / 3
    return sum(_SECONDS_OF_MEASURES + steps * by_depth[cell.depth] for cell in cells)


def _time_step(cell: Cell, preset: Preset, device: str) -> float:
    model = Classifier(cell, preset).to(device)
    pixels, _ = make_training_set(cell.task, preset.batch_size, 0, preset.noise)
    pixels = pixels.to(device)
    for step in range(4):
        if step == 1:  # the first one warms up
            start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=preset.precision == "bf16-mixed"):
            loss = model(pixels).square().mean()
        loss.backward()
        loss.item()
    return (time.perf_counter() - start) / 3


def write_findings(rows: Sequence[Row], out: Path) -> str:
    """Write the table and the verdicts as Markdown."""
    lines = [
        "| " + " | ".join(["variant", "depth", "images", *_COLUMNS]) + " |",
        "|---|" + "---:|" * (2 + len(_COLUMNS)),
        *(_write_row(group) for group in _group_seeds(rows)),
        "",
        "In percent, a number for each seed; half depth in blocks. †: accuracy on its own training "
        "images below 95 %, left out of H1, H2 and H4.",
        "",
        *(
            f"- Maps of {name}: {result.summary.verdict.text}."
            for name, result in read_judged(out).items()
        ),
        "",
        *(
            f"- **{finding.hypothesis}: {finding.verdict}.** {finding.reason}."
            for finding in judge_hypotheses(rows, out)
        ),
    ]
    text = "\n".join(lines) + "\n"
    (out / "findings.md").write_text(text)
    return text


def _percent(number: float) -> str:
    return f"{100 * number:z.1f}"


def _whole_percent(number: float) -> str:
    return f"{100 * number:z.0f}"


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "patches": lambda row: _whole_percent(row.patches),
    "untrained": lambda row: _whole_percent(row.untrained),
    "registers": lambda row: _whole_percent(row.registers),
    "skip": lambda row: _whole_percent(row.skip),
    "CKA": lambda row: _whole_percent(row.cka),
    "half depth": lambda row: str(row.half_block),
    "train": lambda row: _percent(row.train_accuracy) + "†" * (not row.memorised),
    "accuracy": lambda row: _percent(row.accuracy),
    "without shortcut": lambda row: _percent(row.needle_accuracy),
    "transfer": lambda row: _percent(row.transfer),
}


def _group_seeds(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[Cell, list[Row]] = {}
    for row in sorted(rows, key=_place):
        groups.setdefault(replace(row.cell, seed=0), []).append(row)
    return [*groups.values()]


def _place(row: Row) -> tuple[int, int, str, int]:
    return row.cell.num_images, row.cell.depth, row.cell.variant, row.cell.seed


def _write_row(group: Sequence[Row]) -> str:
    cell = group[0].cell
    numbers = [", ".join(map(tell, group)) for tell in _COLUMNS.values()]
    return (
        "| " + " | ".join([cell.variant, str(cell.depth), f"{cell.num_images:,}", *numbers]) + " |"
    )


if __name__ == "__main__":
    main()
