"""What the covariates of images have to do with what a model makes of the images."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float64, Integer

from vitscope.metrics.rank_correlation import adjust_holm, correlate_ranks
from vitscope.metrics.regression import regress


def associate(
    covariates: Mapping[str, Float64[np.ndarray, " image"]],
    targets: Mapping[str, Float64[np.ndarray, " image"]],
    groups: Integer[np.ndarray, " image"],
) -> dict[str, Any]:
    """Rank correlations and a regression of every target with the covariates.

    Returns:
        Nested dictionaries as in `summary.json`: under "correlations", by target and covariate, the
        fields of `RankCorrelation` and `p_holm`, the p value corrected for the number of covariates
        of the target; under "regressions", by target, the fields of `Regression`.
    """
    return {
        "correlations": {
            name: _correlate_all(covariates, target) for name, target in targets.items()
        },
        "regressions": {
            name: asdict(regress(covariates, target, groups)) for name, target in targets.items()
        },
    }


def _correlate_all(
    covariates: Mapping[str, Float64[np.ndarray, " image"]], target: Float64[np.ndarray, " image"]
) -> dict[str, dict[str, Any]]:
    found = {name: correlate_ranks(values, target) for name, values in covariates.items()}
    adjusted = adjust_holm({name: correlation.p for name, correlation in found.items()})
    return {
        name: {**asdict(correlation), "p_holm": adjusted[name]}
        for name, correlation in found.items()
    }
