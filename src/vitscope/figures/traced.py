"""Where what becomes the output lives at each depth, and how each block moved it."""

from collections.abc import Iterable, Mapping, Sequence

from vitscope.figures.description import (
    FigureData,
    NothingToDrawError,
    Point,
    Selection,
    select,
    write_range,
)
from vitscope.figures.intervals import read_estimate, span
from vitscope.figures.saved import ModelResult
from vitscope.metrics.jackknife import Estimate
from vitscope.results.result_text import tell_half_depth
from vitscope.results.schema_numbers import TraceSummary
from vitscope.results.vocabulary import order_terms

_UNDEFINED = "its traced images do not differ in their output"


def describe_shares_by_depth(results: Iterable[ModelResult]) -> FigureData:
    """Shares of each token group in what becomes the output, by depth."""
    selection = select(results, _read_shares, _UNDEFINED)
    half = "; ".join(
        f"{tell_half_depth(_read_trace(model), model.summary.model.depth)} ({model.label})"
        for model in selection.results
    )
    return _describe(
        selection,
        "Each is compared with others; at every depth the shares of what then differs in the "
        "output sum to 100 %. Band: 95 % interval.",
        f"Patches hold at least half {half}. Dotted: the first depth at which they do not.",
    )


def describe_routes_by_block(results: Iterable[ModelResult]) -> FigureData:
    """What came through the values of each block's attention, and what through its weights."""
    return _describe(
        select(results, _read_routes, _UNDEFINED),
        "Through values: what tokens read from each other. Through routing: where they read it, "
        "by attention weights. The skip connection carries the rest, to 100 %. Band: 95 % "
        "interval.",
    )


def _read_shares(result: ModelResult) -> list[Point]:
    shares = _read_trace(result).shares
    return _place(result, {name: shares[name] for name in order_terms(shares)})


def _read_routes(result: ModelResult) -> list[Point]:
    trace = _read_trace(result)
    routes = {"through_values": trace.through_values, "through_routing": trace.through_routing}
    return _place(result, routes)


def _read_trace(result: ModelResult) -> TraceSummary:
    trace = result.audit.trace
    if trace is None:
        raise NothingToDrawError("no image was traced (audit with trace=50)")
    return trace


def _place(result: ModelResult, lines: Mapping[str, Sequence[Estimate]]) -> list[Point]:
    n = _read_trace(result).num_images
    return [
        Point(model=result, term=term, x=x, number=number)
        for term, estimates in lines.items()
        for x, estimate in enumerate(estimates)
        if (number := read_estimate(estimate, n)) is not None
    ]


def _describe(selection: Selection[list[Point]], *notes: str) -> FigureData:
    counts = write_range([_read_trace(model).num_images for model in selection.results])
    return selection.describe(
        selection.points,
        (f"n = {counts} traced images{selection.each}.", *notes),
        axis="share of the output",
        percent=True,
        limits=span([point.number for point in selection.points], 0.0),
    )
