"""Outliers, and what cannot be told, through the whole audit: said or left empty, never NaN."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from audits import read_strictly, tiny_vit
from images import write_images
from vitscope import AuditConfig, audit, wrap_model
from vitscope.errors import UsageError, VitscopeError
from vitscope.testing.planted import plant

EXACT = AuditConfig(dtype="float64")

# --- high-norm tokens ----------------------------------------------------------------------------


HIGH = (5, 10)


@pytest.fixture(scope="module")
def outliers(images):
    """A model that gives two places on the grid a norm some hundred times the others'."""
    vit = tiny_vit("dinov2")
    with torch.no_grad():
        for place in HIGH:
            vit.module.pos_embed[0, 1 + place] *= 300
    return audit(vit, images, EXACT)


def test_high_norm_tokens_are_reported_with_their_place(outliers):
    summary = read_strictly(outliers)
    for depth, row in enumerate(summary.high_norm_tokens):
        assert row.median * 2 < row.threshold < row.max / 2
        assert row.fraction == pytest.approx(2 / 16)
        assert row.images_fraction == 1
        assert row.position_share == pytest.approx(1)
        grid = outliers.high_norm_grid(depth)
        assert grid.shape == (4, 4)
        assert set(np.flatnonzero(grid)) == set(HIGH)
        assert grid.max() == grid.flat[HIGH[0]] == 1
    assert summary.last.anatomy.analysed == "highest_patch"
    assert summary.last.anatomy.norms["highest_patch"].p05 > row.threshold / 10


def test_tokens_are_analysed_where_they_are_outliers_on_the_way_into_the_block(images):
    """Those that the last block makes come too late for it."""
    vit = tiny_vit("dinov2")

    def enlarge(_, __, output):
        output = output.clone()
        output[:, [1 + place for place in HIGH]] *= 300
        return output

    vit.module.blocks[-1].register_forward_hook(enlarge)
    summary = audit(vit, images, EXACT).summary
    thresholds = [row.threshold for row in summary.high_norm_tokens]
    assert thresholds[:2] == [None, None]
    assert thresholds[2] is not None
    assert summary.last.anatomy.analysed is None


def test_a_grid_without_tokens_that_are_found_says_nothing(result):
    assert np.isnan(result.high_norm_grid(0)).all()


@pytest.mark.parametrize("depth", [-1, 3])
def test_a_depth_that_is_not_there_is_refused(result, depth):
    with pytest.raises(UsageError, match=rf"depth {depth}: expected 0 .* to 2"):
        result.high_norm_grid(depth)


# --- what cannot be told -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dinov2_reg", "vit_map"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_leave_what_is_undefined_empty(tmp_path, name, count):
    folder = write_images(tmp_path / "few", count)
    found = audit(tiny_vit(name), folder, AuditConfig(dtype="float64", layers="all"))
    summary = read_strictly(found)
    assert all(map(math.isnan, summary.last.directions.effective_rank.values()))
    assert summary.last.directions.pairs == {}
    assert [row.threshold for row in summary.high_norm_tokens] == [None] * 3
    shares = [s for row in summary.last.gram_ledger["residual"].values() for s in row.values()]
    assert all(math.isnan(share.biased) == (count == 1) for share in shares)
    if name == "vit_map":
        return
    for state in summary.last.anatomy.tokens["register_0"].states.values():
        for estimate in (state.pairwise_cosine, state.variance_share):
            assert math.isnan(estimate.value) == (count == 1)
    assert math.isnan(summary.interdependence.over_images.rho)
    assert math.isfinite(summary.layer_similarity[0].mean)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """The same image 24 times, each file with a remark of its own."""
    folder = write_images(tmp_path_factory.mktemp("copies"), 1)
    image = Image.open(folder / "0000.png")
    for number in range(1, 24):
        remark = PngImagePlugin.PngInfo()
        remark.add_text("number", str(number))
        image.save(folder / f"{number:04d}.png", pnginfo=remark)
    return folder


@pytest.mark.parametrize("name", ["dinov2_reg", "vit_map"])
def test_copies_of_one_image_have_nothing_that_varies(copies, name):
    # A batch at a time, so that every copy goes through the same kernels.
    found = audit(tiny_vit(name), copies, AuditConfig(dtype="float64", batch_size=6, layers="all"))
    summary = read_strictly(found)
    assert summary.data.num_images == 24
    assert summary.last.directions.pairs == {}
    assert all(map(math.isnan, summary.last.directions.effective_rank.values()))
    for pairs in summary.last.gram_ledger.values():
        for row in pairs.values():
            assert all(share.ci95 is None for share in row.values())
            assert all(math.isnan(share.biased) for share in row.values())
            assert all(math.isnan(share.unbiased) for share in row.values())
    if name == "dinov2_reg":
        for parts in summary.last.anatomy.tokens.values():
            assert parts.states["keys"].pairwise_cosine.value == pytest.approx(1, abs=1e-12)
            assert parts.states["keys"].variance_share.value == pytest.approx(0, abs=1e-12)
        assert summary.last.anatomy.dominant_register.share == 1


def test_a_cls_token_of_zeros_has_no_similarity_with_anything(images):
    vit = tiny_vit()
    with torch.no_grad():
        vit.module.cls_token.zero_()
    found = audit(vit, images, AuditConfig(dtype="float64", layers="all"))
    summary = read_strictly(found)
    first, *rest = summary.layer_similarity
    assert first.n == 0
    assert math.isnan(first.mean)
    assert all(math.isfinite(row.mean) for row in rest)
    hidden = summary.layers[0].anatomy.tokens["cls"].states["hidden"]
    for estimate in (hidden.pairwise_cosine, hidden.variance_share):
        assert math.isnan(estimate.value)
        assert estimate.ci95 is None


def test_a_patch_that_overflows_in_the_last_block_is_told(images, tmp_path):
    """No row that is decomposed looks at it: the ledger balances."""
    vit = tiny_vit()

    def overflow(_, __, output):
        output = output.clone()
        output[1, 7] = float("nan")
        return output

    vit.module.blocks[-1].register_forward_hook(overflow)
    second = sorted(images.iterdir())[1].name
    with pytest.raises(VitscopeError, match=rf"infinite activations of patches .*{second}"):
        audit(vit, images, EXACT, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_states_of_zeros_have_no_direction_and_stop_nothing(tmp_path):
    """The planted model's keys are zeros: sums that hold NaN by right are not damaged ones."""
    images = write_images(tmp_path / "images", 4, size=(64, 64))
    result = audit(wrap_model(plant("patches")), images, AuditConfig(gallery=0))
    states = result.summary.last.anatomy.tokens["cls"].states
    assert math.isnan(states["keys"].pairwise_cosine.value)
    assert math.isfinite(states["hidden"].pairwise_cosine.value)
    assert result.read_sums()[1].num_images == 4
