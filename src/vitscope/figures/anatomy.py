"""What registers, or high-norm patches, hold: figure 2b."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from vitscope.figures.drawing import Drawing, NothingToDrawError, describe_n, select
from vitscope.figures.log_axis import use_plain_ticks
from vitscope.figures.numbers import (
    Interval,
    find,
    find_terms,
    number,
    numbers,
    read_estimate,
    read_spread,
)
from vitscope.figures.panels import finish, make_panels, mark_empty, plot_intervals
from vitscope.figures.saved import ModelResult
from vitscope.figures.style import FAINT, SMALL_PT, colour_term, in_style, mark_term, name_term
from vitscope.results.choices import LAYER

_STATES = {"hidden": "hidden", "normed": "layer-\nnormed", "keys": "keys", "values": "values"}
_WIDE = 15
"""Ratio of the largest to the smallest norm from which on the axis is logarithmic."""


@dataclass(frozen=True)
class _Anatomy:
    """What the figure shows.

    Attributes:
        norms: Norm of each token.
        tokens: States of each token, as in the summary.
        analysed: The token to look at; None where no token stands out.
        outliers: Part of the images with a high-norm patch; None where not known.
        dominant: What is told of the dominant register.
    """

    norms: dict[str, Interval]
    tokens: dict[str, Any]
    analysed: str | None
    outliers: float | None
    dominant: dict[str, Any]


@in_style
def plot_anatomy(result: ModelResult) -> Drawing:
    """One model's tokens at the input of the last block (Fig. 2b)."""
    selection = select([result], _read, choices=[LAYER])
    found = selection.found[0][1]
    figure, panels = make_panels(4, columns=2, panel_height_in=2.1, share_y=False)
    norms, cosines, before, after = panels
    _plot_norms(norms, found.norms)
    _plot_cosines(cosines, found)
    _plot_dimensions((before, after), found)
    notes = [
        f"At the input of the last block; {describe_n(selection.results)}. Norms: mean over "
        "images, bars: 5 to 95 % of the images. Cosines between different images: bars: 95 % "
        "intervals.",
        *_describe_lines(found.analysed),
        *_describe_dominant(found.dominant),
        *_describe_outliers(found.outliers),
        *selection.choices,
    ]
    finish(figure, notes, heading=f"Token anatomy: {result.label}")
    return selection.draw(figure)


def _read(result: ModelResult) -> _Anatomy:
    tree = find(result.summary, "anatomy")
    spreads = {name: read_spread(norm) for name, norm in find_terms(tree, "norms").items()}
    norms = {name: norm for name, norm in spreads.items() if norm is not None and norm.value > 0}
    if not norms:
        raise NothingToDrawError("it has no anatomy of tokens")
    analysed = find(tree, "analysed")
    return _Anatomy(
        norms,
        find_terms(tree, "tokens"),
        analysed if isinstance(analysed, str) else None,
        number(find(tree, "images_fraction")),
        find_terms(tree, "dominant_register"),
    )


def _plot_norms(panel: Axes, norms: Mapping[str, Interval]) -> None:
    for place, (token, norm) in enumerate(norms.items()):
        plot_intervals(
            panel,
            [place],
            [norm],
            color=colour_term(token),
            marker=mark_term(token),
            markersize=5,
            elinewidth=1.2,
            capsize=2.5,
            label=token,
        )
    values = [norm.value for norm in norms.values()]
    panel.set_xticks(range(len(norms)), [_short(token) for token in norms])
    panel.set_xlim(-0.6, len(norms) - 0.4)
    if max(values) > _WIDE * min(values):
        panel.set_yscale("log")
        use_plain_ticks(panel.yaxis)
    else:
        panel.set_ylim(bottom=0)
    panel.grid(axis="y")
    panel.set(ylabel="norm", title="norm of each token")


def _plot_cosines(panel: Axes, found: _Anatomy) -> None:
    tokens = [token for token in found.tokens if _read_cosines(found.tokens[token])]
    if not tokens:
        mark_empty(panel, "pairwise cosines need two images or more")
    for place, token in enumerate(tokens):
        cosines = _read_cosines(found.tokens[token])
        offset = (place - (len(tokens) - 1) / 2) * 0.7 / len(tokens)
        strong = found.analysed in {None, token} or not token.startswith("register_")
        panel.errorbar(
            [list(_STATES).index(state) + offset for state in cosines],
            [cosine.value for cosine in cosines.values()],
            yerr=[[cosine.errors[end] for cosine in cosines.values()] for end in (0, 1)],
            color=colour_term(token),
            alpha=1.0 if strong else 0.4,
            marker=mark_term(token),
            markersize=3.5,
            elinewidth=0.8,
            linestyle="none",
            label=_name_one(token, found.analysed),
        )
    if tokens:
        panel.set_xticks(range(len(_STATES)), list(_STATES.values()))
        panel.set_xlim(-0.55, len(_STATES) - 0.45)
        panel.set_ylim(top=1.05)
        panel.grid(axis="y")
        panel.set_ylabel("mean pairwise cosine")
        panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=SMALL_PT)
    panel.set_title("how alike over images")


def _read_cosines(states: Any) -> dict[str, Interval]:
    cosines = {state: read_estimate(find(states, state, "pairwise_cosine")) for state in _STATES}
    return {state: cosine for state, cosine in cosines.items() if cosine is not None}


def _plot_dimensions(panels: Sequence[Axes], found: _Anatomy) -> None:
    for panel, key, words in zip(panels, ("before", "after"), ("before", "after"), strict=True):
        panel.set_title(f"strongest dimensions {words} the layer norm")
        shown = 0
        for token, states in found.tokens.items():
            values = numbers(find(states, "top_dimensions", key))
            if values is None or (found.analysed is None and token.startswith("register_")):
                continue
            looked_at = token == found.analysed or found.analysed is None
            panel.plot(
                range(1, len(values) + 1),
                values,
                color=colour_term(token) if looked_at else FAINT,
                linewidth=1.3 if looked_at else 0.6,
                alpha=1.0 if looked_at else 0.6,
                zorder=3 if looked_at else 2,
                label=token,
            )
            shown += 1
        if not shown:
            mark_empty(panel, "no activations of dimensions")
            continue
        panel.axhline(0, color=FAINT, linewidth=0.5, zorder=1)
        panel.set_xlabel("dimension, by mean activation before")
        panel.set_ylabel("mean activation")


def _describe_lines(analysed: str | None) -> list[str]:
    return [] if analysed is None else [f"Dimensions: {name_term(analysed)}, grey: other tokens."]


def _describe_dominant(dominant: Mapping[str, Any]) -> list[str]:
    index, share = number(dominant.get("index")), number(dominant.get("share"))
    if index is None or share is None:
        return []
    ratio = number(dominant.get("ratio"))
    times = "" if ratio is None else f", its mean norm {ratio:.3g} times that of the others"
    return [f"Register {index:.0f} has the highest norm in {share:.1%} of the images{times}."]


def _describe_outliers(part: float | None) -> list[str]:
    if not part:
        return []
    rest = "" if part == 1 else "; in the others the highest patch is an ordinary one"
    return [f"{part:.1%} of the images have a high-norm patch{rest}."]


def _name_one(token: str, analysed: str | None) -> str:
    name = {"cls": "[CLS]"}.get(token, name_term(token))
    return f"{name} (analysed)" if token == analysed else name


def _short(token: str) -> str:
    if token.startswith("register_"):
        return f"reg.\n{token.removeprefix('register_')}"
    return {"cls": "[CLS]", "highest_patch": "highest\npatch"}.get(token, name_term(token))
