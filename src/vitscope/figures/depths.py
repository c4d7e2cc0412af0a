"""[CLS] and high-norm patches over depth (Fig. 5b and 9), and what becomes the output."""

from collections.abc import Iterable, Mapping, Sequence

from vitscope.figures.description import (
    FigureData,
    NothingToDrawError,
    Point,
    Selection,
    describe_omitted,
    select,
    write_range,
)
from vitscope.figures.intervals import (
    Interval,
    read_estimate,
    read_high_norm,
    read_spread,
    span,
    tell_bounds,
)
from vitscope.figures.saved import ModelResult
from vitscope.metrics.estimates import HighNormTokens
from vitscope.metrics.jackknife import Estimate
from vitscope.results.result_text import tell_half_depth
from vitscope.results.schema_numbers import TraceSummary
from vitscope.results.vocabulary import order_terms

NORMS = {
    "max": "largest",
    "p99": "99 % quantile",
    "median": "median",
    "threshold": "threshold",
}
FRACTIONS = {
    "fraction": "of patch tokens",
    "images_fraction": "of images",
    "position_share": "told by place alone",
}
"""Numbers shown at each depth, with their names in legends."""
_NOT_TRACED = "its traced images do not differ in their output"
_NO_TOKENS = "it has no norms of patch tokens by depth"


def describe_layer_similarity(results: Iterable[ModelResult]) -> FigureData:
    """Cosine of [CLS] at each depth with [CLS] at the last (Fig. 5b and 9)."""
    selection = select(results, _read_similarity, "its layer similarity is undefined")
    notes = (
        f"{selection.n}.",
        "Cosine of [CLS] at a depth, from the embeddings to the output of the last block before "
        "the final norm, with [CLS] at the last depth. "
        "Mean over images; band: 5 to 95 % of the images.",
    )
    return selection.describe(selection.points, notes, axis="cosine with last [CLS]")


def describe_high_norm_fraction(results: Iterable[ModelResult]) -> FigureData:
    """Fraction of patch tokens with a norm above the fitted threshold, by depth."""
    selection = select(results, _read_fractions, _NO_TOKENS)
    notes = (
        f"{selection.n}.",
        "Norms of block outputs before the final norm; threshold fitted to the norms of each "
        "depth. Shaded where no high-norm tokens are found: from 0 to the largest fraction that "
        "so few images cannot exclude.",
        *_describe_partial_depths(selection.results),
        *_describe_bounds(selection),
    )
    top = max(point.number.value for point in selection.points) or 0.01
    return selection.describe(
        selection.points,
        notes,
        axis="high-norm patch tokens",
        percent=True,
        limits=(-0.02 * top, 1.08 * top),
    )


def describe_high_norm_layers(results: Iterable[ModelResult]) -> FigureData:
    """One model's patch norms, threshold and high-norm tokens, depth by depth."""
    selection = select(results, _read_tokens)
    ((result, depths),) = selection.found
    points = (
        Point(model=result, panel=panel, term=key, x=depth, number=Interval(v, n=one.num_images))
        for panel, keys in (("norm", NORMS), ("fraction", FRACTIONS))
        for key in keys
        for depth, one in enumerate(depths)
        if (v := getattr(one, key)) is not None
    )
    notes = [
        f"{selection.n}. Norms of block outputs before the final norm.",
        *_describe_partial_depths(selection.results),
    ]
    if all(one.threshold is None for one in depths):
        notes.append(
            "No threshold: no high-norm tokens are found where all images are known; these images "
            f"cannot exclude {tell_bounds(depths)}."
        )
    return selection.describe(
        points,
        notes,
        heading="High-norm patch tokens",
        titles={"norm": "norms of patch tokens", "fraction": "above the threshold"},
        limits=(0, len(depths) - 1),
    )


def describe_high_norm_grid(results: Iterable[ModelResult]) -> FigureData:
    """How often each place on the patch grid has a high-norm token, at the depth with most."""
    # Reading sums needs torch.
    from vitscope.results.audit_result import AuditResult

    selection = select(results, _find_densest)
    ((result, depth),) = selection.found
    grid = AuditResult(result.folder).high_norm_grid(depth)
    one = result.audit.high_norm_tokens[depth]
    points = (
        Point(model=result, x=column, other=str(row), number=Interval(value, n=one.num_images))
        for row, values in enumerate(grid.tolist())
        for column, value in enumerate(values)
    )
    notes = [
        f"n = {one.num_images:,} images. {one.fraction:.2%} of the patch tokens at this depth are "
        "above its threshold; drawn is the depth with the most of them.",
    ]
    if one.position_share is not None:
        notes.append(
            f"Position alone explains {one.position_share:.0%} of the variance of being one."
        )
    return selection.describe(
        points,
        notes,
        heading="High-norm tokens",
        titles={"": f"depth {depth} (0: embeddings)"},
        axis="images with one here",
        percent=True,
    )


