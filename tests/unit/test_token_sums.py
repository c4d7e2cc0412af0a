"""Sums of tokens' states against plain float64 code on the rows themselves, pair by pair."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_jackknife import ratio_interval
from vitscope.errors import ResultError
from vitscope.metrics.jackknife import NUM_BLOCKS
from vitscope.metrics.sums import Batch
from vitscope.metrics.token_sums import NUM_TOP_DIMENSIONS, TokenSums

TOKENS = ("cls", "register_0", "highest_patch")
WIDTHS = {"hidden": 6, "normed": 6, "keys": 8, "values": 4}


def make_states(n, seed=0, widths=WIDTHS):
    """States of n images, each token with a mean of its own beside its noise."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.standard_normal((n, len(TOKENS), width))
        + generator.standard_normal((len(TOKENS), width)) * [[0.0], [1.0], [20.0]]
        for name, width in widths.items()
    }


def take(states, rows):
    return {name: torch.from_numpy(value[rows]) for name, value in states.items()}


def feed(states, blocks, order, batch_size):
    sums = TokenSums(TOKENS)
    for start in range(0, len(order), batch_size):
        rows = list(order[start : start + batch_size])
        sums.update(Batch({}, [int(blocks[i]) for i in rows], states=take(states, rows)))
    return sums


def mean_over_pairs(rows):
    """Mean cosine over all n(n-1) ordered pairs of different rows."""
    n = len(rows)
    if n < 2:
        return math.nan
    return np.mean(
        [
            rows[i] @ rows[j] / (np.linalg.norm(rows[i]) * np.linalg.norm(rows[j]))
            for i in range(n)
            for j in range(n)
            if i != j
        ]
    )


def vary(rows):
    """Unbiased variance over images, summed over dimensions, and the mean squared norm."""
    variance = rows.var(axis=0, ddof=1).sum() if len(rows) > 1 else math.nan
    return np.array([variance, (rows**2).sum(axis=1).mean()])


def share_that_varies(rows):
    """Part of the mean squared norm that varies over images."""
    variance, square = vary(rows)
    return variance / square


STATISTICS = {
    "estimate_pairwise_cosine": mean_over_pairs,
    "estimate_variance_share": share_that_varies,
}
QUADRATICS = {
    "estimate_pairwise_cosine": lambda rows: np.array([mean_over_pairs(rows), 1.0]),
    "estimate_variance_share": vary,
}


def all_estimates(sums):
    return {
        (name, state, token): getattr(sums, name)(state, token)
        for name in STATISTICS
        for state in sums.states
        for token in sums.tokens
    }


def assert_same(a, b, tolerance):
    assert a.keys() == b.keys()
    for key, estimate in a.items():
        assert b[key].value == pytest.approx(estimate.value, rel=tolerance, abs=tolerance), key
        ends, expected = b[key].ci95 or (), estimate.ci95 or ()
        assert ends == pytest.approx(expected, rel=tolerance, abs=tolerance), key


