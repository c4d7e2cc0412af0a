"""How well several numbers together foretell another one of images that were not fitted."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64, Integer

MIN_IMAGES_PER_COVARIATE = 10
"""Fewest images for each covariate that enters."""

MIN_GROUPS = 3
"""Fewest groups, so that there are two at least to fit on when one is foretold."""

PENALTIES = tuple(float(penalty) for penalty in np.logspace(-3, 2, 11))
"""Penalties λ that are tried, from next to none to one that leaves next to nothing."""


@dataclass(frozen=True)
class Regression:
    """A linear regression of one number on several covariates.

    Attributes:
        r2: Part of the variance that is foretold for images that were not fitted; 0 is what
            their mean foretells, below 0 is worse than that. NaN where it is undefined.
        coefficients: Of the fit on all images, by covariate: by how many of its standard
            deviations the target rises with one of the covariate's. Empty where undefined.
        left_out: Covariates that did not enter: constant, or undefined for more than half of the
            images.
        n: Images on which everything that enters is defined.
        undefined: Why there is no regression, in a few words; None where there is one.
    """

    r2: float
    coefficients: dict[str, float] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    n: int = 0
    undefined: str | None = None


def regress(
    covariates: Mapping[str, Float64[np.ndarray, " image"]],
    target: Float64[np.ndarray, " image"],
    groups: Integer[np.ndarray, " image"],
) -> Regression:
    """Ridge regression, cross-validated by leaving one group of images out at a time.

    For every group, the covariates are standardised, and b, c and λ found, on the other groups
    alone: b and c minimise Σ (y − c − ⟨b, z⟩)² + λ n ‖b‖², and λ is the one of `PENALTIES` with the
    least error when every image of the other groups is left out in turn. Then

        R² = 1 − Σ (y − ŷ)² / Σ (y − ȳ)²

    over all images, ŷ and the mean ȳ both from the groups that the image is not in. It is
    undefined with fewer than `MIN_IMAGES_PER_COVARIATE` images for each covariate, fewer than
    `MIN_GROUPS` groups, no covariate, or a target that does not vary.

    Returns:
        The regression, whatever the order of the images.
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
    ridge = _fit(x, y)[-1]
    coefficients = ridge.coef_ / y.std()
    return Regression(
        r2=_cross_validate(x, y, groups),
        coefficients=dict(zip(entering, coefficients.tolist(), strict=True)),
        left_out=left_out,
        n=n,
    )


def _select_covariates(
    covariates: Mapping[str, Float64[np.ndarray, " image"]], target: Float64[np.ndarray, " image"]
) -> list[str]:
    known = np.isfinite(target)
    finite = {name: np.isfinite(values) & known for name, values in covariates.items()}
    names = [name for name in covariates if 2 * finite[name].sum() >= known.sum()]
    while True:
        # On the images that will enter, which are more once a covariate has been left out.
        complete = np.all([known, *(finite[name] for name in names)], axis=0)
        varying = [name for name in names if _varies(covariates[name][complete])]
        if varying == names:
            return names
        names = varying


def _varies(values: Float64[np.ndarray, " image"]) -> bool:
    return bool(values.size and np.ptp(values) > 0)


def _explain_undefined(
    num_covariates: int,
    target: Float64[np.ndarray, " image"],
    groups: Integer[np.ndarray, " image"],
) -> str | None:
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


def _fit(x: Float64[np.ndarray, "image covariate"], y: Float64[np.ndarray, " image"]) -> Any:
    # Here, for the import takes longer than all else.
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # scikit-learn adds its penalty to a sum over images.
    ridge = RidgeCV(alphas=len(y) * np.array(PENALTIES))
    return make_pipeline(StandardScaler(), ridge).fit(x, y)


def _cross_validate(
    x: Float64[np.ndarray, "image covariate"],
    y: Float64[np.ndarray, " image"],
    groups: Integer[np.ndarray, " image"],
) -> float:
    error = total = 0.0
    for group in np.unique(groups):
        held_out = groups == group
        foretold = _fit(x[~held_out], y[~held_out]).predict(x[held_out])
        error += float(np.sum((y[held_out] - foretold) ** 2))
        total += float(np.sum((y[held_out] - y[~held_out].mean()) ** 2))
    # Not 0: a target that varies cannot lie on the mean of the other groups in every group.
    return 1 - error / total
