"""What the special tokens hold at the input of the audited block."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vitscope.figures.description import NothingToDrawError, describe_n, select
from vitscope.figures.numbers import Interval, read_estimate, read_spread
from vitscope.figures.saved import ModelResult
from vitscope.report.charts import plot_bars, term_colour
from vitscope.report.figure import (
    Panel,
    ReportFigure,
    Table,
    Terms,
    describe_interval,
    make_figure,
    note_omitted,
    tell_interval,
    tell_percent,
)
from vitscope.results.choices import LAYER
from vitscope.results.vocabulary import name_token

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
                    "name": name_token(token),
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
                (model.label, name_token(token), _tell(norm), *_read_cosines(model, token))
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
        meaning="The norm of each special token at the input of the audited block, beside that of "
        "patches. A token that is far longer than all others and the same for every image "
        "does not describe the image.",
        terms=("anatomy", "high-norm"),
    )


def _read_norms(result: ModelResult) -> Terms:
    anatomy = result.audit.last.anatomy
    spreads = {} if anatomy is None else {k: read_spread(norm) for k, norm in anatomy.norms.items()}
    norms = {token: norm for token, norm in spreads.items() if norm is not None}
    if not norms:
        raise NothingToDrawError("it has no anatomy of tokens")
    return norms


def _read_cosines(result: ModelResult, token: str) -> list[str]:
    anatomy = result.audit.last.anatomy
    found = None if anatomy is None else anatomy.tokens.get(token)
    states = {} if found is None else found.states
    return [
        tell_interval(read_estimate(states[state].pairwise_cosine) if state in states else None)
        for state in _STATES
    ]


def _describe_dominant(model: ModelResult) -> list[str]:
    anatomy = model.audit.last.anatomy
    if anatomy is None or (dominant := anatomy.dominant_register) is None:
        return []
    ratio = dominant.ratio
    times = "" if math.isnan(ratio) else f", its mean norm {ratio:.3g} times that of the others"
    where = f"in {tell_percent(dominant.share)} of the images"
    return [f"{model.label}: register {dominant.index} has the highest norm {where}{times}."]


def _tell(norm: Interval) -> str:
    return tell_interval(norm, lambda value: f"{value:.3g}")
