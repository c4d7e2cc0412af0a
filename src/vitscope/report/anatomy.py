"""What the special tokens hold at the input of the audited block."""

from collections.abc import Mapping, Sequence
from typing import Any

from vitscope.figures.drawing import NothingToDrawError, describe_n, select
from vitscope.figures.numbers import (
    Interval,
    find,
    find_terms,
    number,
    read_estimate,
    read_spread,
)
from vitscope.figures.saved import ModelResult
from vitscope.report.charts import plot_bars, term_colour
from vitscope.report.figure import (
    Panel,
    ReportFigure,
    Table,
    Terms,
    describe_interval,
    make_figure,
    name_term,
    note_omitted,
    tell_interval,
    tell_percent,
)
from vitscope.results.choices import LAYER

_STATES = ("hidden", "normed", "keys", "values")


def draw_anatomy(results: Sequence[ModelResult]) -> ReportFigure:
    """Norm of [CLS], registers and patches, and how alike their states are over images."""

    def draw() -> Mapping[str, Any]:
        selection = select(results, _read_norms, choices=[LAYER])
        panels = []
        rows: list[tuple[str, ...]] = []
        notes = [f"{describe_n(selection.results)}. Thin lines: 5 to 95 % of the images."]
        for model, norms in selection.found:
            data = [
                {
                    "name": name_term(token),
                    "colour": term_colour(token),
                    "told": _tell(norm),
                    **describe_interval(norm),
                }
                for token, norm in norms.items()
            ]
            words = f"norms of tokens of {model.label}: " + ", ".join(
                f"{row['name']} {row['told']}" for row in data
            )
            panels.append(Panel(model.label, plot_bars(data, "norm", words)))
            rows += [
                (model.label, name_term(token), _tell(norm), *_read_cosines(model, token))
                for token, norm in norms.items()
            ]
            notes += _describe_dominant(model)
        head = ("model", "token", "norm", *(f"pairwise cosine, {state}" for state in _STATES))
        return {
            "panels": tuple(panels),
            "table": Table(head, tuple(rows)),
            "notes": (*notes, *selection.choices, *note_omitted(selection.omitted)),
        }

    return make_figure(
        draw,
        key="anatomy",
        title="What do the special tokens hold?",
        meaning="The length of each special token where the last block begins, beside that of "
        "patches. A token that is far longer than all others, and the same for every image, is "
        "a store and no description of the image.",
        terms=("anatomy", "high-norm"),
    )


def _read_norms(result: ModelResult) -> Terms:
    spreads = {
        token: read_spread(norm)
        for token, norm in find_terms(result.summary, "anatomy", "norms").items()
    }
    norms = {token: norm for token, norm in spreads.items() if norm is not None}
    if not norms:
        raise NothingToDrawError("it has no anatomy of tokens")
    return norms


def _read_cosines(result: ModelResult, token: str) -> list[str]:
    states = find(result.summary, "anatomy", "tokens", token)
    return [
        tell_interval(read_estimate(find(states, state, "pairwise_cosine"))) for state in _STATES
    ]


def _describe_dominant(model: ModelResult) -> list[str]:
    dominant = find(model.summary, "anatomy", "dominant_register")
    index, share = number(find(dominant, "index")), number(find(dominant, "share"))
    if index is None or share is None:
        return []
    ratio = number(find(dominant, "ratio"))
    times = "" if ratio is None else f", its mean norm {ratio:.3g} times that of the others"
    where = f"in {tell_percent(share)} of the images"
    return [f"{model.label}: register {index:.0f} has the highest norm {where}{times}."]


def _tell(norm: Interval) -> str:
    return tell_interval(norm, lambda value: f"{value:.3g}")
