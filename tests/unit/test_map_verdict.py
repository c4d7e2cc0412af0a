"""Comparisons of maps over images, and the map that is recommended."""

import numpy as np
import pytest
from scipy import stats

from reference_jackknife import busing_interval
from vitscope.metrics.jackknife import Estimate, block_of
from vitscope.results.map_verdict import average, compare_maps, judge_maps, replicate_skill

TITLES = {"attention": "Attention", "traced": "Traced", "rollout": "Rollout"}


def draw(count, seed=0, **means):
    generator = np.random.default_rng(seed)
    ids = [f"{number:015x}{0:017x}" for number in generator.integers(0, 2**60, count)]
    common = generator.normal(0, 0.3, count)  # images that differ for all maps alike
    gaps = {name: mean + common + generator.normal(0, 0.05, count) for name, mean in means.items()}
    return gaps, ids


def judge(gaps, ids):
    skills = {name: average(values, ids) for name, values in gaps.items()}
    return judge_maps(gaps, skills, TITLES, ids, "shuffle")


def test_an_average_is_a_mean_with_a_jackknife_interval_over_defined_values():
    gaps, ids = draw(50, traced=0.4)
    values = gaps["traced"].copy()
    values[3] = np.nan
    defined = ~np.isnan(values)
    blocks = np.array([block_of(one) for one in ids])[defined]
    found = average(values, ids)
    assert found.value == pytest.approx(values[defined].mean())
    assert found.ci95 == pytest.approx(busing_interval(np.mean, values[defined], blocks))
    assert average(np.full(50, np.nan), ids).ci95 is None


def test_skill_is_a_ratio_of_means_with_its_jackknife():
    gaps, ids = draw(60, traced=0.5, oracle=0.9, random=0.05)
    blocks = np.array([block_of(one) for one in ids])
    rows = np.stack([gaps["traced"] - gaps["random"], gaps["oracle"] - gaps["random"]], axis=1)

    def divide(kept):
        return kept[:, 0].sum() / kept[:, 1].sum()

    found = replicate_skill(gaps, "traced", ids).estimate()
    assert found.value == pytest.approx(divide(rows))
    assert found.ci95 == pytest.approx(busing_interval(divide, rows, blocks))
    # An image on which the oracle gains nothing leaves it defined.
    gaps["oracle"][0] = gaps["random"][0]
    assert np.isfinite(replicate_skill(gaps, "traced", ids).value)
    gaps["oracle"] = gaps["random"]
    assert np.isnan(replicate_skill(gaps, "random", ids).value)


def test_a_comparison_is_paired_and_corrected():
    gaps, ids = draw(60, attention=0.2, traced=0.3, rollout=0.21)
    found = compare_maps(gaps, "attention", ids)
    assert list(found) == ["traced", "rollout"]
    blocks = np.array([block_of(one) for one in ids])
    p_values = {}
    for name, one in found.items():
        difference = gaps[name] - gaps["attention"]
        low, high = busing_interval(np.mean, difference, blocks)
        assert one.difference.ci95 == pytest.approx((low, high))
        degrees = len(set(blocks)) - 1
        error = (high - low) / 2 / stats.t.ppf(0.975, degrees)
        p_values[name] = 2 * stats.t.sf(abs(difference.mean()) / error, degrees)
        assert one.p == pytest.approx(p_values[name])
    low, high = sorted(p_values, key=p_values.get)
    assert found[low].p_holm == pytest.approx(min(1, 2 * p_values[low]))
    assert found[high].p_holm == pytest.approx(max(min(1, 2 * p_values[low]), p_values[high]))
    # The images differ by six times as much as the maps.
    assert found["traced"].answer == "better"
    reverse = compare_maps({**gaps, "attention": gaps["traced"]}, "attention", ids)
    assert reverse["rollout"].answer == "worse"


def test_few_images_never_answer():
    gaps, ids = draw(19, attention=0.0, traced=5.0)
    assert compare_maps(gaps, "attention", ids)["traced"].answer == "cannot tell"
    assert judge(gaps, ids).best is None


def test_the_best_map_is_named_with_those_that_cannot_be_told_from_it():
    baselines = {"oracle": 0.9, "random": 0.0, "centre": 0.1, "edges": 0.1}
    gaps, ids = draw(80, attention=0.2, traced=0.6, rollout=0.6, **baselines)
    gaps["rollout"] = gaps["traced"] - np.random.default_rng(1).normal(0.02, 0.1, 80)
    verdict = judge(gaps, ids)
    assert verdict.best == "traced"
    assert "Traced" in verdict.text
    assert "Rollout" in verdict.text
    assert "cannot be told from Rollout" in verdict.text
    gaps["rollout"] -= 0.3
    assert "cannot be told" not in judge(gaps, ids).text


@pytest.mark.parametrize("baseline", ["random", "centre", "edges"])
def test_no_map_is_named_that_does_not_beat_a_baseline(baseline):
    gaps, ids = draw(80, attention=0.2, traced=0.5, oracle=0.9)
    gaps[baseline] = gaps["traced"] + np.random.default_rng(2).normal(0, 0.1, 80)
    assert judge(gaps, ids).best is None
    gaps[baseline] -= 0.4
    assert judge(gaps, ids).best == "traced"


def test_equal_maps_differ_by_nothing():
    gaps, ids = draw(40, attention=0.2)
    gaps["traced"] = gaps["attention"].copy()
    found = compare_maps(gaps, "attention", ids)["traced"]
    assert found.difference == Estimate(0.0, (0.0, 0.0))
    assert found.p == 1.0
    assert found.answer == "cannot tell"
