"""Relative positions: a patch that is dropped takes its row and column of the bias with it."""

import pytest
import torch

from support_table import tiny_pixels
from vitscope import wrap_model
from vitscope.maps.passes import run_blocks
from vitscope.testing.tiny_transformers import TINY_TRANSFORMERS

KEPT = torch.tensor([[0, 3, 7, 12], [1, 2, 9, 15]])


@pytest.mark.parametrize("name", ["beit", "beit_shared", "data2vec"])
def test_what_is_dropped_is_what_nobody_reads(name):
    vit = wrap_model(TINY_TRANSFORMERS[name]()).to("cpu", torch.float64)
    pixels = tiny_pixels(vit).double()
    found = run_blocks(vit, pixels, kept=KEPT).feature
    assert vit.position_biases
    for image, kept in enumerate(KEPT):
        dropped = [1 + i for i in range(16) if i not in kept]

        def hide(_, __, bias, dropped=dropped):
            bias = bias.clone()
            bias[..., dropped] = -torch.inf
            return bias

        handles = [module.register_forward_hook(hide) for module in vit.position_biases]
        expected = vit.run(pixels[image : image + 1])[0]
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(found[image], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["beit", "beit_shared", "data2vec"])
def test_a_model_can_be_trained_after_it_was_traced(name):
    module = TINY_TRANSFORMERS[name]()
    vit = wrap_model(module)
    pixels = torch.randn(
        1, 3, 16, 56
    )  # a size that no other test uses: the library keeps its index
    vit.trace(pixels, [vit.last_layer], lambda _: None)
    module(pixels).last_hidden_state.sum().backward()
    assert all(part.relative_position_bias_table.grad is not None for part in vit.position_biases)
