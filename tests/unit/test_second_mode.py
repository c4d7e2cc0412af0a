"""A threshold of patch norms: none where there is one mode, found where there are outliers."""

import math

import numpy as np
import pytest
import torch

from vitscope.metrics.patch_norms import PatchNormCounts
from vitscope.metrics.second_mode import estimate_variance, stand_apart
from vitscope.metrics.sums import Batch


def fit(norms):
    """Outliers among the norms (image, place) of one depth."""
    counts = PatchNormCounts()
    counts.update(Batch({}, [0] * len(norms), patch_norms=torch.as_tensor(norms)[:, None]))
    return counts.fit(0)


def fit_tokens(norms, places=1):
    """Outliers among norms that are independent of one another."""
    return fit(np.asarray(norms).reshape(-1, places))


def add_outliers(generator, ordinary, part, factor, spread=0.1):
    """Make a part of the tokens a second mode; tells which."""
    is_high = np.zeros(ordinary.size, dtype=bool)
    is_high[generator.choice(ordinary.size, round(part * ordinary.size), replace=False)] = True
    high = factor * np.median(ordinary) * np.exp(spread * generator.standard_normal(ordinary.size))
    return np.where(is_high, high, ordinary), is_high


ONE_MODE = {
    "narrow": lambda g, n: g.lognormal(3, 0.1, n),
    "log-normal": lambda g, n: g.lognormal(3, 0.5, n),
    "long tail": lambda g, n: g.lognormal(3, 1.5, n),
    "gamma": lambda g, n: g.gamma(2, 10, n),
    "exponential": lambda g, n: g.exponential(20, n),
    "power law": lambda g, n: 20 * (1 + g.pareto(1.5, n)),
    "Cauchy": lambda g, n: np.abs(20 * g.standard_cauchy(n)),
    "uniform": lambda g, n: g.uniform(0, 100, n),
    # As a small model's are: nearly normal, with a tail on the right.
    "skewed": lambda g, n: 38 + 6 * g.standard_normal(n) + g.exponential(6, n),
    "constant": lambda _, n: np.full(n, 17.3),
}


@pytest.mark.parametrize("name", ONE_MODE)
@pytest.mark.parametrize("n", [1, 2, 7, 64, 1000, 20_000])
def test_one_mode_has_no_outliers_however_long_its_tail(name, n):
    for seed in range(20 if n < 20_000 else 5):
        norms = ONE_MODE[name](np.random.default_rng([seed, n]), n)
        found = fit_tokens(norms, places=1 if n < 20_000 else 100)
        assert (found.threshold, found.fraction, found.position_share) == (None, None, None), seed


@pytest.mark.parametrize(
    ("factor", "spread", "overlap"),
    # By these shapes, so many of the 256 lie where the tails meet, in the worst of the seeds.
    [(3, 0.1, 0), (3, 0.2, 5), (4, 0.1, 0), (4, 0.2, 2), (4, 0.3, 10), (6, 0.2, 0), (6, 0.3, 2)],
)
def test_a_second_mode_is_found_with_its_fraction(factor, spread, overlap):
    for seed in range(20):
        generator = np.random.default_rng(seed)
        ordinary = 40 * np.exp(spread * generator.standard_normal(12_800))
        norms, is_high = add_outliers(generator, ordinary, 0.02, factor)
        found = fit_tokens(norms, places=64)
        assert 40 < found.threshold < factor * 40
        assert found.fraction == (norms >= found.threshold).mean()
        assert abs(found.fraction - is_high.mean()) * norms.size <= overlap + 1e-9, seed


def test_the_shoulder_of_the_ordinary_mode_hides_no_second_one():
    """An octave above the mode there are more ordinary tokens than there are outliers anywhere."""
    generator = np.random.default_rng(0)
    ordinary = 40 * np.exp(0.35 * generator.standard_normal(12_800))
    norms, is_high = add_outliers(generator, ordinary, 0.01, 8)
    assert ((norms > 75) & (norms < 85)).sum() > is_high.sum()
    assert fit_tokens(norms).fraction == pytest.approx(is_high.mean(), abs=1e-4)


def test_a_handful_of_far_tokens_is_no_mode():
    norms = np.concatenate([np.random.default_rng(2).lognormal(3, 0.1, 5000), np.full(12, 400.0)])
    assert fit_tokens(norms).threshold is None


@pytest.mark.parametrize("factor", [1.2, 1.5, 1.7])
def test_a_mode_within_an_octave_is_not_a_second_one(factor):
    for seed in range(10):
        generator = np.random.default_rng(seed)
        ordinary = generator.lognormal(3, 0.03, 5000)
        norms, _ = add_outliers(generator, ordinary, 0.1, factor, spread=0.01)
        assert fit_tokens(norms).threshold is None


