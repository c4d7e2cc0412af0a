"""The figures of the study, drawn from its folder."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from findings import Row, read_history
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plan import Cell

_SHARES = {
    "patches": "variance_share_residual_patches",
    "registers": "variance_share_residual_registers",
    "[CLS]": "variance_share_residual_cls",
    "skip": "variance_share_residual_skip",
}


def draw_figures(rows: Sequence[Row], out: Path) -> list[Path]:
    """Draw all figures as PNG and SVG files."""
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    drawn = {
        "capacity": _draw_capacity(rows),
        "trade-off": _draw_trade_off(rows),
        "time": _draw_time(rows, out),
    }
    for name, figure in drawn.items():
        for kind in ("png", "svg"):
            figure.savefig(folder / f"{name}.{kind}", dpi=120, bbox_inches="tight")
        plt.close(figure)
    return [folder / f"{name}.png" for name in drawn]


def _list_variants(rows: Sequence[Row]) -> dict[str, str]:
    names = sorted({row.cell.variant for row in rows})
    return {name: f"C{number}" for number, name in enumerate(names)}


def _draw_capacity(rows: Sequence[Row]) -> Figure:
    """Patches' share, CKA and half depth by depth; a panel for each and each training set."""
    sizes = sorted({row.cell.num_images for row in rows})
    measures = {
        "patches' variance share": lambda row: row.patches,
        "CKA with patches (unbiased)": lambda row: row.cka,
        "half depth / depth": lambda row: row.half_depth,
    }
    figure, axes = plt.subplots(
        len(measures),
        len(sizes),
        figsize=(1 + 3.2 * len(sizes), 2.4 * len(measures)),
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    colours = _list_variants(rows)
    for across, size in enumerate(sizes):
        axes[0, across].set_title(f"{size:,} training images")
        axes[-1, across].set_xlabel("depth")
        for down, (name, measure) in enumerate(measures.items()):
            axes[down, 0].set_ylabel(name)
            for place, (variant, colour) in enumerate(colours.items()):
                some = [r for r in rows if (r.cell.variant, r.cell.num_images) == (variant, size)]
                # Beside each other, so that all seeds of all variants are seen.
                x = [row.cell.depth * 1.02 ** (place - len(colours) / 2) for row in some]
                axes[down, across].scatter(
                    x, [measure(row) for row in some], 16, colour, label=variant, alpha=0.8
                )
    depths = sorted({row.cell.depth for row in rows})
    axes[0, 0].set_xscale("log")
    axes[0, 0].set_xticks(depths, map(str, depths))
    axes[0, 0].minorticks_off()
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), title="variant")
    return figure


def _draw_trade_off(rows: Sequence[Row]) -> Figure:
    """Accuracies against the patches' share; a point a model."""
    measures = {
        "accuracy": lambda row: row.accuracy,
        "accuracy without the shortcut": lambda row: row.needle_accuracy,
        "transfer (one-shot, unseen classes)": lambda row: row.transfer,
    }
    figure, axes = plt.subplots(1, len(measures), figsize=(11, 3.2), layout="constrained")
    colours = _list_variants(rows)
    for panel, (name, measure) in zip(axes, measures.items(), strict=True):
        for variant, colour in colours.items():
            some = [row for row in rows if row.cell.variant == variant]
            for memorised in (True, False):
                shown = [row for row in some if row.memorised == memorised]
                panel.scatter(
                    [row.patches for row in shown],
                    [measure(row) for row in shown],
                    18,
                    colour if memorised else "none",
                    edgecolors=colour,
                    label=variant if memorised else None,
                )
        panel.set_xlabel("patches' variance share")
        panel.set_ylabel(name)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", title="variant")
    return figure


def _draw_time(rows: Sequence[Row], out: Path) -> Figure:
    """Shares against the training step: a row a variant, a column a depth, a line a model."""
    size = max(row.cell.num_images for row in rows)
    shown = [row for row in rows if row.cell.num_images == size]
    variants = sorted({row.cell.variant for row in shown})
    depths = sorted({row.cell.depth for row in shown})
    figure, axes = plt.subplots(
        len(variants),
        len(depths),
        figsize=(1 + 2.6 * len(depths), 1.2 * len(variants)),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for down, variant in enumerate(variants):
        axes[down, 0].set_ylabel(variant)
        for across, depth in enumerate(depths):
            cells = [
                row.cell for row in shown if (row.cell.variant, row.cell.depth) == (variant, depth)
            ]
            for cell in cells:
                _draw_history(axes[down, across], out, cell)
            if not cells:
                axes[down, across].set_frame_on(False)
                axes[down, across].tick_params(left=False, bottom=False, labelbottom=False)
    for across, depth in enumerate(depths):
        axes[0, across].set_title(f"depth {depth}")
        axes[-1, across].set_xlabel("step")
    handles = [plt.Line2D([], [], color=f"C{number}") for number in range(len(_SHARES))]
    axes[0, -1].legend(handles, _SHARES, loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.suptitle(f"Variance shares of the output while training on {size:,} images")
    return figure


def _draw_history(panel: Axes, out: Path, cell: Cell) -> None:
    for number, name in enumerate(_SHARES.values()):
        history = read_history(out / "cells" / cell.name, f"vitscope/{name}")
        if history:
            panel.plot(*zip(*history, strict=True), color=f"C{number}", alpha=0.8, linewidth=1)
