"""P1: one neuron writes a huge norm to blank patches, and a new token takes it over."""

from dataclasses import replace

import pytest
import torch

from vitscope import wrap_model
from vitscope.errors import UsageError
from vitscope.layout import make_layout
from vitscope.maps.passes import run_blocks
from vitscope.remedies.registers import TestTimeRegisters
from vitscope.remedies.registry import parse_remedy
from written_vit import (
    BLANK,
    CLS,
    GRID,
    PATCHES,
    REGISTER,
    SINK,
    draw_images,
    sign,
    write_attention,
    write_model,
    write_neuron,
)

LAYER, NEURON, DEPTH = 1, 7, 2
BLANKS = [(0,), (4,), (8, 2), (), (5,)]


def write_sinks(registers=0, *, gated=False):
    """[CLS] reads the patches, then a neuron fires on blank ones, and [CLS] reads what it wrote.

    The neuron takes half of a blank patch's sign: what is left there has the norm of what a token
    of zeros becomes, so that the layer norm makes the same of both.
    """
    model = write_model(depth=3, registers=registers, gated=gated)
    write_attention(model.blocks[0], CLS, PATCHES)
    write_neuron(model.blocks[LAYER], NEURON, on=BLANK, writes=100 * sign(SINK) - sign(BLANK) / 2)
    write_attention(model.blocks[2], CLS, SINK, read=SINK)
    return model


def registers_last(registers):
    """A model with its registers after its patches."""
    model = write_sinks(registers)

    def move(_, args):
        cls, moved, patches = args[0].split([1, registers, GRID * GRID], dim=1)
        return torch.cat([cls, patches, moved], dim=1)

    model.blocks[0].register_forward_pre_hook(move)
    order = {"cls": 1, "patches": 0, "registers": registers}
    return replace(wrap_model(model), make_layout=lambda *_: make_layout(order, (GRID, GRID)))


MODELS = {
    "gelu": lambda: wrap_model(write_sinks()),
    "swiglu": lambda: wrap_model(write_sinks(gated=True)),
    "registers": lambda: wrap_model(write_sinks(2)),
    "registers_last": lambda: registers_last(2),
}


@pytest.fixture(params=MODELS)
def vit(request):
    return MODELS[request.param]()


def attend(vit, pixels):
    """The attention of [CLS] in the last block."""
    traces = []
    vit.trace(pixels, [2], traces.append)
    (weights,) = traces[0].logits.softmax(dim=-1).unbind(dim=1)
    return weights, traces[0].layout.groups


def test_the_register_neuron_is_found_and_no_other(vit):
    pixels = draw_images(BLANKS)
    remedy = TestTimeRegisters(depth=DEPTH, threshold=50)
    found = remedy.fitted(vit, lambda: [pixels[:3], pixels[3:]]).neurons
    best, second = found.found[:2]
    assert (best.layer, best.number) == (LAYER, NEURON)
    assert second.score < best.score / 2
    assert found.num_images == 4


def test_a_new_register_takes_the_norm_and_the_attention_of_blank_patches(vit):
    pixels = draw_images(BLANKS)
    remedy = TestTimeRegisters(depth=DEPTH, threshold=50, top=1).fitted(vit, lambda: [pixels])
    before, groups = attend(vit, pixels)
    sinks = torch.zeros(len(BLANKS), GRID * GRID, dtype=torch.bool)
    for of_image, places in zip(sinks, BLANKS, strict=True):
        of_image[list(places)] = True
    mass = (before[:, groups["patches"]] * sinks).sum(dim=1)
    feature = vit.run(pixels)
    with remedy.applied(vit) as edited:
        after, groups = attend(edited, pixels)
        torch.testing.assert_close(edited.run(pixels), feature, atol=1e-12, rtol=0)
        streams = run_blocks(edited, pixels).streams
    has_blanks = sinks.any(dim=1)
    torch.testing.assert_close(mass, has_blanks.double(), atol=1e-12, rtol=0)
    new = after[:, groups["registers"].stop - 1]
    torch.testing.assert_close(new, mass, atol=1e-12, rtol=0)
    for stream in streams[DEPTH:]:
        norms = stream[:, groups["patches"]].norm(dim=-1)
        assert (norms <= 1.5 * norms.median(dim=1, keepdim=True).values).all()


def test_all_is_found_without_settings():
    vit = wrap_model(write_sinks())
    pixels = draw_images([(index % 9, (index + 2) % 9) for index in range(60)])
    remedy = TestTimeRegisters(top=1).fitted(vit, lambda: pixels.split(20))
    ((layer, number, _),) = remedy.neurons.found
    assert (layer, number) == (LAYER, NEURON)


def test_neurons_that_write_registers_are_found():
    model = write_model(depth=2, registers=2)
    model.reg_token.data[:] = sign(REGISTER)
    write_neuron(model.blocks[1], 3, on=REGISTER, writes=sign(SINK))
    pixels = draw_images([()] * 2)
    remedy = TestTimeRegisters(at="registers")
    found = remedy.fitted(wrap_model(model), lambda: [pixels]).neurons
    best, second = found.found[:2]
    assert (best.layer, best.number) == (1, 3)
    assert second.score < best.score / 2
    remedy = parse_remedy("test-time-registers:at=registers,top=1")
    fitted = remedy.fitted(wrap_model(model), lambda: [pixels])
    assert fitted.neurons.found == (best,)
    assert "in 2 images: 3 of block 1" in fitted.neurons.tell()
    with pytest.raises(UsageError, match="depth or threshold was given for registers"):
        parse_remedy("test-time-registers:at=registers,depth=1")
