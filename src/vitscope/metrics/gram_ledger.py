"""The Gram ledger: which terms make images similar or dissimilar.

Source: Lappe & Giese (NeurIPS 2025), eq. 5; Song et al. (JMLR 2012) for the unbiased estimator.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float64

from vitscope.metrics.estimates import GramShare
from vitscope.metrics.pair_estimates import PairEstimates
from vitscope.metrics.ratio_interval import compute_ratio_interval

GramLedger = dict[str, dict[str, GramShare]]
Cells = dict[tuple[str, str], Float64[np.ndarray, " union"]]


def estimate_gram_ledger(
    pairs: Mapping[tuple[str, str], PairEstimates], *, constant: bool
) -> GramLedger:
    """Share of each pair of terms in the representational geometry of their total.

    With X = Σ_a X_a the features of all images, G = X Xᵀ and G_ab = X_a X_bᵀ, the share of (a, b)
    is HSIC(G, G_ab) / HSIC(G, G): ⟨G, G_ab⟩ / ⟨G, G⟩ with everything centred over images for the
    biased HSIC, and its unbiased counterpart, which leaves out the diagonal. HSIC is linear in
    G_ab, so

        2 HSIC(G, G_ab) = HSIC(G, (X_a + X_b)(X_a + X_b)ᵀ) − HSIC(G, G_aa) − HSIC(G, G_bb),

    and each of these comes from moments of size d². A share is symmetric in its terms; the shares
    of all pairs sum to 1. A share is negative if the two terms cancel.

    Returns:
        Share and interval by the names of the two terms; NaN where the total does not vary.
    """
    terms = [a for a, b in pairs if a == b]
    if constant:
        undefined = GramShare(math.nan, math.nan, None)
        return {a: dict.fromkeys(terms, undefined) for a in terms}
    biased = _split({cell: pair.hsic.biased.numpy() for cell, pair in pairs.items()})
    unbiased = _split(
        {
            cell: torch.cat([pair.hsic.unbiased, pair.hsic_of_others]).numpy()
            for cell, pair in pairs.items()
        }
    )
    of_all, unbiased_of_all = (_sum(cells) for cells in (biased, unbiased))
    known = unbiased_of_all[0] > 0
    found = {
        cell: GramShare(
            biased=float(biased[cell][0] / of_all[0]),
            unbiased=float(unbiased[cell][0] / unbiased_of_all[0]) if known else math.nan,
            ci95=compute_ratio_interval(unbiased[cell], unbiased_of_all, pair.sizes),
        )
        for cell, pair in pairs.items()
    }
    return {a: {b: found[(a, b) if (a, b) in found else (b, a)] for b in terms} for a in terms}


def _split(of_sums: Cells) -> Cells:
    # From HSIC of the sum of two terms to that of their cross term.
    return {
        (a, b): h if a == b else (h - of_sums[a, a] - of_sums[b, b]) / 2
        for (a, b), h in of_sums.items()
    }


def _sum(cells: Cells) -> Float64[np.ndarray, " union"]:
    weighted = [h if a == b else 2 * h for (a, b), h in cells.items()]
    total: np.ndarray = np.sum(weighted, axis=0)
    return total
