"""P2: whether registers hold what is the image's own decides what controls do."""

import pytest
import torch

from vitscope import wrap_model
from vitscope.remedies.registry import parse_remedy
from written_vit import CLS, PATCHES, REGISTER, draw_images, write_attention, write_model


def write_reader(*, relays):
    """[CLS] reads registers: what the patches gave them if it `relays`, parameters otherwise."""
    model = write_model(depth=2, registers=2)
    write_attention(model.blocks[0], REGISTER if relays else CLS, PATCHES)
    write_attention(model.blocks[1], CLS, REGISTER)
    return wrap_model(model)


@pytest.mark.parametrize("name", ["mean", "shuffle", "noise"])
def test_constant_registers_can_be_replaced_by_any_plausible_ones(name):
    vit, pixels = write_reader(relays=False), draw_images([()] * 4)
    remedy = parse_remedy(name).fitted(vit, lambda: pixels.split(3))
    assert remedy.statistics.deviation[1][1:3].abs().max() < 1e-12
    with remedy.applied(vit) as edited:
        found = edited.run(pixels)
    torch.testing.assert_close(found, vit.run(pixels), atol=1e-12, rtol=0)


def test_zeros_in_place_of_constant_registers_change_the_output():
    vit, pixels = write_reader(relays=False), draw_images([()] * 4)
    with parse_remedy("zero").applied(vit) as edited:
        found = edited.run(pixels)
    assert ((found - vit.run(pixels)).norm(dim=1) > 1).all()


def test_registers_that_relay_an_image_give_its_output_to_another():
    vit, pixels = write_reader(relays=True), draw_images([()] * 2)
    features = vit.run(pixels)
    assert (features[0] - features[1]).norm() > 1
    remedy = parse_remedy("shuffle").fitted(vit, lambda: [pixels])
    with remedy.applied(vit) as edited:
        found = edited.run(pixels)
    torch.testing.assert_close(found, features.flip(0), atol=1e-12, rtol=0)


def test_the_mean_of_registers_that_relay_images_makes_one_output():
    vit, pixels = write_reader(relays=True), draw_images([()] * 4)
    with parse_remedy("mean").fitted(vit, lambda: [pixels]).applied(vit) as edited:
        found = edited.run(pixels)
    torch.testing.assert_close(found, found[:1].expand(4, -1), atol=1e-12, rtol=0)
