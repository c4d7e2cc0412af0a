"""Draws, classifiers and accuracies against plain code, one image at a time."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import t as student_t

from vitscope.metrics.one_shot import (
    Accuracy,
    average_draws,
    chance_accuracy,
    compute_accuracy,
    draw_pairs,
    fit_logistic,
    fit_nearest,
    group_images,
)


def make_features(num_classes, dim=7, *, seed=0, noise=0.8):
    """Training and test features of classes that differ, with a mean far from zero."""
    generator = np.random.default_rng(seed)
    classes = generator.normal(size=(num_classes, dim)) + 2
    return classes, classes + noise * generator.normal(size=classes.shape)


@st.composite
def labelled_images(draw):
    """(labels, identities) of a few classes; some images are there several times."""
    images = st.tuples(st.sampled_from("abc"), st.sampled_from("0123456789"))
    found = [(label, number) for label in "abc" for number in "xy"]
    found += draw(st.lists(images, max_size=20))
    return draw(st.permutations(found)), draw(st.permutations(found))


@given(labelled_images(), st.integers(0, 5))
def test_draws_do_not_depend_on_the_order_of_images(images, seed):
    drawn = []
    for order in images:
        labels, identities = (list(part) for part in zip(*order, strict=True))
        pairs = draw_pairs(list(group_images(labels, identities).values()), 6, seed)
        for (train, test), label in zip(pairs.reshape(-1, 2), "abc" * 6, strict=True):
            assert labels[train] == labels[test] == label
            assert identities[train] != identities[test]
        drawn.append([(labels[i], identities[i]) for i in pairs.ravel()])
    assert drawn[0] == drawn[1]


def test_every_ordered_pair_is_drawn_equally_often():
    draws = 24_000
    pairs = draw_pairs([[3, 5], [10, 11, 12, 13]], draws, seed=1)
    assert pairs.shape == (draws, 2, 2)
    for column, images in enumerate(([3, 5], [10, 11, 12, 13])):
        counts = Counter(map(tuple, pairs[:, column].tolist()))
        expected = {(a, b) for a in images for b in images if a != b}
        assert set(counts) == expected
        # Five standard deviations of a binomial count.
        mean = draws / len(expected)
        assert all(abs(count - mean) < 5 * math.sqrt(mean) for count in counts.values())


def test_another_seed_draws_other_pairs():
    classes = [list(range(9)), list(range(9, 20))]
    assert not np.array_equal(draw_pairs(classes, 30, 0), draw_pairs(classes, 30, 1))
    assert np.array_equal(draw_pairs(classes, 30, 1), draw_pairs(classes, 30, 1))


def test_cosines_are_those_of_their_definition():
    train, test = make_features(6)
    found = fit_nearest(train)(test)
    for i, a in enumerate(test):
        for j, b in enumerate(train):
            expected = sum(a * b) / math.sqrt(sum(a * a) * sum(b * b))
            assert found[i, j] == pytest.approx(expected, abs=1e-12)


def plain_logits(x, z):
    """Penalised likelihood of one image a class, minimised from a random start with its gradient.

    Of two classes scikit-learn fits the sigmoid of one logit, as its documentation says.
    """
    classes, dim = x.shape
    outputs = 1 if classes == 2 else classes

    def loss(flat):
        weights, offsets = flat[:-outputs].reshape(outputs, dim), flat[-outputs:]
        logits = x @ weights.T + offsets
        if outputs == 1:
            logits = np.hstack([np.zeros_like(logits), logits])
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances = exponents / exponents.sum(axis=1, keepdims=True)
        value = 0.5 * (weights**2).sum() - np.log(chances.diagonal()).sum()
        slope = (chances - np.eye(classes))[:, -outputs:]
        return value, np.concatenate([(weights + slope.T @ x).ravel(), slope.sum(axis=0)])

    start = np.random.default_rng(9).normal(size=outputs * (dim + 1))
    best = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x
    logits = z @ best[:-outputs].reshape(outputs, dim).T + best[-outputs:]
    return np.hstack([-logits, logits]) if outputs == 1 else logits


@pytest.mark.parametrize("num_classes", [2, 3, 25])
def test_logits_are_those_of_a_plain_minimiser(num_classes):
    """The loss is strictly convex but for one number added to all logits, which decides nothing.

    scikit-learn stops where no entry of the gradient, divided by the number of images, is above
    1e-6, this minimiser at 1e-9. The penalty curves the loss by at least 1, so the 200 weights of
    25 classes are then within 25 · 1e-6 · √200 = 4e-4, and logits of features of norm 5 within
    2e-3.
    """
    train, test = make_features(num_classes)
    centre = train.mean(axis=0)
    size = math.sqrt(((train - centre) ** 2).sum() / train.size)
    difference = fit_logistic(train)(test) - plain_logits(
        (train - centre) / size, (test - centre) / size
    )
    difference -= difference.mean(axis=1, keepdims=True)
    assert np.abs(difference).max() < 2e-3


@pytest.mark.parametrize("fit", [fit_nearest, fit_logistic])
def test_turning_features_around_changes_no_answer(fit):
    train, test = make_features(5, dim=4)
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(4, 4)))
    found, turned = fit(train)(test), fit(7 * train @ turn)(7 * test @ turn)
    np.testing.assert_allclose(found, turned, atol=1e-3)


@pytest.mark.parametrize("fit", [fit_nearest, fit_logistic])
def test_training_images_are_told_apart(fit):
    train, _ = make_features(8)
    assert compute_accuracy(fit(train)(train)) == Accuracy(1, 1)


@pytest.mark.parametrize("num_classes", [2, 4, 6, 40])
def test_accuracy_counts_the_true_class_among_the_highest(num_classes):
    scores = np.random.default_rng(num_classes).normal(size=(num_classes, num_classes))
    ranks = [sorted(row, reverse=True).index(row[i]) for i, row in enumerate(scores)]
    found = compute_accuracy(scores)
    assert found.top1 == pytest.approx(np.mean([rank < 1 for rank in ranks]))
    assert found.top5 == pytest.approx(np.mean([rank < 5 for rank in ranks]))


@given(st.permutations(range(9)), st.integers(0, 100))
def test_accuracy_does_not_depend_on_the_order_of_classes(order, seed):
    # Whole numbers, so that there are ties.
    scores = np.random.default_rng(seed).integers(0, 4, (9, 9)).astype(float)
    again = compute_accuracy(scores[np.ix_(order, order)])
    assert again == pytest.approx(compute_accuracy(scores))


@pytest.mark.parametrize("fit", [fit_nearest, fit_logistic])
@pytest.mark.parametrize("value", [0.0, 1.7])
@pytest.mark.parametrize("num_classes", [2, 7])
def test_features_that_never_vary_score_exactly_chance(fit, value, num_classes):
    constant = np.full((num_classes, 3), value)
    found = compute_accuracy(fit(constant)(constant))
    assert found == pytest.approx(chance_accuracy(num_classes))


def test_a_test_feature_of_zeros_is_a_guess():
    train, _ = make_features(10)
    found = compute_accuracy(fit_nearest(train)(np.zeros_like(train)))
    assert found == pytest.approx((0.1, 0.5))


def test_chance():
    assert chance_accuracy(4) == (0.25, 1)
    assert chance_accuracy(100) == (0.01, 0.05)


def test_interval_is_students():
    values = np.array([0.2, 0.5, 0.4, 0.4])
    found = average_draws(values)
    mean = sum(values) / 4
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / 3)
    half = student_t.ppf(0.975, 3) * spread / 2
    assert found.value == pytest.approx(mean)
    assert found.ci95 == pytest.approx((mean - half, mean + half))
    assert average_draws(values[:1]).ci95 is None


def test_interval_holds_the_mean_of_all_draws_19_times_in_20():
    """Of classes of three images whose answers are known: 300 repetitions, binomial margin."""
    generator = np.random.default_rng(5)
    right = generator.random((12, 3, 3)) < 0.4  # of each class, by training and test image
    classes = [[3 * c, 3 * c + 1, 3 * c + 2] for c in range(12)]
    truth = np.mean([right[c, i, j] for c in range(12) for i in range(3) for j in {0, 1, 2} - {i}])
    hits = 0
    for seed in range(300):
        pairs = draw_pairs(classes, 20, seed) % 3
        accuracy = right[np.arange(12), pairs[..., 0], pairs[..., 1]].mean(axis=1)
        low, high = average_draws(accuracy).ci95
        hits += low <= truth <= high
    assert 300 * 0.95 - 4 * math.sqrt(300 * 0.95 * 0.05) <= hits
    assert hits <= 300 * 0.95 + 4 * math.sqrt(300 * 0.95 * 0.05)