def test_outliers_of_enormous_norms_are_found():
    """Residual streams that grow over the depth reach norms of many thousands."""
    generator = np.random.default_rng(0)
    ordinary = 9000 * np.exp(0.1 * generator.standard_normal(12_800))
    norms, is_high = add_outliers(generator, ordinary, 0.02, 8)
    found = fit_tokens(norms, places=64)
    assert 9000 * 2 < found.threshold < 9000 * 8
    assert found.fraction == is_high.mean()


def test_what_lies_beyond_the_last_bin_is_no_mode():
    """A tail that leaves the range of the bins piles up in the last of them."""
    norms = 2.0**14 * np.abs(20 * np.random.default_rng(0).standard_cauchy(200_000))
    assert (norms > 2.0**24).sum() > 100
    assert fit_tokens(norms, places=100).threshold is None


def test_tokens_of_low_norm_are_no_outliers():
    generator = np.random.default_rng(3)
    norms, _ = add_outliers(generator, generator.lognormal(3, 0.1, 5000), 0.1, 0.1)
    assert fit_tokens(norms).threshold is None


# --- places and images that are unlike one another -----------------------------------------------

LOG_NORMS = {
    "normal": lambda g, n: g.standard_normal(n),
    "Student": lambda g, n: g.standard_t(3, n) / math.sqrt(3),
    "gamma": lambda g, n: np.log(g.gamma(2, 1, n)) / 0.8,
    "Pareto": lambda g, n: g.exponential(1, n),
    "log-uniform": lambda g, n: g.uniform(-math.sqrt(3), math.sqrt(3), n),
    "Laplace": lambda g, n: g.laplace(0, math.sqrt(0.5), n),
    # Those of places or of images, 0.8 octaves apart where they are scaled by 0.55.
    "two near modes": lambda g, n: g.choice([0, 1], n, p=[0.8, 0.2]) + 0.1 * g.standard_normal(n),
}
# Standard deviations of the log norm between places, between images, and of the rest.
SPREADS = [
    *((0.35, 0, 0.02), (0.5, 0, 0.02), (0.5, 0, 0.1), (0, 0.5, 0.02), (0, 0.5, 0.1)),
    *((0.35, 0.35, 0.02), (0.5, 0.5, 0.1), (0.2, 0.2, 0.5)),
]


def draw_clumps(generator, shape, spread, images, places):
    """Norms of one mode, whatever the places and images that they clump by."""
    between_places, between_images, rest = spread
    draw = LOG_NORMS[shape]
    if shape == "two near modes":
        # Their sum would have a third mode.
        between_places, between_images = 0.55 * (between_places > 0), 0.55 * (between_places == 0)
        rest = 0.05
    log_norms = rest * generator.standard_normal((images, places))
    log_norms += between_places * draw(generator, places)
    log_norms += between_images * draw(generator, images)[:, np.newaxis]
    return 20 * np.exp(log_norms)


@pytest.mark.parametrize("shape", LOG_NORMS)
def test_clumps_of_places_or_images_are_no_modes(shape):
    """However many images repeat them: none of 48 draws of each shape."""
    found = 0
    for seed, spread in enumerate(SPREADS):
        for images, places in ((24, 16), (50, 64), (50, 196), (5, 256), (300, 256), (1, 256)):
            generator = np.random.default_rng([seed, images, places])
            norms = draw_clumps(generator, shape, spread, images, places)
            found += fit(norms).threshold is not None
    assert found == 0


@pytest.mark.parametrize("dimension", [8, 64, 1536])
def test_norms_of_normal_vectors_have_one_mode(dimension):
    """However wide they are spread: a chi distribution, narrow in a high dimension."""
    generator = np.random.default_rng(dimension)
    for _ in range(20):
        scales = np.exp(0.35 * generator.standard_normal(64))
        norms = np.sqrt(generator.chisquare(dimension, (50, 64)))
        assert fit(norms).threshold is None
        assert fit(scales * norms).threshold is None


@pytest.mark.parametrize("raised", [1, 3, 10])
@pytest.mark.parametrize("factor", [4, 30])
def test_a_few_images_that_raise_all_their_norms_are_no_mode(raised, factor):
    norms = np.random.default_rng(2).lognormal(3, 0.1, (50, 196))
    norms[:raised] *= factor
    assert fit(norms).threshold is None


def test_a_token_that_stands_apart_in_a_single_image_is_no_mode():
    for seed in range(20):
        generator = np.random.default_rng(seed)
        image = generator.lognormal(3, 0.3, (1, 256))
        image[0, : 1 + seed % 3] *= 10
        assert fit(image).threshold is None


