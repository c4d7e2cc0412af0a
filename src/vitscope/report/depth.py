"""What happens on the way through the layers: to [CLS], and to single patches."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vitscope.figures.depths import describe_partial_depths
from vitscope.figures.description import (
    NothingToDrawError,
    Selection,
    describe_n,
    select,
)
from vitscope.figures.numbers import Interval, read_high_norm, read_spread, tell_bounds
from vitscope.figures.saved import ModelResult
from vitscope.report.charts import Domain, plot_depth
from vitscope.report.figure import (
    Panel,
    ReportFigure,
    Table,
    describe_interval,
    make_figure,
    note_omitted,
    tell_interval,
    tell_number,
    tell_percent,
)

Results = Sequence[ModelResult]
Layers = Mapping[int, Interval]


def draw_layer_similarity(results: Results) -> ReportFigure:
    """Cosine of [CLS] at each depth with [CLS] at the last."""

    def draw() -> Mapping[str, Any]:
        selection = select(results, _read_similarity)
        notes = (f"{describe_n(selection.results)}. Bands: 5 to 95 % of the images.",)
        return _draw(selection, "cosine with the last [CLS]", tell_number, notes)

    return make_figure(
        draw,
        key="layer-similarity",
        title="When is the output made?",
        meaning="How similar [CLS] after each layer is to the final one. A jump at the last layer "
        "means that the output is gathered there; a slow rise, that it was built along the way.",
        terms=("layer-similarity",),
    )


def draw_high_norm(results: Results) -> ReportFigure:
    """Fraction of patch tokens above the fitted threshold, by depth."""

    def draw() -> Mapping[str, Any]:
        selection = select(results, _read_high_norm)
        clean = [
            f"{model.label} ({tell_bounds(model.audit.high_norm_tokens)})"
            for model, layers in selection.found
            if all(value.high is not None for value in layers.values())
        ]
        notes = [
            f"{describe_n(selection.results)}. Norms of block outputs before the final norm.",
            *describe_partial_depths(selection.results),
        ]
        if clean:
            notes.append(
                "No high-norm patch tokens were found at the depths shown; these images cannot "
                f"exclude: {'; '.join(clean)}."
            )
        top = max(value.value for _, layers in selection.found for value in layers.values())
        domain = (0.0, 1.08 * top if top else 0.01)
        return _draw(
            selection, "high-norm patch tokens", tell_percent, tuple(notes), domain, form="%"
        )

    return make_figure(
        draw,
        key="high-norm",
        title="Are patches used as storage?",
        meaning="The part of patch tokens with a norm far above all others, by layer. Such tokens "
        "no longer describe their place in the image.",
        terms=("high-norm",),
    )


def _draw(
    selection: Selection[Layers],
    axis: str,
    told: Callable[[float], str],
    notes: Sequence[str],
    domain: Domain = None,
    form: str = "",
) -> Mapping[str, Any]:
    panels = []
    for family, members in selection.families.items():
        names = _name_apart([model.short_label for model, _ in members])
        rows = [
            {
                "series": name,
                "layer": layer,
                "told": tell_interval(value, told),
                **describe_interval(value),
            }
            for name, (_, layers) in zip(names, members, strict=True)
            for layer, value in layers.items()
        ]
        words = f"{axis} of {family} by layer"
        title = members[0][0].label if len(members) == 1 else family
        panels.append(Panel(title, plot_depth(rows, axis, words, domain=domain, form=form)))
    depth = max(max(layers) for _, layers in selection.found)
    table = Table(
        ("model", *(f"layer {layer}" for layer in range(depth + 1))),
        tuple(
            (model.label, *(_tell(layers.get(layer), told) for layer in range(depth + 1)))
            for model, layers in selection.found
        ),
    )
    notes = (*notes, *selection.choices, *note_omitted(selection.omitted))
    return {"panels": tuple(panels), "table": table, "notes": notes}


def _name_apart(labels: Sequence[str]) -> list[str]:
    # Two audits of one model are two lines.
    counts = Counter[str]()
    names = []
    for label in labels:
        counts[label] += 1
        names.append(label if counts[label] == 1 else f"{label} ({counts[label]})")
    return names


def _tell(value: Interval | None, told: Callable[[float], str]) -> str:
    if value is None:
        return "–"
    bound = "at most " if value.is_bound else ""
    return bound + told(value.value)


def _read_similarity(result: ModelResult) -> Layers:
    found = map(read_spread, result.audit.layer_similarity)
    return _number(found, "it has no layer similarity")


def _read_high_norm(result: ModelResult) -> Layers:
    found = map(read_high_norm, result.audit.high_norm_tokens)
    return _number(found, "it has no high norm tokens")


def _number(found: Iterable[Interval | None], reason: str) -> Layers:
    layers = {depth: value for depth, value in enumerate(found) if value is not None}
    if not layers:
        raise NothingToDrawError(reason)
    return layers
