"""CKA the long way: the n x n matrices of a set written down, in float64.

Nothing here is shared with the package, so it is also what every estimate is held against.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def biased_cka(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Linear CKA of two centred Gram matrices: ⟨HKH, HLH⟩ / (‖HKH‖ ‖HLH‖).

    Source: Kornblith et al. (ICML 2019).
    """
    k, l = _centre(_gram(x)), _centre(_gram(y))  # noqa: E741
    return float(np.vdot(k, l) / np.sqrt(np.vdot(k, k) * np.vdot(l, l)))


def minibatch_cka(xs: Sequence[npt.ArrayLike], ys: Sequence[npt.ArrayLike]) -> float:
    """CKA of unbiased HSIC over minibatches: Σ HSIC(x, y) / √(Σ HSIC(x, x) Σ HSIC(y, y)).

    With all images in one minibatch it is the unbiased estimate.

    Source: Song et al. (JMLR 2012); Nguyen et al. (ICLR 2021), eq. 2 and 3.
    """
    sums = np.zeros(3)
    for x, y in zip(xs, ys, strict=True):
        k, l = _hollow(_gram(x)), _hollow(_gram(y))  # noqa: E741
        sums += [_unbiased_hsic(k, l), _unbiased_hsic(k, k), _unbiased_hsic(l, l)]
    return float(sums[0] / np.sqrt(sums[1] * sums[2]))


def _gram(features: npt.ArrayLike) -> Matrix:
    rows = np.asarray(features, dtype=np.float64)
    # HSIC does not depend on where the origin is; near the mean no digits are lost.
    rows = rows - rows.mean(axis=0)
    return rows @ rows.T


def _centre(gram: Matrix) -> Matrix:
    means = gram.mean(axis=0)
    return gram - means[:, None] - means[None, :] + means.mean()


def _hollow(gram: Matrix) -> Matrix:
    np.fill_diagonal(gram, 0.0)
    return gram


def _unbiased_hsic(k: Matrix, l: Matrix) -> float:  # noqa: E741
    n = len(k)
    of_k, of_l = k.sum(axis=0), l.sum(axis=0)
    middle = of_k.sum() * of_l.sum() / ((n - 1) * (n - 2))
    return float((np.vdot(k, l) + middle - 2 / (n - 2) * (of_k @ of_l)) / (n * (n - 3)))
