"""Do the terms vary in the same directions: principal angles, shared variance, effective rank."""

from dataclasses import dataclass
from itertools import combinations

from matplotlib.axes import Axes

from vitscope.figures.drawing import Drawing, NothingToDrawError, describe_n, select
from vitscope.figures.matrices import plot_matrix
from vitscope.figures.numbers import find, find_terms, number, numbers
from vitscope.figures.panels import finish, make_panels
from vitscope.figures.saved import ModelResult
from vitscope.figures.style import SMALL_PT, TERMS, colour_term, in_style, in_term_order, name_term
from vitscope.results.choices import LAYER, count_cls

Pair = tuple[str, str]


@dataclass(frozen=True)
class _Directions:
    """What the figure shows.

    Attributes:
        count: Leading directions of each term.
        ranks: Effective rank of each term.
        angles: Principal angles of each unordered pair, in degrees, ascending.
        shared: Part of the first term's variance within the second's leading directions.
        chance: The same for unrelated directions.
    """

    count: int
    ranks: dict[str, float]
    angles: dict[Pair, list[float]]
    shared: dict[Pair, float]
    chance: dict[Pair, float]


@in_style
def plot_directions(result: ModelResult) -> Drawing:
    """One model's directions of variance."""
    selection = select([result], _read, choices=[count_cls(*TERMS), LAYER])
    found = selection.found[0][1]
    figure, (angles, shared, ranks) = make_panels(3, panel_height_in=2.5, share_y=False)
    _plot_angles(angles, found)
    _plot_shared(shared, found)
    _plot_ranks(ranks, found)
    notes = [
        f"Leading {found.count} directions of each term's variance over images, last block, "
        f"{describe_n(selection.results)}. Shared variance: part of the row's variance within "
        "the span of the column's directions; in brackets what unrelated directions would share. "
        "Effective rank: (tr Σ)² / tr Σ².",
        *selection.choices,
    ]
    finish(figure, notes, heading=f"Directions of variance: {result.label}")
    return selection.draw(figure)


def _read(result: ModelResult) -> _Directions:
    tree = find(result.summary, "directions")
    pairs = {
        (a, b): content
        for a, row in find_terms(tree, "pairs").items()
        for b, content in find_terms(row).items()
        if a != b
    }
    terms = in_term_order(list({term for pair in pairs for term in pair}))
    angles = {}
    for a, b in combinations(terms, 2):
        degrees = numbers(find(pairs.get((a, b), pairs.get((b, a))), "principal_angles_deg"))
        if degrees is not None:
            angles[a, b] = degrees
    shared, chance = (
        {
            pair: v
            for pair, content in pairs.items()
            if (v := number(find(content, key))) is not None
        }
        for key in ("shared_variance", "shared_variance_if_unrelated")
    )
    ranks = {
        term: rank
        for term, value in find_terms(tree, "effective_rank").items()
        if (rank := number(value)) is not None
    }
    if not (angles and shared and ranks):
        raise NothingToDrawError(
            "its directions cannot be compared (too few images, or a single source)"
        )
    count = int(number(find(tree, "num_directions")) or 0)
    return _Directions(count, ranks, angles, shared, chance)


def _plot_angles(panel: Axes, found: _Directions) -> None:
    for (a, b), degrees in found.angles.items():
        panel.plot(
            range(1, len(degrees) + 1),
            degrees,
            color=colour_term(a),
            gapcolor=colour_term(b),
            linestyle=(0, (3, 3)),
            linewidth=1.8,
            label=f"{_short(a)} – {_short(b)}",
        )
    panel.set(
        ylim=(0, 92), yticks=[0, 30, 60, 90], xlabel="direction", ylabel="principal angle (°)"
    )
    panel.set_title("angles between spans")
    panel.legend(
        loc="upper left", bbox_to_anchor=(-0.1, -0.22), ncols=2, fontsize=SMALL_PT, handlelength=2.6
    )


def _plot_shared(panel: Axes, found: _Directions) -> None:
    terms = in_term_order(list({term for pair in found.shared for term in pair}))
    texts = {}
    for pair, value in found.shared.items():
        chance = found.chance.get(pair)
        texts[pair] = f"{value:.2f}" if chance is None else f"{value:.2f}\n({chance:.2f})"
    cells = dict(found.shared)
    for term in terms:
        texts[term, term] = ""
    plot_matrix(panel, terms, cells, texts, colours="cividis", limits=(0, 1))
    panel.set_title("variance of row in span of column")


def _plot_ranks(panel: Axes, found: _Directions) -> None:
    terms = in_term_order(list(found.ranks))
    values = [found.ranks[term] for term in terms]
    bars = panel.barh(range(len(terms)), values, color=[colour_term(t) for t in terms], height=0.65)
    panel.bar_label(bars, [f" {value:.1f}" for value in values], fontsize=SMALL_PT)
    panel.set_yticks(range(len(terms)), [name_term(term) for term in terms])
    panel.set_ylim(len(terms) - 0.4, -0.6)
    panel.set_xlim(0, 1.2 * max(values))
    panel.set_xlabel("effective rank")
    panel.set_title("effective rank")


def _short(term: str) -> str:
    return {"cls": "[CLS]", "skip": "skip"}.get(term, name_term(term))
