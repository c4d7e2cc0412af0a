"""Directions of variance against PCA and projections of the centred rows themselves."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from vitscope.metrics.directions import NUM_DIRECTIONS
from vitscope.metrics.feature_plan import make_plan
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.sums import Batch

TERMS = ("cls", "registers", "patches", "skip")
PLAN = make_plan(TERMS[:3], has_skip=True, has_embedding=True, renormalize=False)


def make_terms(n, dim, seed=0):
    """Terms that vary by unequal amounts in directions of their own, each with a large mean."""
    generator = np.random.default_rng(seed)
    fall = np.geomspace(3, 0.1, dim)
    terms = {}
    for name in TERMS:
        turn = np.linalg.qr(generator.standard_normal((dim, dim)))[0]
        noise = generator.standard_normal((n, dim)) * fall
        terms[name] = noise @ turn + 10 * generator.standard_normal(dim)
    return terms


def feed(terms, order=None, batch_size=9, dtype=torch.float64):
    """Sums of these terms; what else the plan keeps plays no part."""
    sums = FeatureSums(PLAN, dtype)
    order = list(range(len(terms["cls"]))) if order is None else list(order)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = {name: torch.zeros(len(rows), 1, dtype=dtype) for name in PLAN.kept}
        for name, term in terms.items():
            batch[f"term/{name}"] = torch.from_numpy(term[rows]).to(dtype)
        sums.update(Batch(batch, [i % 10 for i in rows]))
    return sums


def leading_of(term):
    """Ten leading principal directions of the centred rows, by singular values."""
    _, values, rows = np.linalg.svd(term - term.mean(axis=0), full_matrices=False)
    return rows[:10][values[:10] > 1e-9 * values[0]].T


def plain_rank(term):
    """(tr Σ)² / tr Σ²; the latter is the mean of ((x_i − x_j)·(x_k − x_l))² / 4, all different."""
    i, j, k, m = np.array(list(permutations(range(len(term)), 4))).T
    squares = ((term[i] - term[j]) * (term[k] - term[m])).sum(axis=1) ** 2 / 4
    return term.var(axis=0, ddof=1).sum() ** 2 / squares.mean()


def assert_same(a, b, tolerance):
    assert a.effective_rank == pytest.approx(b.effective_rank, rel=tolerance)
    assert a.pairs.keys() == b.pairs.keys()
    for first, row in a.pairs.items():
        for second, found in row.items():
            expected = b.pairs[first][second]
            assert found.shared_variance == pytest.approx(expected.shared_variance, abs=tolerance)
            # An angle is read off its cosine: near 0 it keeps half of the digits.
            angles = expected.principal_angles_deg
            assert found.principal_angles_deg == pytest.approx(angles, abs=180 * tolerance**0.5)


@pytest.mark.parametrize(("n", "dim"), [(60, 24), (25, 40), (510, 12)], ids=str)
def test_angles_and_shared_variance_equal_those_of_explicit_projections(n, dim):
    terms = make_terms(n, dim)
    sums = feed(terms)
    assert any(name.startswith("reference") for name in sums.save()) == (n == 510)
    found = sums.describe_directions()
    assert found.num_directions == 10
    assert set(found.pairs) == set(TERMS)
    for a in TERMS:
        assert set(found.pairs[a]) == set(TERMS) - {a}
        for b, pair in found.pairs[a].items():
            ours, theirs = leading_of(terms[a]), leading_of(terms[b])
            angles = np.rad2deg(subspace_angles(ours, theirs))[::-1]
            assert list(pair.principal_angles_deg) == sorted(pair.principal_angles_deg)
            assert pair.principal_angles_deg == pytest.approx(angles, abs=1e-5)
            centred = terms[a] - terms[a].mean(axis=0)
            shared = ((centred @ theirs) ** 2).sum() / (centred**2).sum()
            assert pair.shared_variance == pytest.approx(shared, abs=1e-10)
            assert pair.shared_variance_if_unrelated == pytest.approx(10 / dim)


def test_effective_rank_equals_its_unbiased_definition():
    terms = make_terms(9, 5)
    found = feed(terms).describe_directions().effective_rank
    assert found == pytest.approx({name: plain_rank(term) for name, term in terms.items()})


def test_effective_rank_counts_directions_whatever_the_number_of_images():
    """Six directions of equal variance; the plain ratio would say 5.2 of 40 images."""
    generator = np.random.default_rng(0)
    for n in (40, 400):
        terms = make_terms(n, 30)
        ranks = []
        for _ in range(40):
            terms["cls"][:, :] = 0
            terms["cls"][:, :6] = 3 * generator.standard_normal((n, 6)) + 7
            ranks.append(feed(terms, batch_size=n).describe_directions().effective_rank["cls"])
        # The standard error of these means is 0.1 of 40 images and 0.01 of 400.
        assert np.mean(ranks) == pytest.approx(6, abs=0.3 if n == 40 else 0.05)


def test_identical_terms_share_the_variance_of_their_leading_directions():
    terms = make_terms(50, 24)
    terms["registers"] = 3 * terms["patches"] + 5
    pair = feed(terms).describe_directions().pairs["registers"]["patches"]
    assert pair.principal_angles_deg == pytest.approx([0] * 10, abs=1e-5)
    values = np.linalg.svd(terms["patches"] - terms["patches"].mean(axis=0), compute_uv=False) ** 2
    assert pair.shared_variance == pytest.approx(values[:10].sum() / values.sum(), abs=1e-12)


def test_orthogonal_terms_share_nothing():
    terms = make_terms(50, 24)
    terms["registers"][:, 12:] = terms["patches"][:, :12] = 4
    pairs = feed(terms).describe_directions().pairs
    for pair in (pairs["registers"]["patches"], pairs["patches"]["registers"]):
        assert pair.principal_angles_deg == pytest.approx([90] * 10, abs=1e-5)
        assert pair.shared_variance == pytest.approx(0, abs=1e-12)


def test_a_term_of_few_directions_is_compared_by_those():
    terms = make_terms(50, 24)
    terms["cls"] = 7 + terms["cls"][:, :3] @ np.random.default_rng(1).standard_normal((3, 24))
    pairs = feed(terms).describe_directions().pairs
    assert len(pairs["cls"]["patches"].principal_angles_deg) == 3
    assert pairs["patches"]["cls"].shared_variance_if_unrelated == pytest.approx(3 / 24)
    angles = np.rad2deg(subspace_angles(leading_of(terms["cls"]), leading_of(terms["skip"])))[::-1]
    assert pairs["cls"]["skip"].principal_angles_deg == pytest.approx(angles, abs=1e-5)


def test_unrelated_terms_share_what_is_said_of_them():
    shared = []
    for seed in range(30):
        pairs = feed(make_terms(60, 40, seed), batch_size=60).describe_directions().pairs
        shared += [pair.shared_variance for row in pairs.values() for pair in row.values()]
    assert np.mean(shared) == pytest.approx(10 / 40, abs=0.01)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 2 * NUM_DIRECTIONS - 1, 2 * NUM_DIRECTIONS])
def test_few_images_have_no_directions(n):
    found = feed(make_terms(n, 24)).describe_directions()
    assert bool(found.pairs) == (n == 20)
    assert set(found.effective_rank) == set(TERMS)
    assert all(math.isnan(rank) == (n < 4) for rank in found.effective_rank.values())


def test_a_constant_term_is_left_out():
    terms = make_terms(50, 24)
    terms["skip"][:] = terms["skip"][0]
    for dtype in (torch.float32, torch.float64):
        found = feed(terms, dtype=dtype).describe_directions()
        assert set(found.pairs) == {"cls", "registers", "patches"}
        assert set(found.pairs["cls"]) == {"registers", "patches"}
        assert math.isnan(found.effective_rank["skip"])
        assert math.isfinite(found.effective_rank["cls"])


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**16), batch_size=st.integers(1, 30), cut=st.integers(0, 40))
def test_order_batches_and_merging_change_nothing(seed, batch_size, cut):
    terms = make_terms(40, 12, seed)
    order = [int(i) for i in np.random.default_rng(seed).permutation(40)]
    merged = feed(terms, order[:cut], batch_size)
    merged.merge(feed(terms, order[cut:], batch_size + 1))
    assert_same(feed(terms).describe_directions(), merged.describe_directions(), 1e-9)