def test_more_than_half_of_the_tokens_are_no_outliers():
    """A narrow mode of few tokens, as of a plain background, may be the highest one."""
    generator = np.random.default_rng(3)
    is_plain = generator.random((40, 64)) < 0.4
    norms = np.where(is_plain, 10.0, 60 * np.exp(0.4 * generator.standard_normal(is_plain.shape)))
    assert fit(norms).threshold is None
    assert fit(np.where(is_plain, norms, 10.0)).threshold is None


# --- outliers that are there ---------------------------------------------------------------------


def choose_at_random(generator, images, places, part):
    return generator.random((images, places)) < part


def choose_places(generator, images, places, part):
    """The same in every image."""
    chosen = generator.choice(places, max(1, round(part * places)), replace=False)
    return np.broadcast_to(np.isin(np.arange(places), chosen), (images, places))


def choose_places_by_half(generator, images, places, part):
    """The same places, each in half of the images."""
    return choose_places(generator, images, places, 2 * part) & (
        generator.random((images, places)) < 0.5
    )


def choose_in_few_images(generator, images, places, part):
    """Any places of a tenth of the images, a quarter of each at most."""
    is_of = np.isin(np.arange(images), generator.choice(images, images // 10, replace=False))
    return is_of[:, np.newaxis] & choose_at_random(generator, images, places, min(10 * part, 0.25))


WHERE = [choose_at_random, choose_places, choose_places_by_half, choose_in_few_images]


@pytest.mark.parametrize("choose", WHERE)
@pytest.mark.parametrize(
    ("images", "places", "part"),
    # A tenth of the 50 images is no more than five of them.
    [(50, 196, 0.01), (50, 196, 0.05), (400, 64, 0.016), (200, 256, 0.003), (200, 256, 0.05)],
)
@pytest.mark.parametrize("factor", [5, 10])
def test_outliers_are_found_wherever_they_sit(choose, images, places, part, factor):
    """Among places and images that differ by 10 % each, as single tokens do."""
    for seed in range(3):
        generator = np.random.default_rng([seed, images, places])
        norms = draw_clumps(generator, "normal", (0.1, 0.1, 0.1), images, places)
        is_high = choose(generator, images, places, part)
        norms[is_high] *= factor
        found = fit(norms)
        assert found.threshold is not None, seed
        assert found.fraction == pytest.approx(is_high.mean(), rel=0.02), seed


@pytest.mark.parametrize("factor", [10, 300])
def test_one_place_of_a_small_grid_that_always_stands_apart_is_found(factor):
    for seed in range(20):
        generator = np.random.default_rng(seed)
        norms = draw_clumps(generator, "normal", (0.05, 0.05, 0.02), 40, 16)
        norms[:, 5] *= factor
        found = fit(norms)
        assert found.fraction == 1 / 16, seed
        assert found.position_share == pytest.approx(1)


# --- the parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [1, 2, 7])
def test_the_variance_is_that_of_a_sum_over_clusters(clusters):
    counts = np.random.default_rng(clusters).integers(0, 9, (clusters, 40))
    counts[:, 3] = 2
    found = estimate_variance((counts**2).sum(axis=0), counts.sum(axis=0), clusters)
    spread = clusters * counts.var(axis=0, ddof=1) if clusters > 1 else np.zeros(40)
    np.testing.assert_allclose(found, np.maximum(spread, counts.sum(axis=0)), rtol=1e-12)


@pytest.mark.parametrize("tail", ["normal", "exponential", "Student"])
@pytest.mark.parametrize("n", [24, 64, 200])
def test_a_tail_seldom_leaves_a_gap_as_wide_as_the_range_of_the_others(tail, n):
    """For any k, in octaves: 3 % of draws of Student's t with three degrees of freedom."""
    generator = np.random.default_rng(n)
    draw = {
        "normal": generator.standard_normal,
        "exponential": generator.standard_exponential,
        "Student": lambda m: generator.standard_t(3, m),
    }[tail]
    found = 0
    for _ in range(200):
        values = np.floor(12 * draw(n)).astype(int)
        found += any(stand_apart(values, k) for k in range(1, n // 2 + 1))
    # Exponential ones of few places, as Pareto's norms, are the worst: 13 % of 24.
    assert found <= {24: 45, 64: 15, 200: 15}[n]


def test_the_highest_stand_apart_where_the_gap_is_wider_than_the_range_of_the_others():
    others = np.random.default_rng(0).permutation(np.arange(100, 121))
    for above in (1, 2, 5, 21):
        high = np.full(above, 120)
        widths = [w for w in range(99) if stand_apart(np.append(high + w, others), above)]
        assert widths == list(range(21, 99))
    narrow = np.full(12, 7)
    assert [w for w in range(20) if stand_apart(np.append(narrow, 7 + w), 1)] == list(range(8, 20))
    assert not stand_apart(np.append(narrow[1:], 100), 1)
    assert not stand_apart(np.append(np.full(13, 100), narrow), 13)
    assert not stand_apart(narrow, 0)
