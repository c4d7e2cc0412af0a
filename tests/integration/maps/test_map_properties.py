"""What holds for every map: of one image alone, over all tokens, the same again from one seed."""

from dataclasses import dataclass, replace

import pytest
import torch

from map_inputs import draw_pixels, make_input, wrap
from vitscope.errors import UsageError
from vitscope.maps import perturbation
from vitscope.maps.method import MapInput
from vitscope.maps.perturbation import index_kept
from vitscope.maps.references import make_references
from vitscope.maps.registry import METHODS, find_method
from vitscope.maps.targets import explain_cosine, explain_direction, explain_pair, explain_self

MODELS = ["timm/dinov2_reg", "transformers/dinov3", "timm/deit_distilled", "timm/vit_map"]
OF_PATCHES = ("single_deletion", "random_keep", "tis", "vit_cx", "centre", "edges", "random")
DRAWN = ("random_keep", "tis", "vit_cx", "random")
ROWS_ONLY = ("legrad", "rollout_norm")


def is_made_of(name, method):
    return not (name == "timm/vit_map" and method in ROWS_ONLY)


CASES = [(name, method) for name in MODELS for method in METHODS if is_made_of(name, method)]


@pytest.fixture(scope="module")
def inputs():
    return {name: make_input(wrap(name), images=3, references=2) for name in MODELS}


def compute(method, given, **changes):
    return METHODS[method].compute(replace(given, **changes))


@pytest.mark.parametrize(("name", "method"), CASES)
def test_an_image_has_the_same_map_in_any_batch(inputs, name, method):
    given = inputs[name]
    together = compute(method, given)
    order = [2, 0]
    parts = [compute(method, given, pixels=given.pixels[1:2])]
    parts += [compute(method, given, pixels=given.pixels[order])]
    for field in ("values", "total", "error"):
        whole = getattr(together, field)
        if whole is None:
            assert all(getattr(part, field) is None for part in parts)
            continue
        again = torch.cat([getattr(part, field) for part in parts])
        size = float(whole.abs().max())
        torch.testing.assert_close(again, whole[[1, *order]], rtol=1e-7, atol=1e-7 * size)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_map_has_a_value_for_every_token(inputs, name, method):
    given = inputs[name]
    found = compute(method, given).values
    assert found.shape == (3, given.num_tokens)
    assert found.dtype == torch.float64
    assert found.isfinite().all()
    assert not found.requires_grad
    others = [i for i in range(given.num_tokens) if i not in given.patches]
    if method in OF_PATCHES:
        assert (found[:, others] == 0).all()
    assert METHODS[method].signed or (found >= -1e-12).all() or method in ("tis", "vit_cx")


@pytest.mark.parametrize("method", DRAWN)
def test_a_seed_gives_the_same_numbers_again(inputs, method, monkeypatch):
    monkeypatch.setattr(perturbation, "_CENTROIDS", 8)
    given = inputs["timm/deit_distilled"]
    torch.manual_seed(0)
    first = compute(method, given)
    torch.manual_seed(1)
    torch.testing.assert_close(compute(method, given).values, first.values, rtol=0, atol=0)
    other = compute(method, given, seed=1)
    assert (other.values - first.values).abs().max() > 1e-9


def test_images_of_a_batch_draw_different_numbers(inputs):
    found = compute("random", inputs["timm/deit_distilled"]).values
    assert (found[0] - found[1]).abs().max() > 0.1


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(MapInput):
    """A score that is a sum over kept patches, with noise of a known standard deviation."""

    coefficients: torch.Tensor
    noise: float
    draws: torch.Generator

    def measure_sets(self, image, tokens=None, kept=None):
        assert tokens is None
        noise = self.noise * torch.randn(len(kept), generator=self.draws, dtype=torch.float64)
        return 3 + self.coefficients[image][kept].sum(dim=1) + noise


def make_linear(given, noise, seed=0):
    draws = torch.Generator().manual_seed(99)
    coefficients = torch.randn(
        len(given.pixels), len(given.patches), generator=draws, dtype=torch.float64
    )
    return Linear(
        vit=given.vit,
        pixels=given.pixels,
        choice=given.choice,
        references=given.references,
        seed=seed,
        coefficients=coefficients,
        noise=noise,
        draws=draws,
    )


def test_random_keep_finds_the_coefficients_of_a_linear_model(inputs):
    given = make_linear(inputs["timm/deit_distilled"], noise=0.0)
    found = METHODS["random_keep"].compute(given)
    patches = slice(given.patches.start, given.patches.stop)
    torch.testing.assert_close(found.values[:, patches], given.coefficients)
    assert found.error.max() < 1e-10


def test_standard_errors_of_random_keep_are_those_of_its_values(inputs):
    scores, errors = [], []
    for seed in range(60):
        given = make_linear(inputs["timm/deit_distilled"], noise=0.5, seed=seed)
        found = METHODS["random_keep"].compute(given)
        patches = slice(given.patches.start, given.patches.stop)
        error = found.error[:, patches]
        scores.append((found.values[:, patches] - given.coefficients) / error)
        errors.append(error)
    standard = torch.cat(scores)  # some 2,900 of them, independent between seeds
    assert standard.mean().abs() < 0.1
    assert standard.square().mean() == pytest.approx(1, abs=0.15)
    assert (standard.abs() < 1.96).double().mean() == pytest.approx(0.95, abs=0.02)
    assert torch.cat(errors).min() > 0