def _describe_bounds(selection: Selection[list[Point]]) -> list[str]:
    bounds = {
        model.label: tell_bounds(model.audit.high_norm_tokens)
        for model, points in selection.found
        if all(point.number.is_bound for point in points)
    }
    told = describe_omitted(bounds)
    return [f"No such tokens are found, but so many cannot be excluded: {told}."] if told else []


def _describe_partial_depths(results: Sequence[ModelResult]) -> list[str]:
    """Note the depths where patch norms are known for only some images."""
    partial = [
        depth.num_images
        for result in results
        for depth in result.audit.high_norm_tokens
        if depth.num_images < result.num_images
    ]
    if not partial:
        return []
    return [
        f"After the last block, patch norms are known for {write_range(partial)} images only, "
        "those in which the ledger was verified, so no tokens are reported there; verified = 1 "
        "covers all images."
    ]


def _read_similarity(result: ModelResult) -> list[Point]:
    depths = result.audit.layer_similarity
    if len(depths) < 2:
        raise NothingToDrawError("no [CLS] token to follow through its layers")
    return _place(result, map(read_spread, depths))


def _read_fractions(result: ModelResult) -> list[Point]:
    return _place(result, map(read_high_norm, _read_tokens(result)))


def _place(result: ModelResult, numbers: Iterable[Interval | None]) -> list[Point]:
    return [
        Point(model=result, panel=result.family, x=depth, number=number)
        for depth, number in enumerate(numbers)
        if number is not None
    ]


def _read_tokens(result: ModelResult) -> Sequence[HighNormTokens]:
    depths = result.audit.high_norm_tokens
    if len(depths) < 2:
        raise NothingToDrawError(_NO_TOKENS)
    return depths


def _find_densest(result: ModelResult) -> int:
    depths = result.audit.high_norm_tokens
    found = [(one.fraction, depth) for depth, one in enumerate(depths) if one.fraction is not None]
    if found:
        return max(found)[1]
    bounds = [one.fraction_at_most for one in depths if one.fraction_at_most is not None]
    if not bounds:
        raise NothingToDrawError(_NO_TOKENS)
    raise NothingToDrawError(
        "no high-norm patch tokens are found at any depth (they are at most "
        f"{100 * max(bounds):.3g} % of all)"
    )


# --- traced images -------------------------------------------------------------------------------


def describe_shares_by_depth(results: Iterable[ModelResult]) -> FigureData:
    """Shares of each token group in what becomes the output, by depth."""
    selection = select(results, _read_token_shares, _NOT_TRACED)
    half = "; ".join(
        f"{tell_half_depth(_read_trace(model), model.summary.model.depth)} ({model.label})"
        for model in selection.results
    )
    return _describe_traced(
        selection,
        "Each is compared with others; at every depth the shares of what then differs in the "
        "output sum to 100 %. Band: 95 % interval.",
        f"Patches hold at least half {half}. Dotted: the first depth at which they do not.",
    )


def describe_routes_by_block(results: Iterable[ModelResult]) -> FigureData:
    """What came through the values of each block's attention, and what through its weights."""
    return _describe_traced(
        select(results, _read_routes, _NOT_TRACED),
        "Through values: what tokens read from each other. Through routing: where they read it, "
        "by attention weights. The skip connection carries the rest, to 100 %. Band: 95 % "
        "interval.",
    )


def _read_token_shares(result: ModelResult) -> list[Point]:
    shares = _read_trace(result).shares
    return _place_lines(result, {name: shares[name] for name in order_terms(shares)})


def _read_routes(result: ModelResult) -> list[Point]:
    trace = _read_trace(result)
    routes = {"through_values": trace.through_values, "through_routing": trace.through_routing}
    return _place_lines(result, routes)


def _read_trace(result: ModelResult) -> TraceSummary:
    trace = result.audit.trace
    if trace is None:
        raise NothingToDrawError("no image was traced (audit with trace=50)")
    return trace


def _place_lines(result: ModelResult, lines: Mapping[str, Sequence[Estimate]]) -> list[Point]:
    n = _read_trace(result).num_images
    return [
        Point(model=result, term=term, x=x, number=number)
        for term, estimates in lines.items()
        for x, estimate in enumerate(estimates)
        if (number := read_estimate(estimate, n)) is not None
    ]


def _describe_traced(selection: Selection[list[Point]], *notes: str) -> FigureData:
    counts = write_range([_read_trace(model).num_images for model in selection.results])
    return selection.describe(
        selection.points,
        (f"n = {counts} traced images{selection.each}.", *notes),
        axis="share of the output",
        percent=True,
        limits=span([point.number for point in selection.points], 0.0),
    )
