"""What a summary says of tokens where little can be said: no outliers found, norms of zero."""

import math

import numpy as np
import pytest
import torch

from vitscope.metrics.patch_norms import PatchNormCounts
from vitscope.metrics.sums import Batch
from vitscope.results.summary import _find_dominant


def fit(norms):
    """The outliers of one depth, from norms of (image, patch)."""
    counts = PatchNormCounts()
    counts.update(Batch({}, [0] * len(norms), patch_norms=torch.from_numpy(norms[:, np.newaxis])))
    return counts.fit(0)


def plant(images, carriers, factors, patches=256):
    """Ordinary norms that differ by a tenth, and one high norm in each of some images."""
    random = np.random.default_rng(images + carriers)
    norms = random.lognormal(3, 0.1, (images, patches))
    for image, factor in zip(range(carriers), np.resize(factors, carriers), strict=True):
        norms[image, random.integers(patches)] = 20 * factor
    return norms


@pytest.mark.parametrize(
    ("images", "carriers", "factors"),
    [
        pytest.param(100, 20, [61], id="too few"),
        pytest.param(60, 12, [61], id="too few in fewer"),
        pytest.param(100, 60, np.geomspace(4, 4000, 60), id="of many norms"),
        pytest.param(40, 0, [1], id="none"),
    ],
)
def test_outliers_that_cannot_be_found_are_within_the_bounds(images, carriers, factors):
    row = fit(plant(images, carriers, factors))
    assert row.threshold is row.fraction is row.images_fraction is None
    # 25 tokens are never told from a tail, in however many images.
    assert row.images_fraction_at_most == pytest.approx(max(carriers, 25) / images)
    assert row.fraction_at_most == pytest.approx(max(carriers, 25) / (256 * images))


def test_one_place_in_every_image_that_is_not_told_from_a_tail_is_within_the_bounds():
    random = np.random.default_rng(3)
    places = random.lognormal(3, 0.35, 64)
    places[17] = 60
    row = fit(places * random.lognormal(0, 0.05, (200, 64)))
    assert row.threshold is None
    assert row.images_fraction_at_most == 1
    assert row.fraction_at_most >= 1 / 64


def test_outliers_that_are_found_are_numbers_without_bounds():
    row = fit(plant(100, 60, [8, 9]))
    assert row.images_fraction == pytest.approx(0.6)
    assert row.fraction == pytest.approx(0.6 / 256)
    bounds = ("images_fraction_at_most", "fraction_at_most", "doubtful_from")
    assert {getattr(row, name) for name in bounds} == {None}


def test_more_images_leave_less_open():
    few, many = (fit(plant(n, 0, [1])) for n in (100, 1000))
    assert few.images_fraction_at_most == 0.25
    assert many.images_fraction_at_most == 0.025


@pytest.mark.parametrize(
    ("norms", "ratio"),
    [
        ([[0.0, 0.0], [0.0, 0.0]], math.nan),
        ([[3.0, 1.0], [0.0, 0.0]], math.nan),
        ([[3.0, 1.0], [1.0, 1.0]], 2.0),
        ([[3.0, 1.0]], math.nan),
    ],
)
def test_registers_of_no_length_have_no_ratio_and_cause_no_warning(norms, ratio):
    """As the embeddings of registers are before training, or all of a model of zeros."""
    found = _find_dominant(np.array(norms)).ratio
    assert found == pytest.approx(ratio, rel=0, abs=0, nan_ok=True)
