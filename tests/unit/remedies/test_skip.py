"""P3: a model whose output is the skip connection has none of its own without it."""

import pytest
import torch

from edited_vit import draw_pixels, wrap_tiny
from vitscope import wrap_model
from vitscope.errors import UnsupportedModelError
from vitscope.maps.passes import run_blocks
from vitscope.remedies.registry import parse_remedy
from written_vit import CLS, PATCHES, draw_images, write_attention, write_model


@pytest.fixture
def skipping():
    model = write_model(depth=2)
    write_attention(model.blocks[0], CLS, PATCHES)  # the last block writes nothing
    return wrap_model(model)


def find_rows(vit, pixels):
    traces = []
    vit.trace(pixels, [vit.last_layer], traces.append)
    return traces[0]


@pytest.mark.parametrize("text", ["skip", "skip:by_mean=true"])
def test_without_the_skip_connection_all_outputs_are_one(skipping, text):
    pixels = draw_images([()] * 4)
    features = skipping.run(pixels)
    assert torch.pdist(features).min() > 0.1
    skip = find_rows(skipping, pixels).skip
    left = skip.mean(dim=0) if "mean" in text else torch.zeros_like(skip[0])
    with parse_remedy(text).fitted(skipping, lambda: pixels.split(3)).applied(skipping) as edited:
        found = edited.run(pixels)
    one = skipping.embed(left[None]).expand_as(found)
    torch.testing.assert_close(found, one, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["timm/dinov2_reg", "timm/eva02", "transformers/vit"])
@pytest.mark.parametrize("scale", [0, 0.5, 1])
def test_the_skip_connection_is_scaled(name, scale):
    vit = wrap_tiny(name)
    pixels = draw_pixels(vit, 2)
    rows = find_rows(vit, pixels)
    residual = scale * rows.skip + rows.branch
    expected = vit.embed(vit.finish_block(vit.last_layer, residual))
    with parse_remedy(f"skip:scale={scale}").applied(vit) as edited:
        found = edited.run(pixels)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_it_stays_an_edit_of_cls_when_patches_are_dropped():
    vit = wrap_tiny("timm/dinov2_reg")
    pixels, kept = draw_pixels(vit, 2), torch.tensor([[1, 3, 4], [0, 2, 5]])
    stream = run_blocks(vit, pixels, kept=kept).streams[-2]
    block = vit.encoder_blocks[-1]
    branch = block.ls1(block.attn(block.norm1(stream)))
    row = vit.finish_block(vit.last_layer, 0.5 * stream[:, 0] + branch[:, 0])
    with parse_remedy("skip:scale=0.5").applied(vit) as edited:
        found = run_blocks(edited, pixels, kept=kept).feature
        zero = parse_remedy("zero")
        with (
            zero.applied(edited) as twice,
            pytest.raises(UnsupportedModelError, match=r"\(zero\) at"),
        ):
            run_blocks(twice, pixels, kept=kept)
    torch.testing.assert_close(found, vit.embed(row), atol=1e-12, rtol=0)


def test_a_block_that_is_named_twice_is_edited_once():
    vit = wrap_tiny("timm/dinov2_reg")
    pixels, found = draw_pixels(vit, 2), []
    for layers in ("1", "1+1"):
        with parse_remedy(f"skip:scale=0.5,layers={layers}").applied(vit) as edited:
            found.append(edited.run(pixels))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["timm/vit", "transformers/vit"])  # without a layer scale
def test_a_large_skip_connection_is_closed_in_half_precision_too(name):
    vit = wrap_tiny(name).to("cpu", torch.float32)
    pixels, rows = draw_pixels(vit, 2).float(), []
    enlarged = vit.encoder_blocks[-2].register_forward_hook(lambda *given: given[2] * 100)
    with parse_remedy("skip").applied(vit) as edited, enlarged:
        for dtype in (torch.float32, torch.bfloat16):
            with edited.placed("cpu", dtype):
                rows.append(find_rows(edited, pixels).residual)
    # The branch is rounded to 8 bits; a hundred times larger rows cancel before it is.
    assert (rows[1] - rows[0]).norm() < 0.02 * rows[0].norm()
