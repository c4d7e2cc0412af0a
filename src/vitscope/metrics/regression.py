"""Cross-validated regression of one number on several others."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Integer

Numbers = Float64[np.ndarray, " image"]
Columns = Float64[np.ndarray, "image covariate"]
Coefficients = Float64[np.ndarray, " covariate"]
Groups = Integer[np.ndarray, " image"]

MIN_IMAGES_PER_COVARIATE = 10
"""Fewest images per covariate in the regression."""

MIN_GROUPS = 3
"""Fewest groups, so that at least two remain to fit on when one is held out."""

PENALTIES = tuple(float(penalty) for penalty in np.logspace(-3, 2, 11))
"""Candidate penalties λ, from almost none to one that shrinks almost everything to 0."""


@dataclass(frozen=True)
class Regression:
    """A linear regression of one number on several covariates."""

    # cross-validated R²: 0 is as good as predicting the mean, below 0 is worse. NaN where it is
    # undefined
    r2: float
    # standardised coefficients of the fit on all images, by covariate: standard deviations of the
    # target per standard deviation of the covariate. Empty where undefined
    coefficients: dict[str, float] = field(default_factory=dict)
    # covariates left out: constant, or undefined for more than half of the images
    left_out: tuple[str, ...] = ()
    n: int = 0  # images with all numbers of the regression defined
    # why there is no regression, in a few words; None where there is one
    undefined: str | None = None


def regress(covariates: Mapping[str, Numbers], target: Numbers, groups: Groups) -> Regression:
    """Ridge regression, cross-validated by leaving one group of images out at a time.

    For every group, the covariates are standardised and b, c and λ are fitted on the other groups
    only: b and c minimise Σ (y − c − ⟨b, z⟩)² + λ n ‖b‖², and λ is the one of `PENALTIES` with the
    least leave-one-image-out error on these groups. Then

        R² = 1 − Σ (y − ŷ)² / Σ (y − ȳ)²

    over all images, with ŷ and the mean ȳ both from the groups without the image. It is undefined
    with fewer than `MIN_IMAGES_PER_COVARIATE` images per covariate, fewer than `MIN_GROUPS` groups,
    no covariate, or a constant target.
    """
    entering = _select_covariates(covariates, target)
    left_out = tuple(name for name in covariates if name not in entering)
    columns = [covariates[name] for name in entering]
    complete = np.isfinite(np.stack([target, *columns])).all(axis=0)
    y, groups = target[complete], groups[complete]
    n = int(y.size)
    undefined = _explain_undefined(len(entering), y, groups)
    if undefined is not None:
        return Regression(math.nan, left_out=left_out, n=n, undefined=undefined)
    x = np.stack(columns, axis=1)[complete]
    coefficients = _fit(x, y)[0] / y.std()
    return Regression(
        r2=_cross_validate(x, y, groups),
        coefficients=dict(zip(entering, coefficients.tolist(), strict=True)),
        left_out=left_out,
        n=n,
    )


def _select_covariates(covariates: Mapping[str, Numbers], target: Numbers) -> list[str]:
    known = np.isfinite(target)
    finite = {name: np.isfinite(values) & known for name, values in covariates.items()}
    names = [name for name in covariates if 2 * finite[name].sum() >= known.sum()]
    while True:
        # Leaving out a covariate can make more images complete, so variation is checked again.
        complete = np.all([known, *(finite[name] for name in names)], axis=0)
        varying = [name for name in names if _varies(covariates[name][complete])]
        if varying == names:
            return names
        names = varying


def _varies(values: Numbers) -> bool:
    return bool(values.size and np.ptp(values) > 0)


def _explain_undefined(num_covariates: int, target: Numbers, groups: Groups) -> str | None:
    needed = MIN_IMAGES_PER_COVARIATE * num_covariates
    if not _varies(target):
        return "the target does not vary"
    if num_covariates == 0:
        return "no covariate varies"
    if target.size < needed:
        return f"{target.size} images, {needed} needed for {num_covariates} covariates"
    if np.unique(groups).size < MIN_GROUPS:
        return f"{np.unique(groups).size} groups of images, {MIN_GROUPS} needed"
    return None


def _fit(x: Columns, y: Numbers) -> tuple[Coefficients, Callable[[Columns], Numbers]]:
    # Standardised coefficients, and what they predict.
    mean, std = x.mean(axis=0), np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), 1.0)
    u, s, vt = np.linalg.svd((x - mean) / std, full_matrices=False)
    constant = float(y.mean())
    rotated = u.T @ (y - constant)

    def shrink(penalty: float) -> Coefficients:
        return s**2 / (s**2 + len(y) * penalty)

    def leave_one_out(penalty: float) -> float:
        residual = y - constant - u @ (shrink(penalty) * rotated)
        leverage = 1 / len(y) + u**2 @ shrink(penalty)
        return float(np.sum((residual / (1 - leverage)) ** 2))

    penalty = min(PENALTIES, key=leave_one_out)
    coefficients = vt.T @ (s / (s**2 + len(y) * penalty) * rotated)
    return coefficients, lambda new: constant + (new - mean) / std @ coefficients


def _cross_validate(x: Columns, y: Numbers, groups: Groups) -> float:
    error = total = 0.0
    for group in np.unique(groups):
        held_out = groups == group
        _, predict = _fit(x[~held_out], y[~held_out])
        error += float(np.sum((y[held_out] - predict(x[held_out])) ** 2))
        total += float(np.sum((y[held_out] - y[~held_out].mean()) ** 2))
    # total > 0: a varying target cannot equal the mean of the other groups in every group.
    return 1 - error / total
