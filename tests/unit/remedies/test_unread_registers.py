"""New tokens leave all others as they are: their positions, rotations and norms."""

import pytest
import torch

from edited_vit import draw_pixels, record_streams, wrap_tiny
from vitscope.remedies.attention import Hiding
from vitscope.remedies.editor import Editor


def find_new(count, tokens, running):
    places = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    start = running.layout.find_patches(tokens.shape[1]).start
    places[:, start - count : start] = True
    return places


@pytest.mark.parametrize(
    "name",
    [
        "timm/dinov3",  # rotary positions of the patches alone
        "timm/eva02",
        "timm/rope_mixed",
        "timm/rope_grouped",
        "timm/eva_map",
        "transformers/dinov3",
        "transformers/siglip",
        "timm/deit_distilled",
        "open_clip/plain",
    ],
)
def test_new_registers_that_no_token_reads_change_nothing(name):
    vit = wrap_tiny(name)
    pixels = draw_pixels(vit, 2)
    editor = Editor(vit, "unread registers")
    editor.insert_registers(2)
    for layer in range(vit.info.depth):
        editor.hide_tokens(layer, lambda *given: find_new(2, *given), Hiding("mask"))
    with editor.applied() as edited:
        found = edited.run(pixels)
    torch.testing.assert_close(found, vit.run(pixels), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("timm/clip", "norm_pre.bias"),
        ("open_clip/plain", "ln_pre.bias"),
        ("transformers/clip_tower", "pre_layrnorm.bias"),
    ],
)
def test_new_registers_pass_the_norm_before_the_blocks(name, norm):
    vit = wrap_tiny(name)
    pixels = draw_pixels(vit, 2)
    editor = Editor(vit, "registers")
    editor.insert_registers(1)
    with editor.applied() as edited:
        new = record_streams(edited, pixels)[:, 0, 1]
    bias = vit.module.get_parameter(norm).expand_as(new)  # all that a norm leaves of zeros
    torch.testing.assert_close(new, bias, atol=1e-12, rtol=0)


def test_new_registers_are_read_from_the_first_block_on():
    vit = wrap_tiny("timm/dinov3")
    editor = Editor(vit, "registers")
    editor.insert_registers(2)
    with editor.applied() as edited:
        assert edited.info.num_registers == vit.info.num_registers + 2
        found = edited.run(draw_pixels(vit, 2))
    assert (found - vit.run(draw_pixels(vit, 2))).norm() > 1e-3
