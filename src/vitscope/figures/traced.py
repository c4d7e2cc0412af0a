"""Where what becomes the output lives at each depth, and how each block moved it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from vitscope.figures.description import (
    FigureData,
    NothingToDrawError,
    Point,
    Selection,
    select,
    write_range,
)
from vitscope.figures.intervals import read_estimate
from vitscope.figures.saved import ModelResult
from vitscope.metrics.jackknife import Estimate
from vitscope.results.result_text import tell_half_depth
from vitscope.results.schema_numbers import TraceSummary
from vitscope.results.vocabulary import order_terms

_MARGIN = 0.04


def describe_shares_by_depth(results: Iterable[ModelResult]) -> FigureData:
    """Shares of each token group in what becomes the output, by depth."""
    selection = select(results, _read_trace)
    half = "; ".join(
        f"{tell_half_depth(trace, model.summary.model.depth)} ({model.label})"
        for model, trace in selection.found
    )
    return _describe(
        selection,
        {
            model: {name: trace.shares[name] for name in order_terms(trace.shares)}
            for model, trace in selection.found
        },
        (
            "Each is compared with others; at every depth the shares of what then differs in the "
            "output sum to 100 %. Band: 95 % interval.",
            f"Patches hold at least half {half}. Dotted: the first depth at which they do not.",
        ),
    )


def describe_routes_by_block(results: Iterable[ModelResult]) -> FigureData:
    """What came through the values of each block's attention, and what through its weights."""
    selection = select(results, _read_trace)
    return _describe(
        selection,
        {
            model: {
                "through_values": trace.through_values,
                "through_routing": trace.through_routing,
            }
            for model, trace in selection.found
        },
        (
            "Through values: what tokens read from each other. Through routing: where they read "
            "it, by attention weights. The skip connection carries the rest, to 100 %. Band: "
            "95 % interval.",
        ),
    )


def _describe(
    selection: Selection[TraceSummary],
    lines: Mapping[ModelResult, Mapping[str, Sequence[Estimate]]],
    notes: Sequence[str],
) -> FigureData:
    points = [*_place(selection, lines)]
    ends = [
        end
        for point in points
        for end in (point.number.value, point.number.low, point.number.high)
        if end is not None
    ]
    each = " a model" if len(selection.found) > 1 else ""
    counts = write_range([trace.num_images for _, trace in selection.found])
    return selection.describe(
        points,
        (f"n = {counts} traced images{each}.", *notes),
        axis="share of the output",
        percent=True,
        limits=(min(0.0, *ends) - _MARGIN, max(ends) + _MARGIN),
    )


def _place(
    selection: Selection[TraceSummary],
    lines: Mapping[ModelResult, Mapping[str, Sequence[Estimate]]],
) -> Iterator[Point]:
    for model, trace in selection.found:
        for term, estimates in lines[model].items():
            for x, estimate in enumerate(estimates):
                number = read_estimate(estimate, trace.num_images)
                if number is not None:
                    yield Point(model=model, term=term, x=x, number=number)


def _read_trace(result: ModelResult) -> TraceSummary:
    trace = result.audit.trace
    if trace is None:
        raise NothingToDrawError("no image was traced (audit with --trace 50)")
    return trace
