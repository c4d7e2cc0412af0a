"""Does [CLS] attend to patches or to registers: figure 2a."""

import textwrap
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes

from vitscope.figures.drawing import Drawing, NothingToDrawError, describe_n, select
from vitscope.figures.panels import finish, make_panels
from vitscope.figures.saved import ModelResult, format_millions
from vitscope.figures.style import INK, TERM_COLOURS, in_style, literal
from vitscope.results.choices import LAYER, count_cls

_TICK_LETTERS = 12
_FEWEST_SLOTS = 3
_FEWEST_FOR_SHAPE = 20
"""From so many images on the shape of a distribution is worth drawing."""

_SIDES = {
    "own": ("patches", "registers", "patches / (patches + registers)"),
    "registers": (
        "patches",
        "registers and [CLS] itself",
        "patches / (patches + registers + [CLS])",
    ),
    "patches": (
        "patches and [CLS] itself",
        "registers",
        "(patches + [CLS]) /\n(patches + [CLS] + registers)",
    ),
}
"""What an attention of 1 and of 0 is on, and the ratio, by where [CLS]'s own part is counted."""


@in_style
def plot_patch_share(results: Iterable[ModelResult]) -> Drawing:
    """Attention of [CLS] on patches against registers: its distribution over images, by size."""
    counted = count_cls("patches", "registers")
    selection = select(results, _read_shares, choices=[counted, LAYER])
    patches, registers, ratio = _SIDES[counted.agree(selection.results) or "own"]
    figure, panels = make_panels(len(selection.families), panel_height_in=2.3)
    for (family, members), panel in zip(selection.families.items(), panels, strict=True):
        for place, (_, shares) in enumerate(members):
            _plot_distribution(panel, place, shares)
        panel.set_xticks(range(len(members)), [_name_size(model) for model, _ in members])
        slack = max(0.6, (_FEWEST_SLOTS - len(members) + 1) / 2)
        panel.set_xlim(-slack, len(members) - 1 + slack)
        panel.set_ylim(-0.02, 1.02)
        panel.set_title(literal(family))
        panel.grid(axis="y")
    panels[0].set_ylabel(ratio)
    notes = [
        f"[CLS] attention mass of the last block, mean over heads: 1 = all on {patches}, 0 = all "
        f"on {registers}. Distribution over images, {describe_n(selection.results)}; box: "
        "quartiles, whiskers: 5 to 95 % of the images, dot: mean.",
        *selection.choices,
    ]
    finish(figure, notes, omitted=selection.omitted)
    return selection.draw(figure)


def _read_shares(result: ModelResult) -> Float64[np.ndarray, " image"]:
    if result.num_registers == 0:
        raise NothingToDrawError("no registers")
    shares = result.read_column("patch_share")
    if shares is None or not np.isfinite(shares).any():
        raise NothingToDrawError("no patch share per image")
    defined: Float64[np.ndarray, " image"] = shares[np.isfinite(shares)]
    return defined


def _plot_distribution(panel: Axes, place: int, shares: Float64[np.ndarray, " image"]) -> None:
    colour = TERM_COLOURS["patches"]
    if shares.size >= _FEWEST_FOR_SHAPE and np.ptp(shares) > 1e-3:
        parts = panel.violinplot(shares, [place], widths=0.8, showextrema=False)
        for body in parts["bodies"]:  # type: ignore[attr-defined]
            body.set(facecolor=colour, alpha=0.3, edgecolor=colour, linewidth=0.5)
    low, first, median, third, high = np.quantile(shares, [0.05, 0.25, 0.5, 0.75, 0.95])
    box = {"whislo": low, "q1": first, "med": median, "q3": third, "whishi": high, "fliers": []}
    line = {"color": colour, "linewidth": 0.8}
    panel.bxp(
        [box],
        positions=[place],
        widths=0.16,
        showfliers=False,
        boxprops=line,
        whiskerprops=line,
        capprops=line,
        medianprops={"color": colour, "linewidth": 1.6},
        manage_ticks=False,
    )
    panel.plot([place], [shares.mean()], marker="o", color=INK, markersize=3, linestyle="none")


def _name_size(model: ModelResult) -> str:
    if model.size is None or model.params_m is None:
        return literal("\n".join(textwrap.wrap(model.short_label, _TICK_LETTERS)))
    return literal(f"{model.size}\n{format_millions(model.params_m)}")
