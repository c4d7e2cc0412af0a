"""The seam of all remedies: hooks that end with a context, and an account that agrees with them."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from support_table import TINY_MODELS
from vitscope import wrap_model
from vitscope.decomposition import decompose_layers
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.remedies.attention import Hiding
from vitscope.remedies.editor import Editor
from vitscope.results.summary import ERRORS


@cache
def wrap(name):
    return wrap_model(TINY_MODELS[name]()).to("cpu", torch.float64)


def small_pixels(vit):
    """Few patches, where the model takes any size."""
    size = tuple(side * count for side, count in zip(vit.info.patch_size, (3, 4), strict=True))
    try:
        vit.make_layout(*size)
    except UsageError:
        size = vit.preprocessing.size
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)


def scale_neurons(tokens, running):
    scaled = tokens.clone()
    scaled[:, running.layout.find_patches(tokens.shape[1]).start :] /= 2
    return scaled


def noise(tokens, running):
    generator = torch.Generator().manual_seed(running.seeds[0])
    return tokens + torch.randn(tokens.shape[1:], generator=generator).to(tokens)


def half(row):
    return row / 2


def second_patch(tokens, running):
    places = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    places[:, running.layout.find_patches(tokens.shape[1]).start + 1] = True
    return places


def insert(editor):
    editor.insert_registers(2)


def edit_neurons(editor):
    editor.edit_neurons(0, scale_neurons)
    editor.edit_neurons(len(editor.vit.encoder_blocks) - 1, scale_neurons)


def edit_stream(editor):
    editor.edit_stream(1, noise)


def edit_skip(editor):
    editor.edit_skip(editor.vit.last_layer, half)


def hide(*hidings):
    def edit(editor):
        for layer, hiding in enumerate(hidings):
            editor.hide_tokens(layer, second_patch, hiding)

    return edit


MASK, UNREAD = Hiding("mask"), Hiding("unread")
MASK_CLS, UNREAD_CLS = Hiding("mask", "cls"), Hiding("unread", "cls")
OTHERS = {"insert": insert, "neurons": edit_neurons, "stream": edit_stream, "skip": edit_skip}
ALONE = OTHERS | {
    "mask": hide(MASK, MASK),
    "mask_cls": hide(MASK_CLS, MASK_CLS),
    "unread": hide(UNREAD, UNREAD),
    "unread_cls": hide(UNREAD_CLS, UNREAD_CLS),
}
TOGETHER = [
    {**OTHERS, "mask, unread_cls": hide(MASK, UNREAD_CLS)},
    {**OTHERS, "unread, mask_cls": hide(UNREAD, MASK_CLS)},
]
"""A block's tokens are hidden in one way alone; all other edits apply at once."""


def declare(vit, edits):
    """An editor with those of the edits that the model allows."""
    editor = Editor(vit, "+".join(edits))
    for name, edit in edits.items():
        try:
            edit(editor)
        except UnsupportedModelError:
            assert vit.position_biases if name == "insert" else vit.info.global_feature != "cls"
    return editor


SETTINGS = {"renormalize": False, "tolerance": 1e-10}


def check_balance(vit, pixels):
    rows = decompose_layers(vit, pixels, vit.select_layers("all"), **SETTINGS)
    of_layers = [row.scalars for row in rows.values()]
    errors = [scalars[name,] for name in ERRORS for scalars in of_layers if (name,) in scalars]
    assert max(float(error.max()) for error in errors) < 1e-10
    return rows[vit.last_layer].features


@pytest.mark.parametrize("name", TINY_MODELS)
def test_all_edits_together_balance_in_every_family(name):
    vit = wrap(name)
    pixels = small_pixels(vit)
    before = vit.run(pixels)
    for edits in TOGETHER:
        with declare(vit, edits).applied() as edited:
            check_balance(edited, pixels)
        assert torch.equal(vit.run(pixels), before)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_each_edit_changes_the_output_of_every_family(name):
    vit = wrap(name)
    pixels = small_pixels(vit)
    before = vit.run(pixels)
    for alone, edit in ALONE.items():
        editor = declare(vit, {alone: edit})
        with editor.applied() as edited:
            changed = not torch.equal(edited.run(pixels), before)
        assert changed == bool(editor._hooks)
    assert torch.equal(vit.run(pixels), before)


@pytest.mark.parametrize("edit", ALONE)
@pytest.mark.parametrize("name", ["timm/dinov2_reg", "transformers/dinov3", "open_clip/plain"])
def test_each_edit_alone_balances_whether_the_forward_ends_or_stops(name, edit):
    vit = wrap(name)
    pixels, last = small_pixels(vit), vit.last_layer
    with declare(vit, {edit: ALONE[edit]}).applied() as edited:
        features = check_balance(edited, pixels)
        stopped = decompose_layers(edited, pixels, [last], **SETTINGS, verified=False)[last]
    for name, feature in features.items():
        torch.testing.assert_close(stopped.features[name], feature)


def test_the_skip_connection_of_a_row_that_is_not_read_cannot_be_edited():
    vit = wrap("timm/vit")
    last = vit.last_layer
    editor = Editor(replace(vit, blocks={last: vit.blocks[last]}), "skip")
    with pytest.raises(UnsupportedModelError, match=f"in block 0 .* not read: .* layers {last}$"):
        editor.edit_skip(0, half)
