"""Removals of patches, each against what it should do, in every family."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bag_of_patches import make_bag, make_input
from support_table import TINY_MODELS
from vitscope import wrap_model
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.maps import method as method_module
from vitscope.maps.references import make_references
from vitscope.maps.removal import REMOVALS, find_removal, impute_linear

TOKENS = ("shuffle", "mean")
PIXELS = ("blur", "black", "linear")


def make_tiny(name, **settings):
    vit = wrap_model(TINY_MODELS[name]()).to("cpu", torch.float64)
    if vit.preprocessing.size == (224, 224):  # takes any size; these are published with 224
        vit = replace(vit, preprocessing=vit.preprocessing.with_size((32, 32)))
    return make_input(vit, **settings)


def draw_sets(num_patches, num_sets=5):
    generator = torch.Generator().manual_seed(1)
    sets = torch.rand(num_sets, num_patches, generator=generator) < 0.4
    return torch.cat([torch.zeros(1, num_patches).bool(), sets, torch.ones(1, num_patches).bool()])


def score(given, pixels):
    """The target of other pixels in place of image 0."""
    return given.target.select(0).measure(given.vit.run(pixels)).detach()


@pytest.mark.parametrize("family", TINY_MODELS)
def test_every_removal_in_every_family(family):
    given = make_tiny(family, references=1)
    num = len(given.patches)
    sets = draw_sets(num, 2)
    reference = given.references.pixels
    preprocessing = given.vit.preprocessing
    levels = -np.array(preprocessing.mean) / np.array(preprocessing.std)
    black = torch.from_numpy(levels).view(1, 3, 1, 1).expand_as(reference)
    # With one reference image, its tokens are the mean tokens, and those of "another image".
    all_removed = {"shuffle": reference, "mean": reference, "black": black}
    for name, removal in REMOVALS.items():
        if name == "drop":
            continue
        found = removal.measure(given, 0, sets)
        assert found.isfinite().all()
        assert_close(found[0], score(given, given.pixels)[0], rtol=0, atol=1e-9)
        if name in all_removed:
            assert_close(found[-1], score(given, all_removed[name])[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", TINY_MODELS)
def test_dropping_in_every_family(family):
    given = make_tiny(family)
    sets = draw_sets(len(given.patches), 2)
    drop = REMOVALS["drop"].measure
    if given.layout.num_tokens == len(given.patches):
        with pytest.raises(UnsupportedModelError, match=r"read from the patches alone.*another"):
            drop(given, 0, sets)
        sets = sets[:-1]
    try:
        found = drop(given, 0, sets)
    except UnsupportedModelError as error:
        assert "use another removal than 'drop'" in str(error)  # noqa: PT017
        return
    assert found.isfinite().all()
    # AIMv2's norm rounds to float32, whatever the model's precision.
    rounding = 1e-6 if family.endswith("aimv2") else 1e-9
    assert_close(found[0], score(given, given.pixels)[0], rtol=0, atol=rounding)
    assert len(set(found.tolist())) == len(found)


def test_dropped_tokens_are_absent_from_the_sequence():
    given = make_tiny("timm/dinov2_reg")
    model = given.vit.module
    sets = draw_sets(len(given.patches))
    found = REMOVALS["drop"].measure(given, 0, sets)
    for removed, value in zip(sets, found, strict=True):
        tokens = model._pos_embed(model.patch_embed(given.pixels[:1]))
        kept = torch.cat([torch.ones(5).bool(), ~removed])  # [CLS] and four registers stay
        rest = model.norm(model.blocks(tokens[:, kept]))[:, 0]
        assert_close(value, given.target.select(0).measure(rest)[0].detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", TOKENS)
def test_replaced_tokens_are_those_of_the_same_place(name):
    given = make_tiny("timm/vit")
    model = given.vit.module

    def tokens_of(pixels):
        return model._pos_embed(model.patch_embed(pixels))[:, 1:].detach()

    own, others = tokens_of(given.pixels)[0], tokens_of(given.references.pixels)
    candidates = others.mean(dim=0, keepdim=True) if name == "mean" else others
    sets = draw_sets(len(given.patches))
    found = REMOVALS[name].measure(given, 0, sets)
    first = (model.cls_token + model.pos_embed[:, :1]).expand(len(sets), -1, -1)
    for candidate in candidates:
        tokens = torch.where(sets[..., None], candidate, own)
        features = model.norm(model.blocks(torch.cat([first, tokens], dim=1)))[:, 0]
        expected = given.target.select(0).measure(features).detach()
        if (found - expected).abs().max() < 1e-10:
            return
    pytest.fail("no single reference image explains what came out")


def test_which_image_lends_its_tokens_depends_on_image_and_seed_alone():
    given = make_tiny("timm/vit", images=8, references=4)
    sets = torch.ones(1, len(given.patches)).bool()
    shuffle = REMOVALS["shuffle"].measure

    def find_lenders(given):
        lent = [float(shuffle(given, i, sets)) for i in range(len(given.pixels))]
        features = given.vit.run(given.references.pixels)
        expected = [given.target.select(i).measure(features) for i in range(len(given.pixels))]
        return [int((e - s).abs().argmin()) for s, e in zip(lent, expected, strict=True)]

    lenders = find_lenders(given)
    assert len(set(lenders)) > 1
    assert find_lenders(replace(given, pixels=given.pixels.flip(0))) == lenders[::-1]
    assert find_lenders(replace(given, seed=1)) != lenders


def test_an_image_never_lends_tokens_to_itself():
    given = make_tiny("timm/vit")
    sets = torch.ones(1, len(given.patches)).bool()
    twice = torch.cat([given.pixels, given.references.pixels[:1]])
    among = replace(given, references=make_references(given.vit, [twice]))
    for seed in range(8):
        found = REMOVALS["shuffle"].measure(replace(among, seed=seed), 0, sets)
        assert_close(found, score(among, twice[1:]), rtol=0, atol=1e-10)
    alone = replace(given, references=make_references(given.vit, [given.pixels]))
    with pytest.raises(UsageError, match="the only reference image is the image itself"):
        REMOVALS["shuffle"].measure(alone, 0, sets)


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_are_replaced_in_removed_patches_alone(name):
    given = make_tiny("timm/vit_grid")  # patches of 8 x 10 pixels
    seen = []
    given.vit.module.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    removed = torch.zeros(1, len(given.patches)).bool()
    removed[0, 5] = True  # second row, second of four columns
    REMOVALS[name].measure(given, 0, removed)
    changed = (seen[-1][0] != given.pixels[0]).any(dim=0)
    expected = torch.zeros_like(changed)
    expected[8:16, 10:20] = True
    assert torch.equal(changed, expected)


def blur_by_hand(pixels, axis, sigma):
    """Convolve with a Gaussian, the image mirrored at its borders."""
    reach = 4 * sigma
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    padding = [(reach, reach) if other == axis else (0, 0) for other in range(pixels.ndim)]
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(pixels, padding, mode="symmetric"), len(kernel), axis=axis
    )
    return windows @ (kernel / kernel.sum())


def test_blur_is_as_wide_as_a_patch():
    given = make_tiny("timm/vit_grid")
    seen = []
    given.vit.module.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    REMOVALS["blur"].measure(given, 0, torch.ones(1, len(given.patches)).bool())
    expected = blur_by_hand(blur_by_hand(given.pixels[0].numpy(), 1, 8), 2, 10)
    np.testing.assert_allclose(seen[-1][0].numpy(), expected, atol=1e-10)


def test_black_is_black_before_normalisation():
    given = make_tiny("timm/vit")
    preprocessing = replace(given.vit.preprocessing, mean=(0.1, 0.2, 0.4), std=(0.5, 0.25, 0.2))
    given = replace(given, vit=replace(given.vit, preprocessing=preprocessing))
    black = torch.tensor([-0.2, -0.8, -2.0], dtype=torch.float64).view(1, 3, 1, 1)
    found = REMOVALS["black"].measure(given, 0, torch.ones(1, len(given.patches)).bool())
    expected = score(given, black.expand(1, 3, 32, 32))
    assert_close(found, expected, rtol=0, atol=1e-10)


def draw_missing(height, width, seed):
    rng = np.random.default_rng(seed)
    return np.kron(rng.random((height, width)) < 0.5, np.ones((4, 5))).astype(bool)


def test_imputed_pixels_are_the_weighted_mean_of_their_neighbours():
    rng = np.random.default_rng(0)
    pixels, missing = rng.normal(size=(3, 16, 20)), draw_missing(4, 4, 0)
    filled = impute_linear(pixels, missing)
    assert np.array_equal(filled[:, ~missing], pixels[:, ~missing])
    assert missing.any()
    for row, column in zip(*np.nonzero(missing), strict=True):
        total, weights = np.zeros(3), 0.0
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                near = (row + down, column + across)
                if (down, across) == (0, 0) or not (0 <= near[0] < 16 and 0 <= near[1] < 20):
                    continue
                weight = 1 / 12 if down and across else 1 / 6
                total, weights = total + weight * filled[:, near[0], near[1]], weights + weight
        np.testing.assert_allclose(filled[:, row, column], total / weights, atol=1e-12)


def test_a_slope_is_continued_through_a_hole():
    rows, columns = np.mgrid[:12, :15]
    slope = np.stack([rows + 2.0 * columns, -rows, columns + 1.0])
    missing = np.zeros((12, 15), dtype=bool)
    missing[4:8, 5:10] = True
    np.testing.assert_allclose(impute_linear(slope, missing), slope, atol=1e-12)


def test_with_nothing_known_every_pixel_is_the_mean_of_the_preprocessing():
    everything = np.ones((8, 8), dtype=bool)
    assert not impute_linear(np.ones((3, 8, 8)), everything).any()


@pytest.mark.parametrize("seed", range(3))
def test_imputation_agrees_with_pytorch_grad_cam(seed):
    road = pytest.importorskip("pytorch_grad_cam.metrics.road", reason="grad-cam is not installed")
    pixels = np.random.default_rng(seed).normal(size=(3, 16, 20))
    missing = draw_missing(4, 4, seed)
    matrix, right = road.NoisyLinearImputer.setup_sparse_system(
        (~missing).astype(float), pixels, road.neighbors_weights
    )
    theirs = np.linalg.solve(matrix.toarray(), right).T
    np.testing.assert_allclose(impute_linear(pixels, missing)[:, missing], theirs, atol=1e-12)


def test_imputation_is_noisy_by_a_hundredth_of_the_grey_scale():
    given = make_tiny("timm/vit")
    seen = []
    given.vit.module.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    removed = torch.zeros(2, len(given.patches)).bool()
    removed[:, 5] = True
    removed[1, 15] = True
    REMOVALS["linear"].measure(given, 0, removed)
    here = (slice(8, 16), slice(8, 16))
    missing = np.zeros((32, 32), dtype=bool)
    missing[here] = True
    smooth = torch.from_numpy(impute_linear(given.pixels[0].numpy(), missing))
    std = torch.tensor(given.vit.preprocessing.std, dtype=torch.float64).view(3, 1, 1)
    noise = (seen[-1][0] - smooth)[:, *here] * std
    assert float(noise.std()) == pytest.approx(0.01, rel=5 / np.sqrt(2 * 192))
    assert_close(seen[-1][1][:, *here], seen[-1][0][:, *here], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", REMOVALS)
def test_batches_and_their_order_change_nothing(name, monkeypatch):
    given = make_tiny("timm/vit", images=2)
    sets = draw_sets(len(given.patches))
    measure = REMOVALS[name].measure
    together = measure(given, 1, sets)
    swapped = replace(given, pixels=given.pixels.flip(0))
    assert_close(measure(swapped, 0, sets.flip(0)).flip(0), together, rtol=0, atol=1e-10)
    monkeypatch.setattr("vitscope.maps.removal._SETS_AT_ONCE", 2)
    monkeypatch.setattr(method_module, "CPU_TOKENS", 20)
    assert_close(measure(given, 1, sets), together, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", TOKENS)
def test_removals_by_other_images_need_some(name):
    given = replace(make_input(make_bag(2, 3)), references=None, choice=fixed_choice)
    with pytest.raises(UsageError, match=f"the removal '{name}' compares with other images"):
        REMOVALS[name].measure(given, 0, torch.zeros(1, 6).bool())


def fixed_choice(features, references):
    from vitscope.maps.targets import explain_cosine

    return explain_cosine(features, references)


def test_an_unknown_removal_is_refused_with_the_known_ones():
    assert find_removal("drop") is REMOVALS["drop"]
    assert next(iter(REMOVALS)) == "shuffle"
    with pytest.raises(UsageError, match=r"'zero': choose from shuffle, drop, mean, blur, black"):
        find_removal("zero")
