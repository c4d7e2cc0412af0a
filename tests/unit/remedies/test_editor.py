"""The seam of all remedies: hooks that end with a context, and an account that agrees with them."""

import pytest
import torch

from support_table import TINY_MODELS
from vitscope import wrap_model
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.remedies.attention import Hiding
from vitscope.remedies.editor import Editor
from vitscope.testing import check_adapter


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
    scaled[:, running.find_patches(tokens).start :] /= 2
    return scaled


def noise(tokens, running):
    generator = torch.Generator().manual_seed(running.seeds[0])
    return tokens + torch.randn(tokens.shape[1:], generator=generator).to(tokens)


def half(row):
    return row / 2


def second_patch(tokens, running):
    places = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    places[:, running.find_patches(tokens).start + 1] = True
    return places


def insert(editor):
    editor.insert_registers(2)


def edit_neurons(editor):
    editor.edit_neurons(0, scale_neurons)
    editor.edit_neurons(editor.select_layers("last")[0], scale_neurons)


def edit_stream(editor):
    editor.edit_stream(1, noise)


def edit_skip(editor):
    editor.edit_skip(editor.vit.last_layer, half)


def hide(hiding):
    def edit(editor):
        for layer in (0, 1):
            editor.hide_tokens(layer, second_patch, hiding)

    return edit


EDITS = {
    "insert": insert,
    "neurons": edit_neurons,
    "stream": edit_stream,
    "skip": edit_skip,
    **{
        f"{how}_{rows}": hide(Hiding(how, rows))
        for how in ("mask", "unread")
        for rows in ("cls", "all")
    },
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_ledger_balances_on_every_edited_family(name, edit):
    vit = wrap_model(TINY_MODELS[name]()).to("cpu", torch.float64)
    pixels = small_pixels(vit)
    before = vit.run(pixels)
    editor = Editor(vit, edit)
    try:
        EDITS[edit](editor)
    except UnsupportedModelError:
        assert edit == "insert" or vit.info.global_feature != "cls"
        return
    with editor.applied() as edited:
        worst = check_adapter(edited, pixels)
        after = edited.run(pixels)
    assert max(worst.values()) < 1e-10
    assert torch.equal(vit.run(pixels), before)
    assert not torch.equal(after, before)
