"""What makes an image go to the registers: rank correlations with what can be seen in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from vitscope.figures.drawing import Drawing, NothingToDrawError, select
from vitscope.figures.numbers import Interval, find, find_terms, number, read_estimate, write_number
from vitscope.figures.panels import finish, make_panels
from vitscope.figures.saved import ModelResult
from vitscope.figures.style import BASE_PT, HAIRLINE, INK, colour_term, in_style, literal, mark_term
from vitscope.results.choices import LAYER, count_cls

_SOURCES = ("patches", "registers", "skip")
_TARGETS = {
    "patch_share": "attention: patch share",
    **{f"share_{source}": f"share of {source}" for source in _SOURCES},
    **{f"centred_share_{source}": f"centred share of {source}" for source in _SOURCES},
}
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class _Correlation:
    """Rank correlation of a target with one covariate.

    Attributes:
        rho: With its interval.
        clear: Whether it is told from none after correction for the number of covariates.
        n: Images.
    """

    rho: Interval
    clear: bool
    n: int


Correlations = Mapping[str, _Correlation]


@in_style
def plot_covariates(result: ModelResult) -> Drawing:
    """One model's rank correlations of image covariates with where the output comes from."""
    selection = select([result], _read, choices=[count_cls(*_SOURCES), LAYER])
    found = selection.found[0][1]
    rows = list(dict.fromkeys(name for target in found.values() for name in target))
    figure, panels = make_panels(len(found), columns=4, panel_height_in=0.75 + 0.17 * len(rows))
    for (target, correlations), panel in zip(found.items(), panels, strict=True):
        _plot_forest(panel, rows, correlations, target.rsplit("_", 1)[-1])
        panel.set_title(f"{_TARGETS[target]}\n{_describe_fit(result, target)}")
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    for panel in panels:
        panel.set_xlabel("Spearman's ρ")
    notes = [
        f"n = {_describe_counts(list(found.values()))} images; bars: 95 % intervals. Filled: "
        "told from 0 (p < 0.05 after Holm's correction for the number of rows). R²: of a ridge "
        "regression on all rows, for images that it was not fitted to.",
        *selection.choices,
    ]
    finish(figure, notes, heading=f"What goes with an image's sources: {result.label}")
    return selection.draw(figure)


def _read(result: ModelResult) -> dict[str, Correlations]:
    tree = find_terms(result.summary, "covariates", "correlations")
    found: dict[str, Correlations] = {}
    for target in _TARGETS:
        correlations = {}
        for name, content in find_terms(tree, target).items():
            rho = read_estimate(content, "rho")
            if rho is not None:
                p = number(find(content, "p_holm"))
                clear = p is not None and p < _SIGNIFICANT
                correlations[name] = _Correlation(rho, clear, int(number(find(content, "n")) or 0))
        if correlations:
            found[target] = correlations
    if not found:
        raise NothingToDrawError("its correlations with covariates are undefined")
    return found


def _plot_forest(panel: Axes, rows: Sequence[str], correlations: Correlations, source: str) -> None:
    colour = colour_term("patches" if source == "share" else source)
    for name, one in correlations.items():
        below, above = one.rho.errors
        panel.errorbar(
            [one.rho.value],
            [rows.index(name)],
            xerr=[[below], [above]],
            color=colour,
            marker=mark_term("patches" if source == "share" else source),
            markerfacecolor=colour if one.clear else "white",
            elinewidth=0.9,
            linestyle="none",
            label=name,
        )
    panel.axvline(0, color=INK, linewidth=0.6, zorder=1)
    for row in range(len(rows)):
        panel.axhline(row, color=HAIRLINE, linewidth=0.4, zorder=0)
    panel.set_xlim(-1.05, 1.05)
    panel.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−½", "0", "½", "1"])
    panel.set_yticks(range(len(rows)), [literal(name.replace("_", " ")) for name in rows])
    panel.tick_params(axis="y", length=0)
    panel.title.set_fontsize(BASE_PT)


def _describe_fit(result: ModelResult, target: str) -> str:
    r2 = number(find(result.summary, "covariates", "regressions", target, "r2"))
    return "R² not known" if r2 is None else f"R² = {write_number(r2)}"


def _describe_counts(targets: Sequence[Correlations]) -> str:
    counts = sorted({one.n for correlations in targets for one in correlations.values()})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
