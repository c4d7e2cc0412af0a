"""Distribution of a per-image number over the images."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class Distribution:
    """Mean, spread and quantiles over images."""

    mean: float  # arithmetic mean. If no image defines the number, all fields but `n` are NaN
    std: float  # standard deviation of these images (divisor n)
    p05: float  # 5 % quantile, linear interpolation between order statistics
    p50: float  # median
    p95: float  # 95 % quantile
    n: int  # images where the number is defined; the other fields are over these


def compute_distribution(values: Float64[np.ndarray, " image"]) -> Distribution:
    """Summarise the defined ones of one number per image, in any order."""
    # Sorted, so that the sums do not depend on the order of the images.
    defined = np.sort(values[~np.isnan(values)])
    if defined.size == 0:
        return Distribution(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    mean = math.fsum(defined) / defined.size
    std = math.sqrt(math.fsum((defined - mean) ** 2) / defined.size)
    p05, p50, p95 = (float(q) for q in np.quantile(defined, [0.05, 0.5, 0.95]))
    return Distribution(mean, std, p05, p50, p95, defined.size)
