"""Scores of maps against their definitions, written out, and against captum where it has them."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscope.metrics.faithfulness import (
    FRACTIONS,
    NUM_GROUPS,
    SUBSETS_EACH,
    compute_area,
    compute_completeness,
    compute_comprehensiveness,
    compute_gap,
    compute_infidelity,
    compute_rank,
    compute_saco,
    compute_sensitivity,
    compute_skill,
    compute_sufficiency,
    make_groups,
    make_orders,
    make_prefixes,
    make_subsets,
)

RNG = np.random.default_rng(0)
COUNTS = st.integers(1, 70)


def draw_order(num):
    return RNG.permutation(num)


# Orders and sets


def test_the_order_is_by_decreasing_signed_value():
    values = np.array([0.5, -2.0, 3.0, 0.0])
    assert make_orders(values, RNG.random((3, 4))).tolist() == [[2, 0, 3, 1]]


def test_equal_values_are_ordered_at_random_in_every_draw():
    values = np.array([1.0, 0.0, 0.0, 0.0, 2.0])
    orders = make_orders(values, RNG.random((6000, 5)))
    assert len(orders) == 6000
    assert (orders[:, :2] == [4, 0]).all()
    seen = Counter(map(tuple, orders[:, 2:]))
    assert set(seen) == set(itertools.permutations([1, 2, 3]))
    # Six orders, 1000 of each expected, with a standard deviation of 29.
    assert max(abs(count - 1000) for count in seen.values()) < 5 * 29


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30))
@settings(deadline=None)
def test_increasing_functions_leave_the_order_alone(values):
    values = np.array(values, dtype=float)
    ties = np.random.default_rng(1).random((3, len(values)))
    orders = make_orders(values, ties)
    for transformed in (np.exp(values), values**3 - 7, 2 * values):
        assert np.array_equal(make_orders(transformed, ties), orders)


@given(COUNTS)
@settings(deadline=None)
def test_prefixes_are_the_first_sixteenths_of_an_order(num):
    order = draw_order(num)
    sets = make_prefixes(order)
    assert sets.shape == (17, num)
    for k, removed in enumerate(sets):
        count = round(k * num / 16)
        assert set(np.flatnonzero(removed)) == set(order[:count])


@given(COUNTS)
@settings(deadline=None)
def test_groups_share_out_the_patches_in_their_order(num):
    order = draw_order(num)
    groups = make_groups(order)
    assert len(groups) == min(num, NUM_GROUPS)
    members = [set(np.flatnonzero(group)) for group in groups]
    sizes = [len(group) for group in members]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == num
    start = 0
    for group in members:
        assert group == set(order[start : start + len(group)])
        start += len(group)


def test_subsets_are_of_five_sizes_and_seeded():
    first, again, other = (make_subsets(50, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert Counter(first.sum(axis=1)) == dict.fromkeys([5, 10, 15, 20, 25], SUBSETS_EACH)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert make_subsets(3, np.random.default_rng(0)).sum(axis=1).min() == 1
    # Every patch is in about 30 % of the sets.
    many = np.concatenate([make_subsets(50, np.random.default_rng(i)) for i in range(50)])
    assert np.abs(many.mean(axis=0) - 0.3).max() < 5 * np.sqrt(0.21 / len(many))


# Scores


def test_area_is_that_of_the_trapezoids():
    curve = RNG.normal(size=17)
    by_hand = sum((curve[k] + curve[k + 1]) / 2 / 16 for k in range(16))
    assert compute_area(curve) == pytest.approx(by_hand, abs=1e-14)
    assert compute_area(1 - FRACTIONS) == pytest.approx(0.5)


def test_gap_is_insertion_minus_deletion():
    deletion, insertion = RNG.normal(size=(2, 17))
    expected = compute_area(insertion) - compute_area(deletion)
    assert compute_gap(deletion, insertion) == pytest.approx(expected, abs=1e-14)
    assert compute_gap(deletion + 3, insertion + 3) == pytest.approx(expected, abs=1e-14)


def test_skill_is_0_for_random_and_1_for_the_oracle():
    found = compute_skill(np.array([0.1, 0.6, 1.1, -0.4]), random=0.1, oracle=0.6)
    assert found == pytest.approx([0, 1, 2, -1])
    assert np.isnan(compute_skill(np.array([0.3]), random=0.1, oracle=0.1)).all()
    assert np.isnan(compute_skill(np.array([0.3]), random=0.1, oracle=-0.6)).all()


def rank_by_hand(values):
    return np.array([np.sum(values < v) + (np.sum(values == v) - 1) / 2 for v in values])


def test_rank_is_the_correlation_of_ranks():
    values, deltas = RNG.integers(0, 9, 40).astype(float), RNG.normal(size=40)
    by_hand = np.corrcoef(rank_by_hand(values), rank_by_hand(deltas))[0, 1]
    assert compute_rank(values, deltas) == pytest.approx(by_hand, abs=1e-12)
    assert compute_rank(np.exp(values), deltas) == pytest.approx(by_hand, abs=1e-12)


def test_a_constant_map_ranks_nothing_and_constant_deletions_rank_no_map():
    assert compute_rank(np.ones(9), RNG.normal(size=9)) == 0
    assert np.isnan(compute_rank(RNG.normal(size=9), np.ones(9)))
    assert np.isnan(compute_rank(np.ones(9), np.ones(9)))


def saco_by_hand(means, drops):
    signed = total = 0.0
    for i in range(len(means)):
        for j in range(i + 1, len(means)):
            weight = means[i] - means[j]
            if drops[i] < drops[j]:
                weight = -weight
            signed += weight
            total += abs(weight)
    return signed / total


@given(st.integers(2, 10), st.integers(0, 99))
@settings(deadline=None)
def test_saco_compares_all_pairs_of_groups(num, seed):
    rng = np.random.default_rng(seed)
    means, drops = np.sort(rng.normal(size=num))[::-1], rng.integers(0, 4, num).astype(float)
    assert compute_saco(means, drops) == pytest.approx(saco_by_hand(means, drops), abs=1e-12)


def test_saco_of_extremes():
    means = np.array([3.0, 2.0, -1.0])
    assert compute_saco(means, np.array([5.0, 4.0, 3.0])) == 1
    assert compute_saco(means, np.array([3.0, 4.0, 5.0])) == -1
    assert compute_saco(np.ones(3), np.array([3.0, 4.0, 5.0])) == 0
    rounded = np.array([0.1, 0.1 + 2e-17, 0.1 - 2e-17])
    assert compute_saco(rounded, np.array([3.0, 4.0, 5.0])) == 0


def test_infidelity_is_what_the_best_scale_leaves():
    predicted, drops = RNG.normal(size=(2, 40)) + 1
    (beta,), *_ = np.linalg.lstsq(predicted[:, None], drops, rcond=None)
    by_hand = np.mean([(beta * p - d) ** 2 for p, d in zip(predicted, drops, strict=True)])
    by_hand /= np.mean((drops - np.mean(drops)) ** 2)
    assert compute_infidelity(predicted, drops) == pytest.approx(by_hand, rel=1e-12)
    assert compute_infidelity(-7 * predicted, drops) == pytest.approx(by_hand, rel=1e-12)


def test_infidelity_of_extremes():
    drops = RNG.normal(size=40)
    assert compute_infidelity(3 * drops, drops) == pytest.approx(0, abs=1e-12)
    assert compute_infidelity(np.ones(40), drops) == pytest.approx(1)  # the mean of the drops
    nothing = np.mean(drops**2) / drops.var()
    assert compute_infidelity(np.zeros(40), drops) == pytest.approx(nothing)
    assert np.isnan(compute_infidelity(drops, np.ones(40)))


def test_infidelity_agrees_with_captum():
    captum = pytest.importorskip("captum.metrics", reason="captum is not installed")
    weights, values = torch.from_numpy(RNG.normal(size=(2, 20)))
    subsets = make_subsets(20, np.random.default_rng(0))
    removed = torch.from_numpy(subsets).double()

    def score(inputs):
        return (weights * inputs).sum(dim=1) + inputs.prod(dim=1)

    def perturb(inputs):
        return removed, inputs * (1 - removed)

    inputs = torch.from_numpy(RNG.uniform(0.9, 1.1, size=(1, 20)))
    drops = score(inputs) - score(inputs * (1 - removed))
    theirs = captum.infidelity(
        score, perturb, inputs, values[None], n_perturb_samples=40, normalize=True
    )
    ours = compute_infidelity(subsets @ values.numpy(), drops.numpy())
    assert ours == pytest.approx(float(theirs) / drops.numpy().var(), rel=1e-10)


def test_completeness_is_relative_to_what_a_map_should_sum_to():
    assert compute_completeness(0.9, 1.2) == pytest.approx(0.25)
    assert compute_completeness(-0.9, -1.2) == pytest.approx(0.25)
    assert compute_completeness(1.2, 1.2) == 0
    assert np.isnan(compute_completeness(0.9, 0.0))


def test_sensitivity_is_the_largest_change():
    values = np.array([3.0, 4.0])
    disturbed = np.array([[3.0, 4.5], [2.0, 4.0], [3.0, 4.0]])
    assert compute_sensitivity(values, disturbed) == pytest.approx(1 / 5)
    assert compute_sensitivity(-10 * values, -10 * disturbed) == pytest.approx(1 / 5)
    assert np.isnan(compute_sensitivity(np.zeros(2), disturbed))


def test_sensitivity_agrees_with_captum():
    captum = pytest.importorskip("captum.metrics", reason="captum is not installed")
    image = torch.from_numpy(RNG.normal(size=(1, 30)))
    noise = torch.from_numpy(RNG.uniform(-0.02, 0.02, size=(10, 30)))

    def explain(inputs):
        (each,) = inputs if isinstance(inputs, tuple) else (inputs,)
        return (each.sin(),)

    theirs = captum.sensitivity_max(
        explain, image, perturb_func=lambda inputs: (inputs[0] + noise,), n_perturb_samples=10
    )
    ours = compute_sensitivity(image.sin()[0].numpy(), (image + noise).sin().numpy())
    assert ours == pytest.approx(float(theirs), rel=1e-10)


def test_readable_points_lie_on_the_curves():
    curve = RNG.normal(size=17)
    at_10 = curve[1] + (0.1 * 16 - 1) * (curve[2] - curve[1])
    at_20 = curve[3] + (0.2 * 16 - 3) * (curve[4] - curve[3])
    expected = [at_10, at_20, curve[8]]
    fractions = (0.1, 0.2, 0.5)
    assert compute_sufficiency(curve, fractions) == pytest.approx(expected)
    left = [curve[0] - value for value in expected]
    assert compute_comprehensiveness(curve, fractions) == pytest.approx(left)
