"""High-norm patch tokens: counts against plain loops, a threshold that raises no false alarm."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscope.errors import ResultError
from vitscope.metrics.patch_norms import NUM_BINS, PatchNormCounts, bin_of, lower_edge

EDGES = 2.0 ** (np.arange(NUM_BINS + 1) / 16 - 10)
# A bin is a sixteenth of an octave; its middle is at most half of that from any norm in it.
HALF_BIN = 1 / 32 + 1e-9


def count(norms):
    """Counts of one batch."""
    counts = PatchNormCounts()
    counts.update(torch.as_tensor(norms))
    return counts


def count_tokens(norms, patches=1):
    """Counts of one depth, from one norm a token."""
    return count(np.asarray(norms).reshape(-1, 1, patches))


def add_outliers(generator, ordinary, part, factor, spread=0.1):
    """Make a part of the tokens a second mode; tells which."""
    is_high = np.zeros(ordinary.size, dtype=bool)
    is_high[generator.choice(ordinary.size, round(part * ordinary.size), replace=False)] = True
    high = factor * np.median(ordinary) * np.exp(spread * generator.standard_normal(ordinary.size))
    return np.where(is_high, high, ordinary), is_high


def test_bins_are_sixteenths_of_an_octave_and_what_lies_beyond_is_in_the_last():
    assert [lower_edge(index) for index in range(NUM_BINS + 1)] == pytest.approx(EDGES, rel=1e-14)
    inside = torch.from_numpy(np.sqrt(EDGES[:-1] * EDGES[1:]))
    assert bin_of(inside).tolist() == list(range(NUM_BINS))
    # A rounding below an edge, a norm may fall on either side of it; a rounding above, on one.
    assert bin_of(torch.from_numpy(EDGES[:-1] * (1 + 1e-13))).tolist() == list(range(NUM_BINS))
    beyond = torch.tensor([0.0, 2.0**-30, 2.0**14, 1e30, math.inf])
    assert bin_of(beyond).tolist() == [0, 0, NUM_BINS - 1, NUM_BINS - 1, NUM_BINS - 1]


def test_counts_equal_a_plain_loop():
    norms = np.random.default_rng(0).lognormal(2, 1, (7, 3, 5)).astype(np.float32)
    expected = np.zeros((3, 5, NUM_BINS), dtype=int)
    for of_image in norms:
        for depth in range(3):
            for patch in range(5):
                expected[depth, patch] += np.histogram([of_image[depth, patch]], EDGES)[0]
    counts = PatchNormCounts()
    for start in (0, 2, 6):
        counts.update(torch.from_numpy(norms[start : {0: 2, 2: 6, 6: 7}[start]]))
    assert np.array_equal(counts.counts.numpy(), expected)
    assert (counts.num_images, counts.num_depths) == (7, 3)


def test_no_images_no_counts():
    empty = PatchNormCounts()
    assert (empty.num_images, empty.num_depths, empty.counts) == (0, 0, None)
    assert empty.to_tensors() == {}
    empty.merge(PatchNormCounts())
    assert PatchNormCounts.from_tensors({}).num_images == 0
    some = count_tokens([1.0, 2.0])
    some.merge(empty)
    assert some.num_images == 2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(1, 30), groups=st.integers(1, 6))
def test_order_grouping_and_merging_change_nothing(seed, n, groups):
    generator = np.random.default_rng(seed)
    norms = generator.lognormal(1, 1, (n, 2, 6))
    norms[:, :, 1] *= 40
    whole = count(norms)
    shuffled = np.array_split(generator.permutation(norms), groups)
    parts = [count(part) for part in shuffled if len(part)]
    merged = PatchNormCounts()
    for index in generator.permutation(len(parts)):
        merged.merge(parts[index])
    assert torch.equal(merged.counts, whole.counts)
    assert [merged.fit(depth) for depth in (0, 1)] == [whole.fit(depth) for depth in (0, 1)]
    # What was merged is left as it was.
    assert sum(part.num_images for part in parts) == n


def test_counts_that_were_merged_do_not_share_memory():
    part, merged = count_tokens([1.0]), PatchNormCounts()
    merged.merge(part)
    merged.update(torch.ones(1, 1, 1))
    assert (part.num_images, merged.num_images) == (1, 2)


def test_different_grids_do_not_merge():
    counts = count_tokens([1.0, 2.0], patches=2)
    for other in (count_tokens([1.0]), count(np.ones((1, 2, 2)))):
        with pytest.raises(ResultError, match="different grids"):
            counts.merge(other)


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
        found = count_tokens(norms).fit(0)
        assert (found.threshold, found.fraction, found.position_share) == (None, 0.0, None), seed


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
        found = count_tokens(norms, patches=64).fit(0)
        assert 40 < found.threshold < factor * 40
        assert found.fraction == (norms >= found.threshold).mean()
        assert abs(found.fraction - is_high.mean()) * norms.size <= overlap + 1e-9, seed


def test_the_shoulder_of_the_ordinary_mode_hides_no_second_one():
    """An octave above the mode there are more ordinary tokens than there are outliers anywhere."""
    generator = np.random.default_rng(0)
    ordinary = 40 * np.exp(0.35 * generator.standard_normal(12_800))
    norms, is_high = add_outliers(generator, ordinary, 0.01, 8)
    assert ((norms > 75) & (norms < 85)).sum() > is_high.sum()
    assert count_tokens(norms).fit(0).fraction == pytest.approx(is_high.mean(), abs=1e-4)


def test_a_handful_of_far_tokens_is_no_mode():
    norms = np.concatenate([np.random.default_rng(2).lognormal(3, 0.1, 5000), np.full(12, 400.0)])
    assert count_tokens(norms).fit(0).threshold is None


@pytest.mark.parametrize("factor", [1.2, 1.5, 1.7])
def test_a_mode_within_an_octave_is_not_a_second_one(factor):
    for seed in range(10):
        generator = np.random.default_rng(seed)
        ordinary = generator.lognormal(3, 0.03, 5000)
        norms, _ = add_outliers(generator, ordinary, 0.1, factor, spread=0.01)
        assert count_tokens(norms).fit(0).threshold is None


def test_what_lies_beyond_the_last_bin_is_no_mode():
    """A Cauchy tail that leaves the range of the bins piles up in the last of them."""
    norms = np.abs(20 * np.random.default_rng(0).standard_cauchy(200_000))
    assert (norms > EDGES[-1]).sum() > 100
    assert count_tokens(norms).fit(0).threshold is None


def test_tokens_of_low_norm_are_no_outliers():
    generator = np.random.default_rng(3)
    norms, _ = add_outliers(generator, generator.lognormal(3, 0.1, 5000), 0.1, 0.1)
    assert count_tokens(norms).fit(0).threshold is None


@pytest.mark.parametrize("n", [1, 2, 3, 50, 999])
def test_quantiles_are_those_of_the_norms_to_within_a_bin(n):
    norms = np.random.default_rng(n).lognormal(2, 0.7, n)
    found = count_tokens(norms).fit(0)
    for value, q in ((found.median, 0.5), (found.p99, 0.99)):
        assert abs(math.log2(value / np.quantile(norms, q, method="lower"))) <= HALF_BIN


def make_maps(generator, num_images, patches, choose):
    """Norms of one depth where `choose(image)` says which places are high, and that map."""
    is_high = np.stack([choose(image) for image in range(num_images)])
    ordinary = generator.lognormal(3, 0.1, (num_images, patches))
    return np.where(is_high, 8 * ordinary, ordinary)[:, None], is_high


def correlate_maps(is_high):
    """Mean, over all pairs of different images, of the correlation of their maps of outliers."""
    centred = is_high - is_high.mean()
    pairs = [
        (centred[i] * centred[j]).mean()
        for i in range(len(centred))
        for j in range(len(centred))
        if i != j
    ]
    return np.mean(pairs) / centred.var()


def test_position_share_equals_the_correlation_of_maps_over_pairs_of_images():
    generator = np.random.default_rng(4)
    chance = np.linspace(0, 0.2, 36)
    norms, is_high = make_maps(generator, 60, 36, lambda _: generator.random(36) < chance)
    assert count(norms).fit(0).position_share == pytest.approx(correlate_maps(is_high), abs=1e-12)


@pytest.mark.parametrize("num_images", [40, 400])
def test_position_share_is_nought_for_places_left_to_chance_and_one_for_fixed_ones(num_images):
    generator = np.random.default_rng(5)
    norms, _ = make_maps(generator, num_images, 64, lambda _: generator.random(64) < 0.05)
    # Chance leaves a standard deviation of about √2 / (n √places): 0.005 of 40 images.
    assert count(norms).fit(0).position_share == pytest.approx(0, abs=0.02)
    fixed = np.arange(64) % 20 == 3
    norms, is_high = make_maps(generator, num_images, 64, lambda _: fixed)
    counts = count(norms)
    assert counts.fit(0).position_share == pytest.approx(1, abs=1e-12)
    assert np.array_equal(counts.frequency_of_outliers(0), is_high.mean(axis=0))


def test_one_image_has_no_position_share():
    norms, _ = make_maps(np.random.default_rng(6), 1, 900, lambda _: np.arange(900) % 18 == 0)
    found = count(norms).fit(0)
    assert found.fraction == pytest.approx(1 / 18)
    assert found.position_share is None


def test_frequency_of_outliers_is_counted_place_by_place():
    generator = np.random.default_rng(7)
    chance = np.linspace(0, 0.2, 36)
    norms, is_high = make_maps(generator, 100, 36, lambda _: generator.random(36) < chance)
    both = count(np.concatenate([norms, norms / np.where(is_high, 8, 1)[:, None]], axis=1))
    assert np.array_equal(both.frequency_of_outliers(0), is_high.mean(axis=0))
    assert not both.frequency_of_outliers(1).any()


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9], ids=["ordinary", "below", "beyond"])
def test_saved_counts_are_the_same_counts(scale):
    counts = count(scale * np.random.default_rng(8).lognormal(2, 1, (9, 2, 4)))
    tensors = counts.to_tensors()
    assert tensors["counts"].shape[2] < 200
    restored = PatchNormCounts.from_tensors(tensors)
    assert torch.equal(restored.counts, counts.counts)
    restored.update(torch.ones(1, 2, 4))
    assert (restored.num_images, counts.num_images) == (10, 9)


@pytest.mark.parametrize(
    "change",
    [
        {"counts": None},
        {"first_bin": None},
        {"first_bin": torch.tensor(3)},
        {"first_bin": torch.tensor([], dtype=torch.int64)},
        {"first_bin": torch.tensor([NUM_BINS - 1])},
        {"counts": torch.zeros(4, 5, dtype=torch.int32)},
    ],
    ids=["no counts", "no bin", "bare bin", "empty bin", "bin too high", "no grid"],
)
def test_damaged_counts_say_so(change):
    counts = count(np.random.default_rng(9).lognormal(2, 1, (9, 2, 4)))
    tensors = counts.to_tensors() | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(ResultError, match=r"counts of patch norms are damaged.*audit again"):
        PatchNormCounts.from_tensors(kept)