@pytest.mark.parametrize("name", STATISTICS)
def test_estimates_and_intervals_equal_plain_code_with_blocks_left_out(name):
    n = 47
    states, blocks = make_states(n), np.arange(n) ** 2 % 7 + 1
    sums = feed(states, blocks, range(n), 8)
    assert sums.states == tuple(WIDTHS)
    assert len({*np.unique(blocks, return_counts=True)[1]}) > 1
    for state, rows in states.items():
        for index, token in enumerate(TOKENS):
            of_token = rows[:, index]
            value = STATISTICS[name](of_token)
            found = getattr(sums, name)(state, token)
            quadratics = QUADRATICS[name]
            low, high = ratio_interval(
                lambda kept, of_token=of_token, quadratics=quadratics: quadratics(of_token[kept]),
                blocks,
                by_image=False,
            )
            # Neither can exceed 1, and a share is not below 0, whatever chance makes of it.
            low, high, value = (min(number, 1) for number in (low, high, value))
            if name == "estimate_variance_share":
                low, high, value = (max(number, 0) for number in (low, high, value))
            assert found.value == pytest.approx(value, abs=1e-12)
            assert found.ci95 == pytest.approx((low, high), abs=1e-10)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(4, 40),
    batch_size=st.integers(1, 11),
    cut=st.floats(0, 1),
)
def test_order_batches_and_merging_change_nothing(seed, n, batch_size, cut):
    generator = np.random.default_rng(seed)
    states, blocks = make_states(n, seed), np.arange(n) % NUM_BLOCKS
    whole = feed(states, blocks, range(n), n)
    order, split = generator.permutation(n), int(cut * n)
    merged = feed(states, blocks, order[:split], batch_size)
    rest = feed(states, blocks, order[split:], batch_size + 1)
    before = {name: tensor.clone() for name, tensor in rest.save().items()}
    merged.merge(rest)
    assert_same(all_estimates(whole), all_estimates(merged), 1e-9)
    for token in TOKENS:
        found, expected = merged.find_top_dimensions(token), whole.find_top_dimensions(token)
        assert found.indices == expected.indices
        assert found.after == pytest.approx(expected.after, abs=1e-9)
    merged.update(Batch({}, [0], states=take(states, [0])))
    assert all(torch.equal(before[name], tensor) for name, tensor in rest.save().items())


def test_the_same_state_in_every_image_has_cosine_one_and_no_variance():
    states = {name: np.repeat(rows, 12, axis=0) for name, rows in make_states(1).items()}
    found = all_estimates(feed(states, np.arange(12) % 5, range(12), 5))
    for (name, _, _), estimate in found.items():
        expected = float(name == "estimate_pairwise_cosine")
        assert estimate.value == pytest.approx(expected, abs=1e-14)
        assert estimate.ci95 == pytest.approx((expected, expected), abs=1e-12)
        assert estimate.value >= 0


def test_opposite_states_have_all_their_variance():
    """Two images, x and −x."""
    rows = make_states(1)["hidden"]
    sums = feed({"hidden": np.concatenate([rows, -rows])}, [0, 1], range(2), 2)
    assert sums.estimate_pairwise_cosine("hidden", "cls").value == pytest.approx(-1)
    assert sums.estimate_variance_share("hidden", "cls").value == pytest.approx(1)


def test_a_large_common_part_costs_few_digits():
    """A giant's register: norms of 1e3, of which one part in a thousand depends on the image."""
    generator = np.random.default_rng(1)
    rows = 1e3 * generator.standard_normal((1, 3, 64)) + generator.standard_normal((30, 3, 64))
    sums = feed({"hidden": rows}, np.arange(30) % 10, range(30), 7)
    for name, statistic in STATISTICS.items():
        found = getattr(sums, name)("hidden", "cls").value
        # Of 16 digits the square of the ratio takes six.
        assert found == pytest.approx(statistic(rows[:, 0]), abs=1e-14)
        assert found == pytest.approx(statistic(rows[:, 0]), rel=1e-6)


@pytest.mark.parametrize("name", STATISTICS)
def test_one_image_tells_nothing(name):
    found = getattr(feed(make_states(1), [4], [0], 1), name)("keys", "cls")
    assert math.isnan(found.value)
    assert found.ci95 is None


@pytest.mark.parametrize("blocks", [[0, 1], [0, 0], [0, 0, 1]], ids=str)
@pytest.mark.parametrize("name", STATISTICS)
def test_few_images_have_a_value_and_no_interval(name, blocks):
    """Without any block of these at most one image is left, or none."""
    states = make_states(len(blocks))
    found = getattr(feed(states, blocks, range(len(blocks)), 1), name)("keys", "cls")
    assert found.value == pytest.approx(min(1, STATISTICS[name](states["keys"][:, 0])))
    assert found.ci95 is None


