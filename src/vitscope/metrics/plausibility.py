"""Whether a map lies on an object: what a person expects, which says nothing of the model.

These scores are never ranked together with faithfulness. A mask is given as its share of each
patch's area; a patch belongs to the object if at least half of it does.
"""

import numpy as np
from jaxtyping import Bool, Float64

Values = Float64[np.ndarray, " patch"]
Shares = Float64[np.ndarray, " patch"]


def compute_pointing(values: Values, shares: Shares) -> float:
    """Whether the largest value is on the object: 1 or 0.

    If several patches share the largest value, the part of them that is on the object.

    Source:
        Zhang et al., *Top-down Neural Attention by Excitation Backprop* (ECCV 2016).
    """
    return float(_is_object(shares)[values == values.max()].mean())


def compute_mass_in_mask(values: Values, shares: Shares) -> float:
    """Σ_j share_j m_j⁺ / Σ_j m_j⁺: the part of a map's positive values that is on the object.

    To be read against the mask's area, mean share, which a constant map has. NaN if no value is
    positive.
    """
    positive = values.clip(min=0)
    total = positive.sum()
    return float(positive @ shares / total) if total > 0 else float("nan")


def compute_average_precision(values: Values, shares: Shares) -> float:
    """Σ_n (R_n − R_{n−1}) P_n over thresholds: finding the object's patches by their values.

    A random map has the part of patches that belong to the object. NaN if no patch does.
    """
    on_object = _is_object(shares)
    if not on_object.any():
        return float("nan")
    descending = np.argsort(-values)
    # Equal values share a threshold, which lies at the last of them.
    thresholds = np.append(np.flatnonzero(np.diff(values[descending])), len(values) - 1)
    found = np.cumsum(on_object[descending])[thresholds]
    recall = found / on_object.sum()
    return float(np.diff(recall, prepend=0) @ (found / (thresholds + 1)))


def _is_object(shares: Shares) -> Bool[np.ndarray, " patch"]:
    return shares >= 0.5
