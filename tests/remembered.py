"""Estimates of the same numbers are computed once per process.

Most audits of tests show the same images to the same tiny model, and half of an audit's time goes
into estimates from its sums. They depend on nothing but the sums, to the bit, so sums that hold
the same numbers share them.
"""

from functools import wraps
from hashlib import sha256

from vitscope.metrics import gram_ledger, ratio_interval, token_sums
from vitscope.metrics.feature_sums import FeatureSums


def install():
    """Remember the statistics of pairs of features, and the intervals of ratios."""
    FeatureSums.estimate_pair = _of_pairs(FeatureSums.estimate_pair)
    interval = _of_ratios(ratio_interval.compute_ratio_interval)
    token_sums.compute_ratio_interval = gram_ledger.compute_ratio_interval = interval


def _of_pairs(compute):
    known = {}

    @wraps(compute)
    def estimate_pair(self, pair):
        if self._moments is not None:  # rows are folded: none to tell the sums by
            return compute(self, pair)
        if not self._cache:  # changed since, or new
            self.remembered = known.setdefault(_content(self), {})
        if pair not in self._cache and pair in self.remembered:
            self._cache[pair] = self.remembered[pair]
        self.remembered[pair] = compute(self, pair)
        return self.remembered[pair]

    return estimate_pair


def _content(sums):
    """All that the estimates of sums depend on."""
    digest = sha256(repr((sums.plan.sums, sums.plan.gram, sums.dtype)).encode())
    for name, total in sums._totals.items():
        digest.update(name.encode() + total.numpy().tobytes())
    for rows, blocks in sums._rows.iter_rows(sums.plan.kept):
        for part in (blocks, *rows.values()):
            digest.update(repr((part.dtype, part.shape)).encode() + part.numpy().tobytes())
    return digest.digest()


def _of_ratios(compute):
    known = {}

    @wraps(compute)
    def compute_ratio_interval(above, below, sizes):
        given = above.tobytes(), below.tobytes(), tuple(sizes)
        if given not in known:
            known[given] = compute(above, below, sizes)
        return known[given]

    return compute_ratio_interval
