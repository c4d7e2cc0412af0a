"""Sums against the plain forms they stand for: n x n Gram matrices, explicit means, whole sets."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_jackknife import busing_interval
from vitscope.errors import ResultError
from vitscope.metrics.feature_plan import FeaturePlan, make_plan
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.jackknife import NUM_BLOCKS, make_estimate
from vitscope.metrics.moments import add_rows, make_moments, shift_moments
from vitscope.metrics.sums import Batch

GROUPS = ("cls", "registers", "patches")
PAIR = FeaturePlan(
    kept=("x", "y"),
    sums={"x": ("x",), "y": ("y",)},
    comparisons={"r": {"y": ("x", "y")}},
    shares={},
    gram={},
)


def gram_cka(x, y, *, unbiased):
    """CKA the textbook way, with the n x n Gram matrices."""
    k, m = x @ x.T, y @ y.T
    n = len(x)

    def hsic(a, b):
        if not unbiased:
            h = np.eye(n) - 1 / n
            return np.trace(h @ a @ h @ h @ b @ h)
        a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
        one = np.ones(n)
        return (
            np.trace(a @ b)
            + (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ a @ b @ one)
        ) / (n * (n - 3))

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def make_features(plan, num_images, dim, seed, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(num_images, dim, generator=generator) * (1 + i) + offset * (i + 1)
        for i, name in enumerate(plan.kept)
    }


def take(features, rows):
    return {name: value[rows] for name, value in features.items()}


def feed(plan, features, blocks, order, batch_size):
    sums = FeatureSums(plan)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        sums.update(Batch(take(features, rows), [blocks[i] for i in rows]))
    return sums


def estimates(sums):
    """Every number that follows from the sums, by name."""
    found = {}
    for readout, parts in sums.plan.comparisons.items():
        for part in parts:
            cka = sums.estimate_cka(readout, part)
            found[readout, part] = [
                cka.biased,
                cka.unbiased,
                cka.biased_if_unrelated,
                *(cka.ci95 or ()),
            ]
    for total, parts in sums.plan.shares.items():
        for part in parts:
            share = sums.estimate_share(total, part)
            found[total, part, "share"] = [share.value, *(share.ci95 or ())]
    return found


def assert_same(a, b, tolerance):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(
            a[name], b[name], rtol=tolerance, atol=tolerance, err_msg=str(name)
        )


PLAN = make_plan(GROUPS, has_skip=True, has_embedding=True, renormalize=False)


@pytest.mark.parametrize(("n", "dim"), [(257, 4), (57, 64)], ids=["folded", "rows"])
@pytest.mark.parametrize("offset", [0.0, 300.0], ids=["centred", "large mean"])
def test_cka_equals_the_gram_matrix_form(n, dim, offset):
    features = make_features(PLAN, n, dim, seed=1, offset=offset)
    blocks = [i % NUM_BLOCKS for i in range(n)]
    sums = feed(PLAN, features, blocks, list(range(n)), 8)
    rows = {name: value.double().numpy() for name, value in features.items()}
    for readout, parts in PLAN.comparisons.items():
        for part, (full, kept) in parts.items():
            x, y = (sum(rows[p] for p in PLAN.sums[name]) for name in (full, kept))
            found = sums.estimate_cka(readout, part)
            # The plain form centres nothing first, so a large mean costs it digits: centre here.
            x, y = x - x.mean(axis=0), y - y.mean(axis=0)
            assert found.biased == pytest.approx(gram_cka(x, y, unbiased=False), rel=1e-10)
            assert found.unbiased == pytest.approx(
                gram_cka(x, y, unbiased=True), rel=1e-8, abs=1e-10
            )


def test_every_readout_is_compared():
    assert set(PLAN.comparisons) == {"values", "attention", "residual", "block", "embedding"}
    assert set(PLAN.comparisons["residual"]) == {*GROUPS, "skip", "non_patch"}


def test_interval_equals_recomputing_without_each_block():
    n, dim = 161, 3
    features = make_features(PLAN, n, dim, seed=2)
    blocks = [(i * i) % NUM_BLOCKS for i in range(n)]
    sums = feed(PLAN, features, blocks, list(range(n)), 7)
    full, kept = PLAN.comparisons["residual"]["patches"]
    rows = {name: value.double().numpy() for name, value in features.items()}
    x, y = (sum(rows[p] for p in PLAN.sums[name]) for name in (full, kept))

    def unbiased(images):
        return gram_cka(x[images], y[images], unbiased=True)

    expected = busing_interval(unbiased, range(n), blocks)
    assert sums.estimate_cka("residual", "patches").ci95 == pytest.approx(expected, rel=1e-8)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(8, 60),
    dim=st.sampled_from([1, 5]),
    batch_size=st.integers(1, 17),
    cut=st.floats(0, 1),
    offset=st.sampled_from([0.0, 50.0]),
)
def test_order_batches_and_merging_change_nothing(seed, n, dim, batch_size, cut, offset):
    plan = make_plan(("cls", "patches"), has_skip=True, has_embedding=False, renormalize=False)
    features = make_features(plan, n, dim, seed, offset)
    generator = np.random.default_rng(seed)
    blocks = [int(b) for b in generator.integers(0, NUM_BLOCKS, n)]
    whole = feed(plan, features, blocks, list(range(n)), n)
    shuffled = [int(i) for i in generator.permutation(n)]
    split = int(cut * n)
    merged = feed(plan, features, blocks, shuffled[:split], batch_size)
    merged.merge(feed(plan, features, blocks, shuffled[split:], batch_size + 1))
    assert merged.num_images == whole.num_images == n
    assert_same(estimates(whole), estimates(merged), 1e-7)
    torch.testing.assert_close(
        whole.compute_mean("residual/full"),
        merged.compute_mean("residual/full"),
        rtol=1e-9,
        atol=1e-9,
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), sizes=st.tuples(*[st.integers(3, 25)] * 3))
def test_merging_is_associative(seed, sizes):
    plan = make_plan(("patches",), has_skip=True, has_embedding=False, renormalize=False)
    n = sum(sizes)
    features = make_features(plan, n, 1, seed, offset=10.0)
    blocks = [i % NUM_BLOCKS for i in range(n)]
    ends = np.cumsum([0, *sizes])

    def parts():
        return [
            feed(plan, features, blocks, list(range(ends[i], ends[i + 1])), 5) for i in range(3)
        ]

    a, b, c = parts()
    b.merge(c)
    a.merge(b)
    d, e, f = parts()
    d.merge(e)
    d.merge(f)
    assert_same(estimates(a), estimates(d), 1e-8)


def test_sums_that_grow_are_estimated_anew():
    features = make_features(PLAN, 60, 3, seed=0)
    blocks, order = [i % NUM_BLOCKS for i in range(60)], list(range(60))
    grown, merged = (feed(PLAN, features, blocks, order[:40], 40) for _ in range(2))
    assert estimates(grown) == estimates(merged)
    grown.update(Batch(take(features, order[40:]), blocks[40:]))
    merged.merge(feed(PLAN, features, blocks, order[40:], 20))
    whole = feed(PLAN, features, blocks, order, 60)
    assert_same(estimates(grown), estimates(whole), 1e-10)
    assert_same(estimates(merged), estimates(whole), 1e-10)


def load(tensors, folder):
    sums = FeatureSums(PLAN)
    sums.load(tensors, folder)
    return sums


@pytest.mark.parametrize("dim", [1, 4, 40], ids=["mostly folded", "both", "rows"])
def test_saved_sums_are_the_same_sums(dim, tmp_path):
    n = 190
    features = make_features(PLAN, n, dim, seed=3, offset=5.0)
    sums = FeatureSums(PLAN, folder=tmp_path)
    for start in range(0, n, 19):
        rows = list(range(start, start + 19))
        sums.update(Batch(take(features, rows), [i % NUM_BLOCKS for i in rows]))
    tensors = sums.save()
    assert any(name.startswith("reference") for name in tensors) == (dim < 40)
    assert any(tmp_path.glob("*.safetensors"))
    restored = load(tensors, tmp_path)
    assert restored.num_images == n
    assert estimates(restored) == estimates(sums)


@pytest.mark.parametrize("dim", [1, 40], ids=["folding", "rows"])
def test_what_is_saved_is_only_read(dim, tmp_path):
    features = make_features(PLAN, 30, dim, seed=3)
    sums = FeatureSums(PLAN, folder=tmp_path)
    sums.update(Batch(features, [i % NUM_BLOCKS for i in range(30)]))
    tensors = sums.save()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    assert before
    restored = load(tensors, tmp_path)
    more = make_features(PLAN, 300, dim, seed=4)
    restored.update(Batch(more, [i % NUM_BLOCKS for i in range(300)]))
    restored.merge(load(tensors, tmp_path))
    assert restored.num_images == 360
    assert math.isfinite(restored.estimate_cka("residual", "patches").unbiased)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_damaged_sums_say_what_is_missing(tmp_path):
    features = make_features(PLAN, 190, 4, seed=3, offset=5.0)
    sums = FeatureSums(PLAN, folder=tmp_path)
    sums.update(Batch(features, [i % NUM_BLOCKS for i in range(190)]))
    sums.update(Batch(take(features, [0]), [0]))
    tensors = sums.save()
    some = {name: value for name, value in tensors.items() if name != "total/values/cls"}
    with pytest.raises(KeyError, match="total/values/cls"):
        load(some, tmp_path)
    shard = next(tmp_path.glob("*.safetensors"))
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(KeyError, match="rows of 1 images"):
        load(tensors, tmp_path)
    (tmp_path / "elsewhere").rename(shard)
    next(tmp_path.glob("moments/*.safetensors")).unlink()
    with pytest.raises(ResultError, match="cannot be read"):
        load(tensors, tmp_path)


def test_shares_sum_to_one():
    features = make_features(PLAN, 40, 6, seed=4, offset=2.0)
    sums = feed(PLAN, features, [i % NUM_BLOCKS for i in range(40)], list(range(40)), 11)
    for total, parts in PLAN.shares.items():
        shares = [sums.estimate_share(total, part).value for part in parts]
        assert sum(shares) == pytest.approx(1, abs=1e-12)


def test_share_equals_its_definition():
    features = make_features(PLAN, 40, 6, seed=5, offset=2.0)
    sums = feed(PLAN, features, [i % NUM_BLOCKS for i in range(40)], list(range(40)), 11)
    rows = {name: value.double().numpy() for name, value in features.items()}
    r = sum(rows[name] for name in PLAN.sums["residual/full"])
    r, c = r - r.mean(axis=0), rows["term/patches"] - rows["term/patches"].mean(axis=0)
    expected = (c * r).sum() / (r * r).sum()
    assert sums.estimate_share("residual", "patches").value == pytest.approx(expected, rel=1e-10)


def test_constant_feature_has_no_cka():
    features = make_features(PLAN, 40, 6, seed=6)
    features["term/skip"] = torch.randn(1, 6).expand(40, 6).contiguous()
    sums = feed(PLAN, features, [i % NUM_BLOCKS for i in range(40)], list(range(40)), 11)
    cka = sums.estimate_cka("residual", "skip")
    assert math.isnan(cka.unbiased)
    assert cka.ci95 is None
    assert sums.estimate_share("residual", "skip").value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_images_give_no_unbiased_value(n):
    features = make_features(PLAN, n, 6, seed=7)
    sums = feed(PLAN, features, list(range(n)), list(range(n)), 1)
    cka = sums.estimate_cka("attention", "patches")
    assert math.isnan(cka.unbiased)
    assert cka.ci95 is None


@pytest.mark.parametrize("blocks", [[0, 0, 1], [0, 0, 0, 1], [0, 1]])
def test_a_block_that_leaves_one_image_tells_no_interval(blocks):
    """Of one image nothing varies but rounding, and rounding has no share."""
    features = make_features(PLAN, len(blocks), 6, seed=7, offset=3.0)
    sums = feed(PLAN, features, blocks, list(range(len(blocks))), 2)
    share = sums.estimate_share("residual", "patches")
    assert math.isfinite(share.value)
    assert share.ci95 is None
    assert make_estimate(1.0, [0.9, 1.1], [2, 2]).ci95 is not None


def test_different_plans_do_not_merge():
    other = make_plan(("patches",), has_skip=True, has_embedding=True, renormalize=False)
    with pytest.raises(ResultError, match="different features"):
        FeatureSums(PLAN).merge(FeatureSums(other))


def test_renormalised_outputs_are_compared_and_shares_stay_with_the_terms():
    plan = make_plan(GROUPS, has_skip=True, has_embedding=True, renormalize=True)
    assert plan.comparisons["attention"]["patches"] == ("attention/full", "attention/patches")
    assert plan.shares["attention"]["patches"] == ("attention/full", "term/patches")
    assert "values/full" in plan.kept


def moments_about(x, y, reference_x, reference_y):
    moments = make_moments(x.shape[1], y.shape[1])
    add_rows(moments, x - reference_x, y - reference_y)
    return moments


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(1e-3, 1e3))
def test_shifting_moments_equals_computing_them_elsewhere(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(12, d, generator=generator, dtype=torch.float64) for d in (3, 3))
    a, b = (torch.randn(3, generator=generator, dtype=torch.float64) * scale for _ in range(2))
    zero = torch.zeros(3, dtype=torch.float64)
    shifted = shift_moments(moments_about(x, y, zero, zero), a, b)
    direct = moments_about(x, y, a, b)
    for name, value in vars(direct).items():
        size = (1 + scale) ** 4
        torch.testing.assert_close(getattr(shifted, name), value, rtol=1e-9, atol=1e-11 * size)


def test_unrelated_features_reach_the_stated_floor_and_an_unbiased_zero():
    n, d = 400, 150
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    sums = FeatureSums(PAIR, torch.float64)
    sums.update(Batch({"x": x, "y": y}, [i % NUM_BLOCKS for i in range(n)]))
    cka = sums.estimate_cka("r", "y")
    # The floor is a mean; one draw of 400 x 150 stays within a few per cent of it.
    assert cka.biased == pytest.approx(cka.biased_if_unrelated, rel=0.03)
    assert cka.unbiased == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("n", [2, 3, 20])
@pytest.mark.parametrize("degrees", [2, 5, math.inf], ids=["t2", "t5", "Gauss"])
def test_the_floor_is_the_mean_over_all_ways_to_deal_the_images(n, degrees):
    """Whatever the tails of the two features, and however few their images."""
    generator = np.random.default_rng(n)
    x, y = (
        generator.standard_normal((n, 40))
        / (1 if math.isinf(degrees) else np.sqrt(generator.chisquare(degrees, (n, 1)) / degrees))
        for _ in range(2)
    )
    sums = FeatureSums(PAIR, torch.float64)
    rows = {"x": torch.from_numpy(x + 3), "y": torch.from_numpy(y - 5)}
    sums.update(Batch(rows, [i % NUM_BLOCKS for i in range(n)]))
    cka = sums.estimate_cka("r", "y")
    assert cka.biased == pytest.approx(gram_cka(x, y, unbiased=False), rel=1e-9)
    if n <= 3:
        orders = list(itertools.permutations(range(n)))
    else:
        orders = [generator.permutation(n) for _ in range(2000)]
    dealt = [gram_cka(x, y[list(order)], unbiased=False) for order in orders]
    # All orders give the mean exactly; of 2000 at random it is known to four standard errors.
    error = 1e-9 if n <= 3 else 4 * np.std(dealt) / math.sqrt(len(dealt))
    assert cka.biased_if_unrelated == pytest.approx(np.mean(dealt), abs=error)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """A share with a known value: 95 % intervals must cover it most of the time."""
    plan = make_plan(("patches",), has_skip=True, has_embedding=False, renormalize=False)
    covered = 0
    for seed in range(200):
        features = make_features(plan, 80, 3, seed)
        sums = feed(plan, features, [i % NUM_BLOCKS for i in range(80)], list(range(80)), 80)
        i, j = plan.kept.index("term/patches"), plan.kept.index("term/skip")
        truth = (1 + i) ** 2 / ((1 + i) ** 2 + (1 + j) ** 2)
        low, high = sums.estimate_share("residual", "patches").ci95
        covered += low <= truth <= high
    # Binomial(200, 0.95) stays at 180 or above with probability > 0.999.
    assert covered >= 180
