"""Anatomy of registers or high-norm patches (Fig. 2b)."""

import math
from collections.abc import Iterable, Iterator

from vitscope.figures.description import FigureData, NothingToDrawError, Point, select
from vitscope.figures.intervals import Interval, read_estimate, read_spread
from vitscope.figures.saved import ModelResult
from vitscope.results.choices import LAYER
from vitscope.results.number_text import write_percent
from vitscope.results.schema import AuditSummary
from vitscope.results.schema_numbers import Anatomy

STATES = ("hidden", "normed", "keys", "values")
NORMS, COSINES, BEFORE, AFTER = "norm", "pairwise_cosine", "before", "after"
"""The four panels."""


def describe_anatomy(results: Iterable[ModelResult]) -> FigureData:
    """Tokens at the input of a block (Fig. 2b)."""
    selection = select(results, _read, choices=[LAYER])
    points = [
        point
        for result, anatomy in selection.found
        for point in (*_list_norms(result, anatomy), *_list_states(result, anatomy))
    ]
    notes = [
        f"At the input of {selection.block}; {selection.n}. "
        "Norms: mean over images, thin lines: 5 to 95 % of the images. Cosines: between different "
        "images, with 95 % intervals.",
    ]
    for result, anatomy in selection.found:
        whose = "" if len(selection.found) == 1 else f"{result.label}: "
        notes += [f"{whose}{note}" for note in _describe_tokens(result.audit, anatomy)]
    strongest = "strongest dimensions {} the layer norm"
    return selection.describe(
        points,
        notes,
        heading="Token anatomy",
        titles={
            NORMS: "norm of each token",
            COSINES: "similarity over images",
            BEFORE: strongest.format("before"),
            AFTER: strongest.format("after"),
        },
        highlight=selection.found[0][1].analysed if len(selection.found) == 1 else None,
    )


def _read(result: ModelResult) -> Anatomy:
    anatomy = result.audit.last.anatomy
    if anatomy is None or not any(norm.mean > 0 for norm in anatomy.norms.values()):
        raise NothingToDrawError("it has no anatomy of tokens")
    return anatomy


def _describe_tokens(summary: AuditSummary, anatomy: Anatomy) -> Iterator[str]:
    if (one := anatomy.dominant_register) is not None:
        ratio = f", its mean norm {one.ratio:.3g} times that of the others"
        yield (
            f"Register {one.index} has the highest norm in {write_percent(one.share)} of the "
            f"images{'' if math.isnan(one.ratio) else ratio}."
        )
    # Depth ℓ is the input of block ℓ.
    for depth in summary.high_norm_tokens[summary.layer : summary.layer + 1]:
        if part := depth.images_fraction:
            rest = "" if part == 1 else "; in the others the highest patch is an ordinary one"
            yield f"{write_percent(part)} of the images have a high-norm patch{rest}."


def _list_norms(result: ModelResult, anatomy: Anatomy) -> Iterator[Point]:
    for token, norm in anatomy.norms.items():
        number = read_spread(norm)
        if number is not None and number.value > 0:
            yield Point(model=result, panel=NORMS, term=token, number=number)


def _list_states(result: ModelResult, anatomy: Anatomy) -> Iterator[Point]:
    for token, one in anatomy.tokens.items():
        for state in STATES:
            found = one.states.get(state)
            cosine = None if found is None else read_estimate(found.pairwise_cosine)
            if cosine is not None:
                yield Point(model=result, panel=COSINES, term=token, x=state, number=cosine)
    for panel in (BEFORE, AFTER):
        for token, one in anatomy.tokens.items():
            if anatomy.analysed is None and token.startswith("register_"):
                continue
            for place, value in enumerate(getattr(one.top_dimensions, panel), start=1):
                yield Point(model=result, panel=panel, term=token, x=place, number=Interval(value))
