"""Numbers per image: patch shares (Fig. 2a), registers against skip, covariates."""

from collections.abc import Collection, Iterable, Iterator
from functools import partial
from math import isnan

import numpy as np

from vitscope.figures.description import (
    FigureData,
    NothingToDrawError,
    Point,
    Values,
    select,
    write_range,
)
from vitscope.figures.intervals import Interval, make_interval
from vitscope.figures.saved import ModelResult
from vitscope.results.choices import LAYER, SHARES, count_cls
from vitscope.results.number_text import write_number

R2 = "R²"
"""Key of the regression on all covariates, next to the covariates."""
_SIDES = {
    "own": ("patches", "registers", "patches / (patches + registers)"),
    "registers": (
        "patches",
        "registers and [CLS] itself",
        "patches / (patches + registers + [CLS])",
    ),
    "patches": (
        "patches and [CLS] itself",
        "registers",
        "(patches + [CLS]) /\n(patches + [CLS] + registers)",
    ),
}
"""Ends of the axis and the ratio, in words, by where [CLS]'s attention to itself is counted."""
_SOURCES = ("patches", "registers", "skip")
_TARGETS = {
    "patch_share": "attention: patch share",
    **{f"share_{source}": f"share of {source}" for source in _SOURCES},
    **{f"centred_share_{source}": f"centred share of {source}" for source in _SOURCES},
}


def describe_patch_share(results: Iterable[ModelResult]) -> FigureData:
    """Distribution over images of [CLS]'s attention on patches against registers, by size."""
    counted = count_cls("patches", "registers")
    selection = select(results, _read_patch_shares, choices=[counted, LAYER])
    patches, registers, ratio = _SIDES[counted.agree(selection.results) or "own"]
    points = (
        Point(model=model, panel=model.series, x=model.params_m or "", number=_spread(shares))
        for model, shares in selection.found
    )
    notes = (
        f"[CLS] attention mass of {selection.block}, mean over heads: 1 = all on "
        f"{patches}, 0 = all on {registers}. Distribution over images, "
        f"{selection.n}; box: quartiles, whiskers: 5 to 95 % of the images, dot: "
        "mean.",
    )
    images = {model.folder: (shares,) for model, shares in selection.found}
    return selection.describe(points, notes, axis=ratio, limits=(-0.02, 1.02), images=images)


def describe_interdependence(results: Iterable[ModelResult]) -> FigureData:
    """Register share against skip share of each image's output, and their rank correlation."""
    selection = select(
        results, _read_pairs, choices=[count_cls("registers", "skip"), LAYER, SHARES]
    )
    notes = (
        f"Each dot is an image, by its {SHARES.agree(selection.results)} shares; "
        f"{selection.n}. ρ: Spearman's rank correlation; "
        "brackets: 95 % interval.",
    )
    points = [point for model in selection.results for point in _list_rhos(model)]
    titles = {
        str(model.folder): f"{model.label}\n{_describe_rhos(model)}" for model in selection.results
    }
    images = {model.folder: pairs for model, pairs in selection.found}
    axis = "share of registers"
    return selection.describe(points, notes, axis=axis, titles=titles, images=images)


def describe_covariates(results: Iterable[ModelResult]) -> FigureData:
    """Rank correlations of image covariates with where the output comes from."""
    return _describe_covariates(results, _TARGETS)


def describe_share_covariates(results: Iterable[ModelResult]) -> FigureData:
    """Rank correlations of centred shares only, or of raw shares if features were dropped."""
    results = list(results)
    kind = SHARES.agree([result for result in results if result.kind == "audit"])
    prefix = "centred_share_" if kind == "centred" else "share_"
    return _describe_covariates(results, [key for key in _TARGETS if key.startswith(prefix)])


def _describe_covariates(results: Iterable[ModelResult], targets: Collection[str]) -> FigureData:
    choices = [count_cls(*_SOURCES), LAYER, SHARES]
    selection = select(
        results,
        partial(_read_correlations, targets),
        "its correlations with covariates are undefined",
        choices=choices,
    )
    counts = write_range(point.number.n or 0 for point in selection.points if point.x != R2)
    notes = (
        f"n = {counts} images{selection.each}; thin lines: 95 % "
        "intervals. Filled: differs from 0 (p < 0.05 after Holm's correction for the number of "
        "rows). R²: of a ridge regression on all rows, for images that it was not fitted to.",
    )
    return selection.describe(
        selection.points,
        notes,
        heading="Covariates of an image's sources",
        titles=_TARGETS,
        axis="Spearman's ρ",
        limits=(-1.05, 1.05),
    )


def _read_patch_shares(result: ModelResult) -> Values:
    if result.summary.model.num_registers == 0:
        raise NothingToDrawError("no registers")
    shares = result.read_column("patch_share")
    if shares is None or not np.isfinite(shares).any():
        raise NothingToDrawError("no patch share per image")
    defined: Values = shares[np.isfinite(shares)]
    return defined


def _spread(values: Values) -> Interval:
    low, high = np.quantile(values, [0.05, 0.95])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def _read_pairs(result: ModelResult) -> tuple[Values, Values]:
    if result.summary.model.num_registers == 0:
        raise NothingToDrawError("no registers")
    found = result.audit.interdependence
    kind = None if found is None else found.shares
    skip, registers = (result.read_column(f"{kind}_{source}") for source in ("skip", "registers"))
    if registers is None or skip is None:
        raise NothingToDrawError("no shares of registers and skip connection")
    defined = np.isfinite(registers) & np.isfinite(skip)
    if not defined.any():
        raise NothingToDrawError("its shares of registers and skip connection are undefined")
    return skip[defined], registers[defined]


def _list_rhos(result: ModelResult) -> Iterator[Point]:
    found = result.audit.interdependence
    for term in ("over_images", "over_layers"):
        rho = getattr(found, term, None)
        if rho is not None and (number := make_interval(rho.rho, rho.ci95, rho.n)) is not None:
            yield Point(model=result, term=term, number=number)


def _describe_rhos(result: ModelResult) -> str:
    told = []
    for point in _list_rhos(result):
        rho = point.number
        ends = [write_number(end, 2) for end in (rho.low, rho.high) if end is not None]
        interval = f" [{', '.join(ends)}]" if ends else ""
        where = "" if point.term == "over_images" else "over layers "
        told.append(f"{where}ρ = {write_number(rho.value, 2)}{interval}")
    return "; ".join(told) if told else "ρ undefined"


def _read_correlations(targets: Collection[str], result: ModelResult) -> list[Point]:
    found, points = result.audit.covariates, []
    for target in targets:
        source = "patches" if target == "patch_share" else target.rsplit("_", 1)[-1]
        place = partial(Point, model=result, panel=target, term=source)
        of_target = [
            place(x=name, number=number, p=None if isnan(one.p_holm) else one.p_holm)
            for name, one in found.correlations.get(target, {}).items()
            if (number := make_interval(one.rho, one.ci95, one.n)) is not None
        ]
        fit = found.regressions.get(target)
        if of_target and fit is not None and (r2 := make_interval(fit.r2, n=fit.n)) is not None:
            of_target.append(place(x=R2, number=r2))
        points += of_target
    return points