def test_patches_of_a_set_are_indexed_in_order():
    mask = torch.tensor([[True, False, True, False], [False, True, True, False]])
    assert index_kept(mask).tolist() == [[0, 2], [1, 2]]


@pytest.mark.parametrize("method", ["traced", "frozen", "gradient_input", "integrated_gradients"])
def test_maps_of_differences_need_references(inputs, method):
    given = replace(inputs["timm/dinov2_reg"], references=None, choice=explain_cosine)
    with pytest.raises(UsageError, match="compares with other images, and none were given"):
        METHODS[method].compute(given)


@pytest.mark.parametrize("method", ROWS_ONLY)
def test_maps_of_rows_are_refused_for_a_pooling_head(inputs, method):
    with pytest.raises(Exception, match=r"VisionTransformer|attention.pooling"):
        METHODS[method].check(inputs["timm/vit_map"].vit)


def test_references_are_means_over_all_batches(inputs):
    vit = inputs["timm/vit_map"].vit
    pixels = draw_pixels(vit, 7, seed=3)
    made = make_references(vit, pixels.split(3))
    with torch.no_grad():
        torch.testing.assert_close(made.mean_feature, vit.run(pixels).mean(dim=0))
    assert made.num_images == 7
    torch.testing.assert_close(made.pixels, pixels[:4])
    torch.testing.assert_close(made.lenders, pixels[4:])
    few = make_references(vit, [pixels[:5]])
    torch.testing.assert_close(few.lenders, pixels[:5])
    assert len(made.traced[0].feature) == 4
    with pytest.raises(UsageError, match="no reference images were given"):
        make_references(vit, [])


def test_targets_are_what_they_say(inputs):
    given = inputs["timm/deit_distilled"]
    features, mean = given.own.feature, given.references.mean_feature
    centred = features - mean
    other = torch.randn(features.shape[1], generator=torch.Generator().manual_seed(5)).double()

    def measure(choice, references=given.references):
        return choice(features, references).measure(features.roll(1, dims=0))

    rolled = centred.roll(1, dims=0)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(
        measure(explain_self), (rolled * centred).sum(dim=1) / centred.square().sum(dim=1)
    )
    torch.testing.assert_close(measure(explain_cosine), cosine(rolled, centred))
    torch.testing.assert_close(
        measure(explain_cosine, None), cosine(features.roll(1, dims=0), features)
    )
    torch.testing.assert_close(
        measure(explain_direction(other)), cosine(features.roll(1, dims=0), other, dim=1)
    )
    fixed = other - mean
    torch.testing.assert_close(measure(explain_pair(other)), rolled @ fixed / (fixed @ fixed))
    torch.testing.assert_close(
        explain_self(features, given.references).measure(features), torch.ones(3).double()
    )
    with pytest.raises(UsageError, match="a vector of 3 numbers: expected 32"):
        measure(explain_direction(other[:3]))
    with pytest.raises(UsageError, match="give some as references"):
        measure(explain_self, None)


@pytest.mark.parametrize("choice", [explain_cosine, explain_direction(torch.ones(32))])
def test_other_targets_are_traced_exactly(inputs, choice):
    given = replace(inputs["timm/deit_distilled"], choice=choice)
    found = METHODS["traced"].compute(given)
    run = given.references.traced[0].feature
    others = torch.stack([given.target.measure(f.expand(3, -1)) for f in run]).mean(dim=0)
    torch.testing.assert_close(found.values.sum(dim=1), given.scores - others)


def test_baselines_know_nothing_of_the_model(inputs):
    given = inputs["timm/dinov2_reg"]
    patches = slice(given.patches.start, given.patches.stop)
    centre = compute("centre", given).values[:, patches].reshape(3, *given.layout.grid)
    torch.testing.assert_close(centre, centre.flip(1))
    torch.testing.assert_close(centre, centre.mT)
    assert (centre[:, 1, 1] > centre[:, 0, 1]).all()
    # The corner lies √2 · 2 standard deviations of a quarter of the grid's width from the centre.
    torch.testing.assert_close(centre[0, 0, 0].log(), torch.tensor(-4.0).double())
    pixels = torch.zeros_like(given.pixels)
    pixels[:, :, :, 20:] = 1
    edges = compute("edges", given, pixels=pixels).values[:, patches]
    columns = edges.reshape(3, *given.layout.grid).sum(dim=1)
    assert (columns.argmax(dim=1) == 2).all()
    assert (columns[:, [0, 1, 3]] == 0).all()


def test_an_unknown_map_is_refused():
    with pytest.raises(UsageError, match="no map is called 'saliency': choose from attention"):
        find_method("saliency")
    assert find_method("traced") is METHODS["traced"]
