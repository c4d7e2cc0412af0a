"""The Gram ledger against explicit n x n Gram matrices of the centred features."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscope.metrics.feature_plan import make_plan
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.gram_ledger import estimate_gram_ledger
from vitscope.metrics.jackknife import NUM_BLOCKS, compute_interval

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
        sums.update(batch, [int(blocks[i]) for i in rows])
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


def pick(features, names, rows=slice(None)):
    return {name: features[f"term/{name}"][rows] for name in names}


def flat(ledger):
    return {(a, b): share for a, row in ledger.items() for b, share in row.items()}


def assert_same(a, b, tolerance):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for pair, share in a.items():
        assert b[pair].value == pytest.approx(share.value, abs=tolerance), pair
        assert b[pair].ci95 == pytest.approx(share.ci95, abs=tolerance), pair


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize(("n", "dim"), SIZES)
def test_shares_and_intervals_equal_the_gram_matrix_form(n, dim, total, renormalize):
    plan = make_plan(GROUPS, has_skip=True, has_embedding=True, renormalize=renormalize)
    features, blocks = make_features(plan, n, dim), np.arange(n) ** 2 % 7
    sums = feed(plan, features, blocks, range(n), 9)
    assert any(name.startswith("reference") for name in sums.to_tensors()) == (dim == 3)
    found = flat(estimate_gram_ledger(sums, total))
    names = TOTALS[total]
    expected = gram_shares(pick(features, names))
    assert found.keys() == expected.keys()
    kept = sorted(set(blocks))
    left_out = [gram_shares(pick(features, names, blocks != block)) for block in kept]
    sizes = [int((blocks == block).sum()) for block in kept]
    for pair, share in found.items():
        assert share.value == pytest.approx(expected[pair], abs=1e-10)
        interval = compute_interval(expected[pair], [rest[pair] for rest in left_out], sizes)
        assert share.ci95 == pytest.approx(interval, abs=1e-9)


@pytest.mark.parametrize("total", TOTALS)
def test_shares_sum_to_one_and_are_symmetric(total):
    plan = make_plan(GROUPS, has_skip=True, has_embedding=False, renormalize=False)
    features = make_features(plan, 60, 12)
    found = flat(
        estimate_gram_ledger(feed(plan, features, np.arange(60) % 10, range(60), 7), total)
    )
    assert sum(share.value for share in found.values()) == pytest.approx(1, abs=1e-12)
    for (a, b), share in found.items():
        assert found[b, a].value == pytest.approx(share.value, abs=1e-14)
        assert found[b, a].ci95 == pytest.approx(share.ci95, abs=1e-12)


def test_terms_that_undo_one_another_have_a_negative_share():
    plan = make_plan(("patches",), has_skip=True, has_embedding=False, renormalize=False)
    features = make_features(plan, 40, 5)
    features["term/skip"] = features["term/patches"] * -0.5
    found = flat(
        estimate_gram_ledger(feed(plan, features, np.arange(40) % 10, range(40), 7), "residual")
    )
    # X = X_p / 2, so the patches' own share is 4, the skip's 1, and each cross share −2.
    assert [round(share.value, 10) for share in found.values()] == [4, -2, -2, 1]


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
        assert_same(estimate_gram_ledger(whole, total), estimate_gram_ledger(merged, total), 1e-8)


def test_a_constant_term_has_no_part_and_a_constant_total_no_shares():
    plan = make_plan(("cls", "patches"), has_skip=True, has_embedding=False, renormalize=False)
    features, blocks = make_features(plan, 30, 4), np.arange(30) % 10
    features["term/skip"][:] = features["term/skip"][0]
    found = flat(estimate_gram_ledger(feed(plan, features, blocks, range(30), 7), "residual"))
    for (a, b), share in found.items():
        assert (share.value == pytest.approx(0, abs=1e-12)) == ("skip" in (a, b))
    for name in features:
        features[name][:] = features[name][0]
    constant = feed(plan, features, blocks, range(30), 7)
    for total in ("attention", "residual"):
        for share in flat(estimate_gram_ledger(constant, total)).values():
            assert math.isnan(share.value)
            assert share.ci95 is None


@pytest.mark.parametrize("blocks", [[5], [0, 1], [3, 3], [0, 0, 1]], ids=str)
def test_few_images_have_no_interval_and_one_has_no_share(blocks):
    plan = make_plan(("cls", "patches"), has_skip=True, has_embedding=False, renormalize=False)
    n = len(blocks)
    features = make_features(plan, n, 6)
    found = flat(estimate_gram_ledger(feed(plan, features, blocks, range(n), 1), "residual"))
    assert all(share.ci95 is None for share in found.values())
    if n == 1:
        assert all(math.isnan(share.value) for share in found.values())
    else:
        expected = gram_shares(pick(features, ("cls", "patches", "skip")))
        values = {pair: share.value for pair, share in found.items()}
        assert values == pytest.approx(expected, abs=1e-10)


def test_a_pooling_query_has_one_term_which_is_everything():
    plan = make_plan(("patches",), has_skip=False, has_embedding=False, renormalize=False)
    features = make_features(plan, 30, 4)
    sums = feed(plan, features, np.arange(30) % 10, range(30), 7)
    for total in ("attention", "residual"):
        share = estimate_gram_ledger(sums, total)["patches"]["patches"]
        assert (share.value, *share.ci95) == pytest.approx((1, 1, 1))
