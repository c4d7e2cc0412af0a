"""Cosines and shared neighbours of features, against plain loops."""

import math

import numpy as np
import pytest
import torch

from vitscope.metrics import agreement
from vitscope.metrics.agreement import compare_features, knn_overlap, mean_cosine


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def reference_overlap(a: np.ndarray, b: np.ndarray, k: int) -> float:
    shares = []
    for i in range(len(a)):
        others = [j for j in range(len(a)) if j != i]
        nearest = [
            set(sorted(others, key=lambda j: -cosine(each[i], each[j]))[:k]) for each in (a, b)
        ]
        shares.append(len(nearest[0] & nearest[1]) / k)
    return float(np.mean(shares))


@pytest.mark.parametrize("k", [1, 4, 22])
def test_overlap_counts_the_neighbours_shared(k, monkeypatch):
    a, b = draw(23, 5), draw(23, 3, seed=1)
    expected = reference_overlap(a.double().numpy(), b.double().numpy(), k)
    assert knn_overlap(a, b, k) == pytest.approx(expected, abs=1e-12)
    # Of all images, however many at a time.
    monkeypatch.setattr(agreement, "_ROWS_AT_ONCE", 7)
    assert knn_overlap(a, b, k) == pytest.approx(expected, abs=1e-12)


def test_overlap_of_unrelated_features_is_chance_and_of_rotated_ones_1():
    a, rotation = draw(1500, 8).double(), torch.linalg.qr(draw(8, 8, seed=1).double()).Q
    assert knn_overlap(a, 3 * a @ rotation, 10) == 1
    # Standard deviation over draws is about 0.0007.
    assert knn_overlap(a, draw(1500, 8, seed=2), 10) == pytest.approx(10 / 1499, abs=0.003)


def test_cosine_is_the_mean_over_images():
    a, b = draw(9, 4), draw(9, 4, seed=1)
    pairs = zip(a.double().numpy(), b.double().numpy(), strict=True)
    assert mean_cosine(a, b) == pytest.approx(np.mean([cosine(x, y) for x, y in pairs]), abs=1e-12)
    assert mean_cosine(a, -2 * a) == pytest.approx(-1, abs=1e-12)


def test_a_feature_of_zeros_is_similar_to_none():
    a = draw(4, 3)
    assert mean_cosine(a, a * torch.tensor([[1], [1], [0], [1]])) == pytest.approx(3 / 4)
    assert 0 <= knn_overlap(a, torch.zeros(4, 3), 2) <= 1


def test_tiny_features_keep_their_directions():
    a = draw(30, 4).double()
    assert mean_cosine(a * 1e-20, a) == pytest.approx(1, abs=1e-12)
    assert knn_overlap(a * 1e-20, a, 3) == 1


def test_undefined_agreement_is_nan():
    assert math.isnan(knn_overlap(draw(5, 2), draw(5, 3), 5))
    assert not math.isnan(knn_overlap(draw(5, 2), draw(5, 3), 4))
    assert math.isnan(mean_cosine(draw(0, 2), draw(0, 2)))


def reference_cka(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased, from Gram matrices (Song et al., JMLR 2012)."""

    def hsic(k, l):  # noqa: E741
        n, ones = len(k), np.ones(len(k))
        total = (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
        return np.trace(k @ l) + total - 2 / (n - 2) * ones @ k @ l @ ones

    k, l = (x @ x.T - np.diag(np.diag(x @ x.T)) for x in (a, b))  # noqa: E741
    return float(hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l)))


def test_cka_is_that_of_gram_matrices_and_its_interval_that_of_blocks():
    a = draw(60, 5).double() + 3
    b = a.abs().sqrt() @ draw(5, 5, seed=2).double() + draw(60, 5, seed=1)
    blocks = [i * 7 % 10 for i in range(60)]
    found = compare_features(a, b, blocks)
    assert found.unbiased == pytest.approx(reference_cka(a.numpy(), b.numpy()), abs=1e-9)
    without_one = [
        reference_cka(*(x[[block != i for block in blocks]].numpy() for x in (a, b)))
        for i in range(10)
    ]
    # Blocks of equal size: the plain jackknife.
    error = 3 * np.std(without_one)
    assert found.ci95 is not None
    low, high = found.ci95
    assert low == pytest.approx(found.unbiased - 2.262157 * error, abs=1e-6)
    assert high == pytest.approx(min(1, found.unbiased + 2.262157 * error), abs=1e-6)


def test_cka_with_a_constant_is_nan():
    assert math.isnan(compare_features(draw(20, 3), torch.ones(20, 3), [0, 1] * 10).unbiased)
