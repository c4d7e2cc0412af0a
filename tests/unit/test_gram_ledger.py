"""The Gram ledger against explicit n x n Gram matrices, biased and unbiased."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_jackknife import ratio_interval
from vitscope.metrics.feature_plan import make_plan
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.jackknife import NUM_BLOCKS
from vitscope.metrics.sums import Batch

GROUPS = ("cls", "registers", "patches")
TOTALS = {"attention": GROUPS, "residual": (*GROUPS, "skip")}
SIZES = [pytest.param(157, 3, id="folded"), pytest.param(57, 24, id="rows")]


def make_features(plan, n, dim, seed=0):
    """Terms that go together, each with a large mean of its own."""
    generator = np.random.default_rng(seed)
    common = generator.standard_normal((n, dim))
    features = {}
    for i, name in enumerate(plan.kept):
        own = generator.standard_normal((n, dim))
        mean = 10 * generator.standard_normal(dim)
        features[name] = (1 + i) * own + (-1) ** i * common + mean
    return features


def feed(plan, features, blocks, order, batch_size):
    sums = FeatureSums(plan, torch.float64)
    for start in range(0, len(order), batch_size):
        rows = list(order[start : start + batch_size])
        batch = {name: torch.from_numpy(value[rows]) for name, value in features.items()}
        sums.update(Batch(batch, [int(blocks[i]) for i in rows]))
    return sums


def gram_shares(terms):
    """⟨G, X_a X_bᵀ⟩ / ⟨G, G⟩ with n x n matrices, everything centred over images."""
    centred = {name: x - x.mean(axis=0) for name, x in terms.items()}
    total = sum(centred.values())
    gram = total @ total.T
    return {
        (a, b): (gram * (x @ y.T)).sum() / (gram * gram).sum()
        for a, x in centred.items()
        for b, y in centred.items()
    }


def unbiased_shares(terms):
    """HSIC_u(G, G_ab) / HSIC_u(G, G) from Gram matrices without their diagonals."""
    total = sum(terms.values())
    n = len(total)
    if n < 4:
        return dict.fromkeys(((a, b) for a in terms for b in terms), math.nan)

    def hsic(k, m):
        m = (m + m.T) / 2
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        one = np.ones(n)
        return (
            np.trace(k @ m)
            + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ k @ m @ one)
        ) / (n * (n - 3))

    gram = total @ total.T
    of_all = hsic(gram, gram)
    return {
        (a, b): (hsic(gram, x @ y.T) / of_all, hsic(gram, x @ y.T), of_all)
        for a, x in terms.items()
        for b, y in terms.items()
    }


def pick(features, names, rows=slice(None)):
    return {name: features[f"term/{name}"][rows] for name in names}


def flat(ledger):
    return {(a, b): share for a, row in ledger.items() for b, share in row.items()}


def assert_same(a, b, tolerance):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for pair, share in a.items():
        assert b[pair].biased == pytest.approx(share.biased, abs=tolerance), pair
        assert b[pair].unbiased == pytest.approx(share.unbiased, abs=tolerance), pair
        assert b[pair].ci95 == pytest.approx(share.ci95, abs=tolerance), pair


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize(("n", "dim"), SIZES)
def test_shares_and_intervals_equal_the_gram_matrix_form(n, dim, total, renormalize):
    plan = make_plan(GROUPS, has_skip=True, has_embedding=True, renormalize=renormalize)
    features, blocks = make_features(plan, n, dim), np.arange(n) ** 2 % 7
    sums = feed(plan, features, blocks, range(n), 9)
    assert any(name.startswith("reference") for name in sums.save()) == (dim == 3)
    found = flat(sums.estimate_gram_ledger(total))
    terms = pick(features, TOTALS[total])
    biased, unbiased = gram_shares(terms), unbiased_shares(terms)
    assert found.keys() == biased.keys()
    for pair, share in found.items():
        assert share.biased == pytest.approx(biased[pair], abs=1e-10)
        assert share.unbiased == pytest.approx(unbiased[pair][0], abs=1e-10)

        def quadratics(rows, pair=pair):
            left = {name: term[rows] for name, term in terms.items()}
            return np.array(unbiased_shares(left)[pair][1:])

        expected = ratio_interval(quadratics, blocks, by_image=dim != 3)
        assert share.ci95 == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("total", TOTALS)
def test_shares_sum_to_one_and_are_symmetric(total):
    plan = make_plan(GROUPS, has_skip=True, has_embedding=False, renormalize=False)
    features = make_features(plan, 60, 12)
    found = flat(feed(plan, features, np.arange(60) % 10, range(60), 7).estimate_gram_ledger(total))
    for estimator in ("biased", "unbiased"):
        shares = [getattr(share, estimator) for share in found.values()]
        assert sum(shares) == pytest.approx(1, abs=1e-12)
    assert all(found[b, a] == share for (a, b), share in found.items())


def test_terms_that_undo_one_another_have_a_negative_share():
    plan = make_plan(("patches",), has_skip=True, has_embedding=False, renormalize=False)
    features = make_features(plan, 40, 5)
    features["term/skip"] = features["term/patches"] * -0.5
    found = flat(
        feed(plan, features, np.arange(40) % 10, range(40), 7).estimate_gram_ledger("residual")
    )
    # X = X_p / 2, so the patches' own share is 4, the skip's 1, and each cross share −2.
    for estimator in ("biased", "unbiased"):
        shares = [round(getattr(share, estimator), 10) for share in found.values()]
        assert shares == [4, -2, -2, 1]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(20, 110),
    batch_size=st.integers(1, 17),
    cut=st.floats(0, 1),
)
def test_order_batches_folding_and_merging_change_nothing(seed, n, batch_size, cut):
    plan = make_plan(("cls", "patches"), has_skip=True, has_embedding=False, renormalize=False)
    features, blocks = make_features(plan, n, 2, seed), np.arange(n) % NUM_BLOCKS
    whole = feed(plan, features, blocks, range(n), n)
    order, split = np.random.default_rng(seed).permutation(n), int(cut * n)
    merged = feed(plan, features, blocks, order[:split], batch_size)
    merged.merge(feed(plan, features, blocks, order[split:], batch_size + 1))
    for total in ("attention", "residual"):
        assert_same(whole.estimate_gram_ledger(total), merged.estimate_gram_ledger(total), 1e-8)


def test_a_constant_term_has_no_part_and_a_constant_total_no_shares():
    plan = make_plan(("cls", "patches"), has_skip=True, has_embedding=False, renormalize=False)
    features, blocks = make_features(plan, 30, 4), np.arange(30) % 10
    features["term/skip"][:] = features["term/skip"][0]
    found = flat(feed(plan, features, blocks, range(30), 7).estimate_gram_ledger("residual"))
    for (a, b), share in found.items():
        for value in (share.biased, share.unbiased):
            assert (value == pytest.approx(0, abs=1e-12)) == ("skip" in (a, b))
    for name in features:
        features[name][:] = features[name][0]
    constant = feed(plan, features, blocks, range(30), 7)
    for total in ("attention", "residual"):
        for share in flat(constant.estimate_gram_ledger(total)).values():
            assert math.isnan(share.biased)
            assert math.isnan(share.unbiased)
            assert share.ci95 is None


@pytest.mark.parametrize("blocks", [[5], [0, 1], [3, 3], [0, 0, 1]], ids=str)
def test_few_images_have_no_interval_and_one_has_no_share(blocks):
    plan = make_plan(("cls", "patches"), has_skip=True, has_embedding=False, renormalize=False)
    n = len(blocks)
    features = make_features(plan, n, 6)
    found = flat(feed(plan, features, blocks, range(n), 1).estimate_gram_ledger("residual"))
    assert all(share.ci95 is None for share in found.values())
    if n == 1:
        assert all(math.isnan(share.biased) for share in found.values())
    else:
        expected = gram_shares(pick(features, ("cls", "patches", "skip")))
        values = {pair: share.biased for pair, share in found.items()}
        assert values == pytest.approx(expected, abs=1e-10)
    # The unbiased estimator takes four images.
    assert all(math.isnan(share.unbiased) == (n < 4) for share in found.values())


def test_a_pooling_query_has_one_term_which_is_everything():
    plan = make_plan(("patches",), has_skip=False, has_embedding=False, renormalize=False)
    features = make_features(plan, 30, 4)
    sums = feed(plan, features, np.arange(30) % 10, range(30), 7)
    for total in ("attention", "residual"):
        share = sums.estimate_gram_ledger(total)["patches"]["patches"]
        assert (share.biased, share.unbiased, *share.ci95) == pytest.approx((1, 1, 1, 1))


@pytest.mark.parametrize("n", [30, 200])
def test_shares_of_many_directions_are_right_where_the_biased_ones_are_not(n):
    """Two independent terms alike in law: a quarter each, cross terms included."""
    plan = make_plan(("patches",), has_skip=True, has_embedding=False, renormalize=False)
    generator = np.random.default_rng(n)
    found = []
    for _ in range(30):
        features = {name: generator.standard_normal((n, 300)) for name in plan.kept}
        sums = feed(plan, features, np.arange(n) % 10, range(n), n)
        found.append(sums.estimate_gram_ledger("residual")["patches"])
    for part in ("patches", "skip"):
        shares = [row[part].unbiased for row in found]
        assert np.mean(shares) == pytest.approx(0.25, abs=4 * np.std(shares) / math.sqrt(30))
        covered = sum(low <= 0.25 <= high for low, high in (row[part].ci95 for row in found))
        assert covered >= 25  # 28.5 on average; fewer than 25 is a chance of one in a hundred
    assert np.mean([row["patches"].biased for row in found]) > 0.3