def test_a_state_of_zeros_has_neither_direction_nor_share():
    states = make_states(9)
    states["keys"][:, 0] = 0
    sums = feed(states, np.arange(9), range(9), 4)
    for name in STATISTICS:
        found = getattr(sums, name)("keys", "cls")
        assert math.isnan(found.value)
        assert found.ci95 is None
        assert math.isfinite(getattr(sums, name)("keys", "register_0").value)


def test_one_state_of_zeros_among_others_leaves_the_mean_cosine_undefined():
    states = make_states(9)
    states["keys"][3, 0] = 0
    sums = feed(states, np.arange(9), range(9), 4)
    assert math.isnan(sums.estimate_pairwise_cosine("keys", "cls").value)
    found = sums.estimate_variance_share("keys", "cls").value
    assert found == pytest.approx(share_that_varies(states["keys"][:, 0]))


def test_a_state_of_zeros_spoils_the_directions_of_its_own_block_alone():
    states, blocks = make_states(9), np.arange(9) // 3
    intact = feed(states, blocks, range(9), 9).save()["keys/direction"]
    states["keys"][4, 0] = 0
    found = feed(states, blocks, range(9), 9).save()["keys/direction"]
    assert found[1, 0].isnan().all()
    others = torch.ones(NUM_BLOCKS, len(TOKENS), dtype=torch.bool)
    others[1, 0] = False
    assert torch.equal(found[others], intact[others])


@pytest.mark.parametrize("width", [7, NUM_TOP_DIMENSIONS, 260])
def test_top_dimensions_are_those_of_the_highest_mean_activation(width):
    states = make_states(20, widths={"hidden": width, "normed": width})
    found = feed(states, np.arange(20) % 10, range(20), 6).find_top_dimensions("register_0")
    before, after = (states[name][:, 1].mean(axis=0) for name in ("hidden", "normed"))
    indices = sorted(range(width), key=lambda i: -before[i])[:100]
    assert list(found.indices) == indices
    assert found.before == pytest.approx(before[indices], abs=1e-12)
    assert found.after == pytest.approx(after[indices], abs=1e-12)


def test_float32_states_are_summed_in_float64():
    rows = np.float32(1 + 1e-3 * np.random.default_rng(2).standard_normal((4000, 3, 2)))
    sums = feed({"hidden": rows}, np.arange(4000) % 10, range(4000), 100)
    found = sums.estimate_variance_share("hidden", "cls").value
    assert found == pytest.approx(share_that_varies(rows[:, 0].astype(np.float64)), rel=1e-8)


def test_saved_sums_are_the_same_sums():
    n = 23
    states, blocks = make_states(n), np.arange(n) % 8
    sums = feed(states, blocks, range(n), 5)
    restored = TokenSums(TOKENS)
    restored.load(sums.save())
    assert all_estimates(restored) == all_estimates(sums)
    assert restored.find_top_dimensions("cls") == sums.find_top_dimensions("cls")
    before = all_estimates(sums)
    restored.update(Batch({}, [0, 1], states=take(states, [0, 1])))
    assert all_estimates(sums) == before


@pytest.mark.parametrize(
    "change",
    [
        {"counts": None},
        {"counts": torch.zeros(3, dtype=torch.int64)},
        {"hidden/square": None},
        {"keys/sum": torch.zeros(NUM_BLOCKS, 2, 8)},
        {"keys/direction": torch.zeros(4, len(TOKENS), 8)},
        {"what/ever": torch.zeros(NUM_BLOCKS, len(TOKENS), 8)},
    ],
    ids=["no counts", "few counts", "no squares", "other tokens", "few blocks", "unknown"],
)
def test_damaged_sums_say_so(change):
    tensors = feed(make_states(5), range(5), range(5), 5).save() | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises((KeyError, ValueError), match=r"counts|sums of tokens are incomplete"):
        TokenSums(TOKENS).load(kept)


def test_different_tokens_do_not_merge():
    with pytest.raises(ResultError, match="different tokens"):
        TokenSums(TOKENS).merge(TokenSums(TOKENS[:2]))
