"""Counts of patch norms against plain loops, and what is told of the outliers among them."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscope.errors import ResultError
from vitscope.metrics.jackknife import NUM_BLOCKS
from vitscope.metrics.patch_norms import NUM_BINS, PatchNormCounts, bin_of, lower_edge
from vitscope.metrics.sums import Batch

EDGES = 2.0 ** (np.arange(NUM_BINS + 1) / 16 - 10)
# A bin is a sixteenth of an octave; its middle is at most half of that from any norm in it.
HALF_BIN = 1 / 32 + 1e-9


def block_of(image):
    """Block of an image, by its first norm."""
    return hash(float(image[0, 0])) % NUM_BLOCKS


def norms_of(norms):
    return Batch({}, list(map(block_of, norms)), patch_norms=norms)


def load(tensors):
    counts = PatchNormCounts()
    counts.load(tensors)
    return counts


def count(norms):
    """Counts of one batch."""
    counts = PatchNormCounts()
    counts.update(norms_of(torch.as_tensor(norms)))
    return counts


def assert_same(ours, theirs):
    ours, theirs = ours.save(), theirs.save()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(kept, theirs[name]) for name, kept in ours.items())


def count_tokens(norms, patches=1):
    """Counts of one depth, from one norm a token."""
    return count(np.asarray(norms).reshape(-1, 1, patches))


def test_bins_are_sixteenths_of_an_octave_and_what_lies_beyond_is_in_the_last():
    assert [lower_edge(index) for index in range(NUM_BINS + 1)] == pytest.approx(EDGES, rel=1e-14)
    inside = torch.from_numpy(np.sqrt(EDGES[:-1] * EDGES[1:]))
    assert bin_of(inside).tolist() == list(range(NUM_BINS))
    beyond = torch.tensor([0.0, 2.0**-30, 2.0**24, 1e30, math.inf], dtype=torch.float64)
    assert bin_of(beyond).tolist() == [0, 0, NUM_BINS - 1, NUM_BINS - 1, NUM_BINS - 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bins_are_exact_at_their_edges(dtype):
    """The least number of the type that is not below an edge, the one before, the one after."""
    at = EDGES.astype(dtype)
    at = np.where(at.astype(np.float64) < EDGES, np.nextafter(at, dtype(np.inf)), at)
    for norms, expected in (
        (at, np.arange(NUM_BINS + 1)),
        (np.nextafter(at, dtype(np.inf)), np.arange(NUM_BINS + 1)),
        (np.nextafter(at, dtype(0)), np.arange(NUM_BINS + 1) - 1),
    ):
        found = bin_of(torch.from_numpy(norms).double())
        assert found.tolist() == expected.clip(0, NUM_BINS - 1).tolist()


def count_plainly(norms):
    """Counts of one depth, one (image, place) after the other."""
    images, places = norms.shape
    each = np.zeros((images, places, NUM_BINS), dtype=int)
    for image in range(images):
        for place in range(places):
            each[image, place] = np.histogram([norms[image, place]], EDGES)[0]
    squares = np.zeros(NUM_BINS, dtype=int)
    for index in range(NUM_BINS):
        near = each[:, :, max(0, index - 2) : index + 3].sum(axis=(1, 2))
        squares[index] = (near**2).sum()
    bins = np.sort(each.argmax(axis=2), axis=1)
    contrasts, peaks = np.zeros((2, NUM_BINS), dtype=int)
    for of_image in bins:
        contrasts[of_image[-1] - of_image[(places - 1) // 2]] += 1
        peaks[of_image[-1]] += 1
    return each.sum(axis=0), squares, contrasts, peaks


def assert_counted(counts, depth, norms):
    found = counts.read(depth)
    by_place, squares, contrasts, peaks = count_plainly(norms)
    assert np.array_equal(found.by_place, by_place)
    assert np.array_equal(found.image_squares, squares)
    assert np.array_equal(found.image_contrasts, contrasts)
    assert np.array_equal(found.image_peaks, peaks)
    assert found.num_images == counts.num_images(depth) == len(norms)


def test_counts_equal_a_plain_loop():
    norms = np.random.default_rng(0).lognormal(2, 1, (7, 3, 5)).astype(np.float32)
    counts = PatchNormCounts()
    for start, stop in ((0, 2), (2, 6), (6, 7)):
        counts.update(norms_of(torch.from_numpy(norms[start:stop])))
    for depth in range(3):
        assert_counted(counts, depth, norms[:, depth])
    assert counts.num_depths == 3


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**-9.9, 1.0, 2.0**23.8, 2.0**24])
def test_windows_at_the_ends_of_the_scale_are_cut_off(scale):
    norms = scale * np.array([[1.001, 1.0, 1.2], [1.001, 1.1, 1.0]])
    inside = norms.clip(EDGES[0], EDGES[-1] * (1 - 1e-9))
    assert_counted(count(norms[:, np.newaxis]), 0, inside)


def test_norms_that_are_not_known_are_left_out_at_their_depth_alone():
    """The last block runs for patches in some batches only."""
    norms = np.random.default_rng(1).lognormal(2, 1, (9, 3, 5))
    unknown = norms.copy()
    unknown[[0, 4, 5], 2] = np.nan
    counts = PatchNormCounts()
    for start, stop in ((0, 1), (1, 4), (4, 6), (6, 9)):
        counts.update(norms_of(torch.from_numpy(unknown[start:stop])))
    for depth in (0, 1):
        assert_counted(counts, depth, norms[:, depth])
    assert_counted(counts, 2, norms[[1, 2, 3, 6, 7, 8], 2])


def test_a_depth_without_any_image_has_no_numbers():
    norms = np.random.default_rng(1).lognormal(2, 1, (9, 2, 5))
    norms[:, 1] = np.nan
    counts = count(norms)
    restored = load(counts.save())
    for found in (counts, restored):
        assert (found.num_images(0), found.num_images(1)) == (9, 0)
        assert set(vars(found.fit(1)).values()) == {0, None}
        assert np.isnan(found.frequency_of_outliers(1)).all()
        assert found.fit(0) == counts.fit(0)
    later = np.ones((2, 2, 5))
    restored.update(norms_of(torch.from_numpy(later)))
    merged = count(later)
    merged.merge(counts)
    assert_same(merged, restored)
    assert_counted(merged, 1, later[:, 1])


def test_fractions_above_a_threshold_are_counted_in_each_block():
    norms = np.random.default_rng(10).lognormal(2, 1, (40, 2, 5))
    norms[::7, 1] = np.nan
    counts = load(count(norms).save())
    threshold = lower_edge(16 * 13)
    blocks = np.array(list(map(block_of, norms)))
    for depth in range(2):
        known = ~np.isnan(norms[:, depth, 0])
        above = np.array([sum(norm >= threshold for norm in of) / 5 for of in norms[known, depth]])
        found = counts.replicate_fraction(depth, threshold)
        assert found.sizes == tuple(Counter(sorted(blocks[known].tolist())).values())
        assert found.value == pytest.approx(above.mean(), abs=1e-14)
        left_out = [above[blocks[known] != block].mean() for block in sorted({*blocks[known]})]
        assert found.left_out == pytest.approx(left_out, abs=1e-14)


def test_counts_of_earlier_versions_have_no_blocks_and_merge():
    norms = np.random.default_rng(11).lognormal(2, 1, (9, 2, 5))
    tensors = count(norms[:4]).save()
    del tensors["by_block"]
    earlier = load(tensors)
    assert earlier.fit(0) == count(norms[:4]).fit(0)
    assert earlier.replicate_fraction(0, 8.0) is None
    earlier.merge(count(norms[4:]))
    assert earlier.replicate_fraction(0, 8.0) is None
    assert_counted(load(earlier.save()), 1, norms[:, 1])


def test_no_images_no_counts():
    empty = PatchNormCounts()
    assert empty.num_depths == 0
    assert empty.save() == {}
    empty.merge(PatchNormCounts())
    assert load({}).num_depths == 0
    some = count_tokens([1.0, 2.0])
    some.merge(empty)
    assert some.num_images(0) == 2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(1, 30), groups=st.integers(1, 6))
def test_order_grouping_and_merging_change_nothing(seed, n, groups):
    generator = np.random.default_rng(seed)
    norms = generator.lognormal(1, 1, (n, 2, 6))
    norms[:, :, 1] *= 40
    norms[generator.random(n) < 0.3, 1] = np.nan
    whole = count(norms)
    shuffled = np.array_split(generator.permutation(norms), groups)
    parts = [count(part) for part in shuffled if len(part)]
    merged = PatchNormCounts()
    for index in generator.permutation(len(parts)):
        merged.merge(parts[index])
    assert_same(merged, whole)
    assert [merged.fit(depth) for depth in (0, 1)] == [whole.fit(depth) for depth in (0, 1)]
    # What was merged is left as it was.
    assert sum(part.num_images(0) for part in parts) == n


def test_counts_that_were_merged_do_not_share_memory():
    part, merged = count_tokens([1.0]), PatchNormCounts()
    merged.merge(part)
    merged.update(norms_of(torch.ones(1, 1, 1)))
    assert (part.num_images(0), merged.num_images(0)) == (1, 2)


def test_different_grids_do_not_merge():
    counts = count_tokens([1.0, 2.0], patches=2)
    for other in (np.ones((1, 1, 1)), np.ones((1, 2, 2))):
        with pytest.raises(ResultError, match="different grids"):
            counts.merge(count(other))
        with pytest.raises(ResultError, match="different grids"):
            counts.update(norms_of(torch.from_numpy(other)))
    assert counts.num_images(0) == 1


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
    assert np.isnan(both.frequency_of_outliers(1)).all()


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9], ids=["ordinary", "below", "beyond"])
def test_saved_counts_are_the_same_counts(scale):
    counts = count(scale * np.random.default_rng(8).lognormal(2, 1, (9, 2, 4)))
    restored = load(counts.save())
    assert_same(restored, counts)
    restored.update(norms_of(torch.ones(1, 2, 4)))
    assert (restored.num_images(0), counts.num_images(0)) == (10, 9)


@pytest.mark.parametrize("images", [32_767, 32_768])
def test_counts_are_saved_whole_however_many_there_are(images):
    counts = count(np.full((images, 1, 1), 3.0))
    restored = load(counts.save())
    assert restored.num_images(0) == images == restored.read(0).by_place.sum()


def test_memory_is_that_of_the_norms_that_occur_and_flat_in_the_number_of_images():
    counts = PatchNormCounts()
    generator = torch.Generator().manual_seed(0)
    sizes = []
    for _ in range(40):
        # Norms grow from depth to depth, and at each they stay within two octaves.
        norms = 1 + 3 * torch.rand(8, 6, 100, generator=generator)
        counts.update(norms_of(norms * 2.0 ** torch.arange(6)[:, None]))
        sizes.append(sum(tensor.nbytes for tensor in counts.save().values()))
    assert sizes[-1] == sizes[1]
    # Two octaves a depth and one more from depth to depth.
    bins = 7 * 16 + 1
    assert sizes[-1] <= 6 * (100 * bins * 2 + NUM_BLOCKS * bins * 8 + 3 * NUM_BINS * 8 + 8) + 8


@pytest.mark.parametrize(
    "change",
    [
        {"by_place": None},
        {"first_bin": None},
        {"image_squares": None},
        {"image_contrasts": None},
        {"highest": None},
        {"first_bin": torch.tensor([], dtype=torch.int64)},
        {"first_bin": torch.tensor(NUM_BINS - 1)},
        {"first_bin": torch.tensor(-1)},
        {"by_place": torch.zeros(2, 4, dtype=torch.int32)},
        {"by_place": torch.zeros(2, 4, 5, dtype=torch.int32)},
        {"by_place": torch.zeros(2, 0, 5, dtype=torch.int32)},
        {"by_place": torch.full((3, 4, 1), 9)},
        {"image_squares": torch.zeros(5, dtype=torch.int64)},
        {"image_squares": torch.full((2, NUM_BINS), -1)},
        {"image_squares": torch.full((2, NUM_BINS), 2**60)},
        {"image_peaks": torch.zeros(2, NUM_BINS, dtype=torch.int64)},
        {"image_squares": torch.ones(1, NUM_BINS, dtype=torch.int64)},
        {"by_block": torch.zeros(2, 10, 1, dtype=torch.int64).repeat(1, 1, 999)},
        {"by_block": torch.full((2, 10, 1), 9)},
        {"by_block": torch.full((2, 10, 1), -1)},
        {"highest": torch.tensor(1.0)},
        {"highest": torch.tensor([1.0, math.nan])},
        {"highest": torch.tensor([1.0, -1.0])},
    ],
    ids=[
        *("no counts", "no bin", "no squares", "no contrasts", "no highest", "empty bin"),
        *("bin too high", "bin too low", "no bins", "other counts", "no grid", "other depths"),
        *("few squares", "squares below 0", "squares too high", "other images"),
        *("squares of one depth", "too wide by block", "more by block", "by block below 0"),
        "one highest",
        *("highest undefined", "highest below 0"),
    ],
)
def test_damaged_counts_say_so(change):
    counts = count(np.random.default_rng(9).lognormal(2, 1, (9, 2, 4)))
    tensors = counts.save() | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises((KeyError, ValueError, RuntimeError)):
        load(kept)


@pytest.mark.parametrize("places", [3_000_000, 60_000])
def test_a_small_file_does_not_ask_for_much_memory(monkeypatch, places):
    tensors = count(np.random.default_rng(9).lognormal(2, 1, (9, 2, 4))).save()
    monkeypatch.setattr(PatchNormCounts, "_start", lambda *_: pytest.fail("room was made"))
    with pytest.raises(ValueError, match="counts of patch norms"):
        load(tensors | {"by_place": torch.zeros(2, places, 0, dtype=torch.int16)})
