"""Maps of a model with random weights, of another target, and of a disturbed image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from bag_of_patches import make_input
from support_table import TINY_MODELS
from vitscope import wrap_model
from vitscope.maps.method import MapInput, MapMethod
from vitscope.maps.references import make_references
from vitscope.maps.registry import METHODS
from vitscope.maps.sanity import measure_sanity, measure_sensitivity
from vitscope.maps.targets import explain_pair
from vitscope.models.random_weights import draw_weight

NAMES = ("centre", "attention", "gradient_input")
CHOSEN = [METHODS[name] for name in NAMES]


def make_tiny(name="timm/vit", **settings):
    return make_input(wrap_model(TINY_MODELS[name]()).to("cpu", torch.float64), **settings)


def choose_other(given):
    return explain_pair(given.references.traced[0].feature[0])


def map_patches(given: MapInput, name):
    values = METHODS[name].compute(given).values
    return values[:, given.patches.start : given.patches.stop].numpy()


def test_maps_that_look_at_nothing_survive_and_others_do_not():
    given = make_tiny(images=3)
    found = measure_sanity(given, CHOSEN, choose_other(given))
    assert found.maps == NAMES
    assert found.randomised.shape == (3, 3, 2)  # two blocks
    assert found.randomised[:, 0] == pytest.approx(1)
    assert np.abs(found.randomised[:, 1:]).max() < 0.95
    assert found.other_target[:, :2] == pytest.approx(1)
    assert found.other_target[:, 2].max() < 0.95


def test_blocks_become_random_from_the_last_to_the_first():
    given = make_tiny(images=2)
    found = measure_sanity(given, CHOSEN, choose_other(given))
    own = {name: map_patches(given, name) for name in NAMES}
    random = wrap_model(TINY_MODELS["timm/vit"]()).to("cpu", torch.float64)
    for step, index in enumerate((1, 0)):
        generator = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for name, weight in random.module.blocks[index].named_parameters():
                weight.copy_(draw_weight(name, weight.shape, generator))
        references = make_references(random, [given.references.pixels])
        changed = replace(given, vit=random, references=references)
        for column, name in enumerate(NAMES):
            expected = [
                spearmanr(a, b).statistic
                for a, b in zip(own[name], map_patches(changed, name), strict=True)
            ]
            np.testing.assert_allclose(found.randomised[:, column, step], expected, atol=1e-12)


def test_the_model_is_left_as_it_was_even_after_an_error():
    given = make_tiny()
    before = {name: value.clone() for name, value in given.vit.module.state_dict().items()}

    def is_unchanged():
        after = given.vit.module.state_dict()
        return all(torch.equal(value, after[name]) for name, value in before.items())

    measure_sanity(given, CHOSEN, choose_other(given))
    assert is_unchanged()
    assert all(weight.requires_grad for weight in given.vit.module.parameters())
    calls = []

    def fail_later(given):
        calls.append(is_unchanged())
        if len(calls) == 4:
            raise RuntimeError("broken")
        return METHODS["centre"].compute(given)

    broken = replace(METHODS["centre"], compute=fail_later)
    with pytest.raises(RuntimeError, match="broken"):
        measure_sanity(given, [broken], choose_other(given))
    assert calls == [True, True, False, False]
    assert is_unchanged()


def test_a_constant_map_has_no_rank():
    given = make_tiny()
    constant = replace(
        METHODS["centre"], compute=lambda given: given.place(torch.ones(1, len(given.patches)))
    )
    found = measure_sanity(given, [constant], choose_other(given))
    assert np.isnan(found.randomised).all()
    assert np.isnan(found.other_target).all()


def compute_pixel_sums(given):
    """Linear in the pixels, so that its change is known."""
    rows, columns = given.layout.grid
    cells = given.pixels.sum(dim=1).unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
    return given.place(cells.sum(dim=(2, 4)).flatten(1))


def test_sensitivity_is_the_largest_change_among_ten_draws():
    given = make_tiny(images=2)
    moved = []

    def compute(given):
        moved.append(given.pixels)
        return compute_pixel_sums(given)

    method: MapMethod = replace(METHODS["centre"], compute=compute)
    found = measure_sensitivity(given, [method, METHODS["centre"]])
    assert found[:, 1] == pytest.approx(0)
    own, *others = moved
    assert torch.equal(own, given.pixels)
    assert len(others) == 10
    noise = torch.stack(others) - own
    assert float(noise.abs().max()) <= 0.02
    assert float(noise.abs().max()) > 0.0199
    assert float(noise.mean().abs()) < 5 * 0.02 / np.sqrt(3 * noise.numel())
    sums = torch.stack([compute_pixel_sums(replace(given, pixels=each)).values for each in moved])
    for image in range(2):
        change = (sums[1:, image] - sums[0, image]).norm(dim=1).max() / sums[0, image].norm()
        assert found[image, 0] == pytest.approx(float(change), rel=1e-9)


def test_the_target_is_held_while_the_image_is_disturbed():
    given = make_tiny()
    targets = []

    def compute(given):
        targets.append(given.target)
        return METHODS["centre"].compute(given)

    measure_sensitivity(given, [replace(METHODS["centre"], compute=compute)])
    assert {id(target) for target in targets} == {id(given.target)}


def test_sensitivity_does_not_depend_on_the_batch():
    given = make_tiny(images=2)
    method = replace(METHODS["centre"], compute=compute_pixel_sums)
    together = measure_sensitivity(given, [method])
    swapped = measure_sensitivity(replace(given, pixels=given.pixels.flip(0)), [method])
    np.testing.assert_allclose(swapped[::-1], together, rtol=1e-12)
    assert together[0] != together[1]
