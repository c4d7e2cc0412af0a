"""The judge: closed forms on a bag of patches, invariances, and other packages where they agree."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from bag_of_patches import PATCH, make_bag, make_input
from support_table import TINY_MODELS
from vitscope import wrap_model
from vitscope.errors import NonFiniteError, UsageError
from vitscope.maps import judgement as judgement_module
from vitscope.maps import method as method_module
from vitscope.maps.judgement import SCORES, judge_images
from vitscope.maps.method import MapValues
from vitscope.maps.removal import REMOVALS
from vitscope.metrics.faithfulness import compute_gap, make_prefixes

ADDITIVE = ("shuffle", "mean", "blur", "black")
ORDER_ALONE = ("deletion", "insertion", "gap", "skill", "rank")


def make_tiny(name="timm/vit", **settings):
    return make_input(wrap_model(TINY_MODELS[name]()).to("cpu", torch.float64), **settings)


def place(given, *of_patches, **fields):
    """A map whose values on other tokens are large, and must not matter."""
    values = 1e3 * torch.randn_like(given.tokens[..., 0])
    values[:, given.patches.start : given.patches.stop] = torch.stack(list(of_patches))
    return MapValues(values=values, **fields)


def draw_map(given, seed=0, *, ties=False):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(given.pixels), len(given.patches))
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return place(given, *(drawn.round() if ties else drawn))


def find(judgement, name, score, image=0):
    return judgement.scores[image, judgement.maps.index(name), SCORES.index(score)]


def find_curves(judgement, name, image=0):
    index = judgement.maps.index(name)
    return judgement.deletion[image, index], judgement.insertion[image, index]


# A bag of patches


def measure_deltas(given, removal, image=0):
    num = len(given.patches)
    sets = torch.cat([torch.zeros(1, num), torch.eye(num)]).bool()
    found = removal.measure(given, image, sets).numpy()
    return found[0], found[0] - found[1:]


@pytest.mark.parametrize("name", ADDITIVE)
def test_on_a_bag_of_patches_the_true_map_is_right_in_every_score(name):
    given = make_input(make_bag(3, 5))
    own, deltas = measure_deltas(given, REMOVALS[name])
    assert len(set(deltas.round(9))) == 15
    scaled = place(given, torch.from_numpy(3 * deltas), total=torch.tensor([3 * deltas.sum()]))
    judged = judge_images(given, {"true": scaled}, REMOVALS[name])
    np.testing.assert_allclose(judged.deltas[0], deltas, atol=1e-12)
    for score, expected in (("skill", 1), ("rank", 1), ("saco", 1), ("infidelity", 0)):
        assert find(judged, "true", score) == pytest.approx(expected, abs=1e-9)
    # Each curve adds up what the patches are worth.
    order = np.argsort(-deltas)
    counts = [round(k * 15 / 16) for k in range(17)]
    deletion = np.array([own - deltas[order[:count]].sum() for count in counts])
    least = np.array([own - deltas[order[::-1][:count]].sum() for count in counts])
    for map_name in ("true", "oracle"):
        found = find_curves(judged, map_name)
        np.testing.assert_allclose(found, [deletion, least[::-1]], atol=1e-12)
    assert find(judged, "true", "deletion") == pytest.approx(np.trapezoid(deletion, dx=1 / 16))
    assert find(judged, "true", "insertion") == pytest.approx(np.trapezoid(least, dx=1 / 16))
    assert find(judged, "true", "gap") == pytest.approx(np.trapezoid(least - deletion, dx=1 / 16))
    assert find(judged, "true", "sufficiency_50") == pytest.approx(least[8])
    assert find(judged, "true", "comprehensiveness_50") == pytest.approx(own - deletion[8])


def test_on_a_bag_of_patches_the_oracle_has_the_best_of_all_orders():
    given = make_input(make_bag(2, 3))
    removal = REMOVALS["mean"]
    judged = judge_images(given, {}, removal)
    every = torch.tensor([[(k >> j) & 1 for j in range(6)] for k in range(64)]).bool()
    score = dict(zip(map(tuple, every.tolist()), removal.measure(given, 0, every), strict=True))

    def find_gap(order):
        curves = [
            np.array([float(score[tuple(each)]) for each in make_prefixes(some).tolist()])
            for some in (order, order[::-1])
        ]
        return compute_gap(curves[0], curves[1][::-1])

    gaps = [find_gap(np.array(order)) for order in permutations(range(6))]
    assert find(judged, "oracle", "gap") == pytest.approx(max(gaps), abs=1e-12)
    assert np.ptp(gaps) > 0.1


def test_skill_is_the_gap_in_units_of_the_oracles():
    given = make_tiny()
    judged = judge_images(given, {"m": draw_map(given)}, REMOVALS["drop"])
    ratio = find(judged, "m", "gap") / find(judged, "oracle", "gap")
    assert find(judged, "m", "skill") == pytest.approx(ratio)


# Baselines


@pytest.mark.parametrize("name", REMOVALS)
def test_random_is_0_and_the_oracle_1(name):
    judged = judge_images(make_tiny(images=2), {}, REMOVALS[name])
    assert judged.maps == ("oracle", "random")
    for image in range(2):
        for score in ("gap", "skill", "rank"):
            assert find(judged, "random", score, image) == pytest.approx(0, abs=1e-12)
        deletion, insertion = find_curves(judged, "random", image)
        np.testing.assert_allclose(deletion, insertion[::-1], atol=1e-12)
        assert find(judged, "oracle", "rank", image) == pytest.approx(1)
        if find(judged, "oracle", "gap", image) > 0:
            assert find(judged, "oracle", "skill", image) == pytest.approx(1)


def test_a_constant_map_is_as_good_as_random():
    """Not as good as raster order would make it, where the first patches are all that matters."""
    given = make_input(make_bag(3, 4), images=30, references=1)
    pixels = given.pixels.clone()
    pixels[:, :, PATCH:] = given.references.pixels[:, :, PATCH:]
    given = replace(given, pixels=pixels)
    constant = place(given, *torch.ones(30, 12, dtype=torch.float64))
    raster = place(given, *torch.arange(12, 0, -1).double().expand(30, -1))
    judged = judge_images(given, {"constant": constant, "raster": raster}, REMOVALS["mean"])

    def estimate(judged, name, score):
        column = judged.scores[:, judged.maps.index(name), SCORES.index(score)]
        return column.mean(), column.std(ddof=1) / np.sqrt(30)

    for score in ("deletion", "insertion", "gap"):
        (value, error), (random, _) = (estimate(judged, n, score) for n in ("constant", "random"))
        assert abs(value - random) < 3 * error
    gap, error = estimate(judged, "raster", "gap")
    assert gap > 5 * error
    for score in ("rank", "saco"):
        assert estimate(judged, "constant", score) == (0, 0)


def test_random_orders_are_five_and_their_reverses():
    given = make_tiny()
    asked = spy(judge_images, given, {}, "mean")
    assert len(asked) == judge_images(given, {}, REMOVALS["mean"]).num_runs[0]
    # 1 + P singles; oracle and five random orders: 15 + 15 of each curve and at most ten groups.
    assert 150 < len(asked) <= 16 + 282


# Invariances


@pytest.mark.parametrize("name", ["shuffle", "drop"])
def test_a_reversed_map_has_minus_the_gap(name):
    given = make_tiny(images=2)
    m = draw_map(given)
    judged = judge_images(given, {"m": m, "−m": MapValues(values=-m.values)}, REMOVALS[name])
    for image in range(2):
        assert find(judged, "−m", "gap", image) == -find(judged, "m", "gap", image) != 0
        assert find(judged, "−m", "rank", image) == -find(judged, "m", "rank", image)
        deletion, insertion = find_curves(judged, "m", image)
        assert np.array_equal(find_curves(judged, "−m", image), [insertion[::-1], deletion[::-1]])


@pytest.mark.parametrize("ties", [False, True])
def test_increasing_functions_change_no_score_of_the_order(ties):
    given = make_tiny(images=2)
    m = draw_map(given, ties=ties)
    maps = {"m": m, "exp": MapValues(values=m.values.clamp(max=9).exp())}
    judged = judge_images(given, maps, REMOVALS["shuffle"])
    for image in range(2):
        assert np.array_equal(*(find_curves(judged, name, image) for name in maps))
        for score in ORDER_ALONE:
            assert find(judged, "m", score, image) == find(judged, "exp", score, image)
        assert find(judged, "m", "infidelity", image) != find(judged, "exp", "infidelity", image)


def test_the_scale_of_a_map_changes_nothing():
    given = make_tiny()
    m = draw_map(given)
    maps = {"m": m, "1000 m": MapValues(values=1000 * m.values)}
    first, second, *_ = judge_images(given, maps, REMOVALS["mean"]).scores[0]
    np.testing.assert_allclose(first, second, rtol=1e-9)


def test_a_maps_scores_do_not_depend_on_the_other_maps():
    given = make_tiny(images=2)
    maps = {str(seed): draw_map(given, seed, ties=seed == 1) for seed in range(3)}
    together = judge_images(given, maps, REMOVALS["shuffle"])
    for name, each in maps.items():
        alone = judge_images(given, {name: each}, REMOVALS["shuffle"])
        index = together.maps.index(name)
        np.testing.assert_allclose(alone.scores[:, 0], together.scores[:, index], atol=1e-12)
        np.testing.assert_allclose(alone.scores[:, 1:], together.scores[:, -2:], atol=1e-12)


@pytest.mark.parametrize("name", ["shuffle", "drop", "linear"])
def test_batches_and_their_order_change_nothing(name, monkeypatch):
    given = make_tiny(images=2)
    m = draw_map(given, ties=True)
    together = judge_images(given, {"m": m}, REMOVALS[name])
    monkeypatch.setattr(method_module, "CPU_TOKENS", 40)
    for image in (1, 0):
        one = replace(given, pixels=given.pixels[image : image + 1])
        of_one = MapValues(values=m.values[image : image + 1])
        alone = judge_images(one, {"m": of_one}, REMOVALS[name])
        for field in ("scores", "deletion", "insertion", "deltas"):
            found, expected = getattr(alone, field)[0], getattr(together, field)[image]
            np.testing.assert_allclose(found, expected, atol=1e-8)
        assert alone.num_runs[0] == together.num_runs[image]


def test_the_seed_changes_what_is_drawn_and_nothing_else():
    given = make_tiny()
    m = {"m": draw_map(given)}
    first, again, other = (
        judge_images(replace(given, seed=seed), m, REMOVALS["mean"]) for seed in (0, 0, 1)
    )
    assert np.array_equal(first.scores, again.scores, equal_nan=True)
    assert np.array_equal(first.deltas, other.deltas)
    assert find(first, "m", "gap") == find(other, "m", "gap")
    assert find(first, "m", "infidelity") != find(other, "m", "infidelity")
    assert find(first, "random", "deletion") != find(other, "random", "deletion")


# What is run


def spy(function, given, maps, name):
    asked = []

    def measure(given, image, removed):
        asked.extend(each.numpy().tobytes() for each in removed)
        return REMOVALS[name].measure(given, image, removed)

    function(given, maps, replace(REMOVALS[name], measure=measure))
    return asked


def test_every_set_is_run_once():
    given = make_tiny()
    m = draw_map(given)
    maps = {"m": m, "same": m, "−m": MapValues(values=-m.values)}
    asked = spy(judge_images, given, maps, "shuffle")
    assert max(Counter(asked).values()) == 1
    alone = spy(judge_images, given, {"m": m}, "shuffle")
    # The same map, and the reversed one, pass sets that are known; but for uneven groups.
    assert len(alone) <= len(asked) <= len(alone) + 10
    assert len(alone) <= 16 + 40 + 282


# Other packages


def make_black(given):
    levels = np.array(given.vit.preprocessing.mean) / np.array(given.vit.preprocessing.std)
    return -torch.from_numpy(levels).view(1, 3, 1, 1).expand_as(given.pixels)


def test_single_deletions_agree_with_captum():
    captum = pytest.importorskip("captum.attr", reason="captum is not installed")
    given = make_tiny()
    judged = judge_images(given, {}, REMOVALS["black"])
    of_patches = torch.arange(16).reshape(1, 4, 4)
    features = of_patches.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)

    def measure(pixels):
        return given.target.measure(given.vit.run(pixels))

    with torch.no_grad():
        theirs = captum.FeatureAblation(measure).attribute(
            given.pixels, baselines=make_black(given), feature_mask=features
        )
    np.testing.assert_allclose(
        judged.deltas[0], theirs[0, 0, ::PATCH, ::PATCH].flatten().numpy(), atol=1e-10
    )


def test_curves_agree_with_torchcam():
    torchcam = pytest.importorskip("torchcam.metrics", reason="torch-cam is not installed")
    given = make_tiny()
    m = draw_map(given)
    judged = judge_images(given, {"m": m}, REMOVALS["black"])
    patches = m.values[0, given.patches.start : given.patches.stop].reshape(1, 4, 4)
    cam = patches.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)

    class Model(torch.nn.Module):
        def forward(self, pixels):
            return given.target.measure(given.vit.run(pixels)).unsqueeze(1)

    class Extractor:
        model = Model()

        def __call__(self, *_, **__):
            return [cam]

        def fuse_cams(self, cams):
            return cams[0]

        def _hooks_off(self):
            return nullcontext()

    metric = torchcam.DeletionInsertionMetric(Extractor(), steps=16, baseline=make_black(given))
    metric.update(given.pixels, class_idx=0)
    assert find(judged, "m", "deletion") == pytest.approx(metric.deletion, abs=1e-10)
    assert find(judged, "m", "insertion") == pytest.approx(metric.insertion, abs=1e-10)


# Details


def test_completeness_is_of_all_tokens_where_a_map_claims_a_sum():
    given = make_tiny(images=2)
    m = draw_map(given)
    claimed = replace(m, total=m.values.sum(dim=1) * torch.tensor([2.0, 1.0]))
    judged = judge_images(given, {"claims": claimed, "does not": m}, REMOVALS["mean"])
    assert find(judged, "claims", "completeness", 0) == pytest.approx(0.5)
    assert find(judged, "claims", "completeness", 1) == pytest.approx(0, abs=1e-12)
    assert np.isnan(find(judged, "does not", "completeness"))
    assert np.isnan(find(judged, "oracle", "completeness"))


def test_scores_of_maps_with_ties_are_means_over_three_orders(monkeypatch):
    given = make_tiny()
    m = {"m": draw_map(given, ties=True)}
    deletion, _ = find_curves(judge_images(given, m, REMOVALS["mean"]), "m")
    orders = []

    def keep_orders(values, ties):
        found = make_orders(values, ties)
        orders.append(found)
        return found

    make_orders = judgement_module.make_orders
    monkeypatch.setattr(judgement_module, "make_orders", keep_orders)
    judge_images(given, m, REMOVALS["mean"])
    assert len(orders[0]) == 3
    curves = [
        REMOVALS["mean"].measure(given, 0, torch.from_numpy(make_prefixes(order))).numpy()
        for order in orders[0]
    ]
    np.testing.assert_allclose(deletion, np.mean(curves, axis=0), atol=1e-12)


def test_names_of_baselines_and_values_that_are_not_finite_are_refused():
    given = make_tiny()
    m = draw_map(given)
    for name in ("oracle", "random"):
        with pytest.raises(UsageError, match=f"a map is called '{name}'.*leave it out"):
            judge_images(given, {name: m}, REMOVALS["mean"])
    m.values[0, 3] = torch.nan
    with pytest.raises(UsageError, match="the map 'm' has NaN"):
        judge_images(given, {"m": m}, REMOVALS["mean"])


def test_an_output_that_is_not_finite_is_refused_with_its_image():
    given = make_tiny(images=2)

    def measure(given, image, removed):
        return torch.full((len(removed),), torch.nan if image == 1 else 0.0)

    broken = replace(REMOVALS["mean"], measure=measure)
    with pytest.raises(NonFiniteError, match="'mean' the output of VisionTransformer is") as raised:
        judge_images(given, {}, broken)
    assert raised.value.image == 1
