"""The regression against one written out plainly, and that it foretells only what it can."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscope.metrics.regression import PENALTIES, regress

RNG = np.random.default_rng(0)


def make_set(n: int, noise: float, *, groups: int = 10, seed: int = 0):
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=(3, n)) * [[1], [50], [0.01]] + [[0], [1000], [3]]
    target = 2 * a + 0.02 * b + noise * rng.normal(size=n)
    return {"a": a, "b": b, "c": c}, target, rng.integers(0, groups, n)


# The reference: normal equations, every image left out in turn.


def reference_ridge(x, y, penalty: float):
    """Coefficients and constant of the minimum of Σ (y − c − ⟨b, x⟩)² + penalty ‖b‖²."""
    design = np.column_stack([x, np.ones(len(x))])
    ridge = np.diag([penalty] * x.shape[1] + [0])
    solution = np.linalg.solve(design.T @ design + ridge, design.T @ y)
    return solution[:-1], solution[-1]


def reference_choice(x, y) -> float:
    def error(penalty: float) -> float:
        total = 0.0
        for i in range(len(y)):
            others = np.arange(len(y)) != i
            b, c = reference_ridge(x[others], y[others], penalty)
            total += (y[i] - x[i] @ b - c) ** 2
        return total

    return min((len(y) * penalty for penalty in PENALTIES), key=error)


def reference_regression(covariates, target, groups) -> tuple[float, list[float]]:
    x = np.column_stack(list(covariates.values()))
    errors, totals = [], []
    for group in set(groups.tolist()):
        inside, outside = groups == group, groups != group
        mean, std = x[outside].mean(axis=0), x[outside].std(axis=0)
        z, y = (x - mean) / std, target
        penalty = reference_choice(z[outside], y[outside])
        b, c = reference_ridge(z[outside], y[outside], penalty)
        errors += list((y[inside] - z[inside] @ b - c) ** 2)
        totals += list((y[inside] - y[outside].mean()) ** 2)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    b, _ = reference_ridge(z, target, reference_choice(z, target))
    return 1 - sum(errors) / sum(totals), list(b / target.std())


@pytest.mark.parametrize("noise", [0.5, 3.0, 30.0])
def test_the_regression_is_the_one_written_out(noise):
    covariates, target, groups = make_set(40, noise, groups=4)
    found = regress(covariates, target, groups)
    r2, coefficients = reference_regression(covariates, target, groups)
    # Two ways of solving the same float64 equations, whose condition is below 1000.
    assert found.r2 == pytest.approx(r2, abs=1e-9)
    assert list(found.coefficients.values()) == pytest.approx(coefficients, abs=1e-9)
    assert list(found.coefficients) == ["a", "b", "c"]
    assert (found.n, found.left_out, found.undefined) == (40, (), None)


@given(st.permutations(range(30)))
@settings(max_examples=10, deadline=None)
def test_order_changes_nothing_but_rounding(order):
    covariates, target, groups = make_set(30, 1.0, groups=3)
    expected = regress(covariates, target, groups)
    shuffled = {name: values[order] for name, values in covariates.items()}
    found = regress(shuffled, target[order], groups[order])
    assert found.r2 == pytest.approx(expected.r2, abs=1e-9)
    assert found.coefficients == pytest.approx(expected.coefficients, abs=1e-9)


def test_units_do_not_matter():
    covariates, target, groups = make_set(40, 1.0)
    other = {name: 1000 * values - 7 for name, values in covariates.items()}
    found, expected = regress(other, 5 - target / 100, groups), regress(covariates, target, groups)
    assert found.r2 == pytest.approx(expected.r2, abs=1e-9)
    negated = {name: -value for name, value in expected.coefficients.items()}
    assert found.coefficients == pytest.approx(negated, abs=1e-9)


def test_what_is_foretold_is_near_what_is_there():
    covariates, target, groups = make_set(2000, 2.0)
    found = regress(covariates, target, groups)
    # 2 a and 0.02 b have variances 4 and 1, the noise has 4.
    assert found.r2 == pytest.approx(5 / 9, abs=0.05)
    shares = {"a": 2 / 3, "b": 1 / 3, "c": 0}
    assert found.coefficients == pytest.approx(shares, abs=0.05)


def test_noise_foretells_nothing():
    r2 = []
    for seed in range(20):
        covariates, _, groups = make_set(50, 1.0, seed=seed)
        r2.append(regress(covariates, np.random.default_rng(99 + seed).normal(size=50), groups).r2)
    # Fitted and scored on the same images, three covariates would explain 3 / 49 of the variance.
    assert np.mean(r2) < 0.02
    assert np.median(r2) > -0.1


def test_a_group_that_is_foretold_has_no_say_in_what_foretells_it():
    # One group of six lies apart in both: the others, at 1, give no hint of its 100.
    groups = np.arange(60) % 6
    covariates = {"level": np.array([1.0, -1.0, 2.0, -2.0, 0.5, -30.0])[groups]}
    target = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 100.0])[groups]
    assert np.corrcoef(covariates["level"], target)[0, 1] ** 2 > 0.95
    assert regress(covariates, target, groups).r2 < 0.2
    # Dealt to groups at random, its images are foretold by each other.
    assert regress(covariates, target, np.arange(60) // 6 % 5).r2 > 0.95


# Left out and undefined


def test_constant_and_mostly_undefined_covariates_are_left_out_and_named():
    covariates, target, groups = make_set(40, 1.0)
    expected = regress(covariates, target, groups)
    rare = np.where(np.arange(40) < 19, covariates["a"], np.nan)
    more = {"rare": rare, **covariates, "same": np.full(40, 2.5), "none": np.full(40, np.nan)}
    found = regress(more, target, groups)
    assert found.left_out == ("rare", "same", "none")
    assert (found.r2, found.coefficients) == (expected.r2, expected.coefficients)


def test_images_of_which_something_is_undefined_do_not_count():
    covariates, target, groups = make_set(60, 1.0)
    covariates["a"][[3, 8]] = np.nan
    covariates["b"][8] = np.inf
    target[20] = np.nan
    kept = np.setdiff1d(np.arange(60), [3, 8, 20])
    found = regress(covariates, target, groups)
    assert found.n == 57
    assert found == regress({k: v[kept] for k, v in covariates.items()}, target[kept], groups[kept])


def test_a_covariate_that_only_varies_where_others_are_undefined_is_left_out():
    covariates, target, groups = make_set(60, 1.0)
    covariates["a"][:5] = np.nan
    covariates["b"] = np.where(np.arange(60) < 5, covariates["b"], 0.0)
    found = regress(covariates, target, groups)
    assert found.left_out == ("b",)
    assert found.n == 55


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c, t, g: (c, t[:29], g), "29 images, 30 needed for 3 covariates"),
        (lambda c, t, g: (c, t, g % 2), "2 groups of images, 3 needed"),
        (lambda c, t, g: (c, np.full_like(t, 1.0), g), "the target does not vary"),
        (lambda c, t, g: (c, np.full_like(t, np.nan), g), "the target does not vary"),
        (lambda _, t, g: ({}, t, g), "no covariate varies"),
        (lambda _, t, g: ({"a": np.ones_like(t)}, t, g), "no covariate varies"),
        (lambda c, t, g: (c, t[:0], g), "the target does not vary"),
    ],
)
def test_undefined_says_why(change, reason):
    covariates, target, groups = change(*make_set(40, 1.0))
    n = len(target)
    found = regress({k: v[:n] for k, v in covariates.items()}, target, groups[:n])
    assert found.undefined == reason
    assert math.isnan(found.r2)
    assert found.coefficients == {}


def test_lopsided_groups_and_covariates_that_repeat_each_other_are_no_trouble():
    covariates, target, _ = make_set(40, 1.0)
    covariates["again"] = 3 * covariates["a"]
    covariates["flag"] = (np.arange(40) == 0).astype(np.float64)
    groups = np.minimum(np.arange(40), 3)  # Three groups of one image.
    found = regress({k: covariates[k] for k in ("a", "again", "flag")}, target, groups)
    assert math.isfinite(found.r2)
    assert found.coefficients["a"] == pytest.approx(found.coefficients["again"])
