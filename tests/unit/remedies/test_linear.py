"""Blocks as linear maps: what values contribute, and the linear map nearest to an MLP."""

from math import pi, sqrt

import pytest
import torch

from support_table import ALL_MODELS, TINY_MODELS
from vitscope import wrap_model
from vitscope.remedies.linear import (
    fit_neurons,
    integrate_neurons,
    linearise_blocks,
    list_row_blocks,
)


def wrap(name):
    return wrap_model(ALL_MODELS[name]()).to("cpu", torch.float64)


@pytest.fixture
def few_samples(monkeypatch):
    monkeypatch.setattr("vitscope.remedies.linear._NUM_SAMPLES", 100)


def trace_values(vit, layer):
    """Normed tokens of a block and what each would add if it were read with weight 1."""
    normed, traces = [], []
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, *vit.preprocessing.size, generator=generator, dtype=torch.float64)
    norm = vit.blocks[layer].attention_norm
    handle = norm.register_forward_hook(lambda _, __, output: normed.append(output))
    vit.trace(pixels, [layer], traces.append)
    handle.remove()
    values, tail = traces[0].values, traces[0].tail
    added = values[0].transpose(0, 1).flatten(1) @ tail.weight.T
    return normed[0].reshape(added.shape[0], -1), added * (1 if tail.scale is None else tail.scale)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_value_map_is_what_values_contribute_in_every_family(name, few_samples):
    vit = wrap(name)
    block = next(iter(linearise_blocks(vit)))
    if vit.info.global_feature != "cls":  # no row of an encoder block is traced
        assert block.values.abs().max() > 0
        return
    with torch.no_grad():
        normed, added = trace_values(vit, 0)
    differences = added[1:] - added[0]
    torch.testing.assert_close((normed[1:] - normed[0]) @ block.values.T, differences)


def test_models_that_average_have_linear_blocks():
    for name in ("timm/vit_gap", "transformers/beit_mean"):
        vit = wrap(name)
        assert len(list(linearise_blocks(vit))) == vit.info.depth


def test_the_linear_mlp_is_exact_for_gelu():
    vit = wrap("timm/vit")
    mlp = vit.module.blocks[1].mlp
    block = list(linearise_blocks(vit))[1]
    with torch.no_grad():
        b, w = mlp.fc1.bias, mlp.fc1.weight
        # E[φ'(b + sz)] of GELU in closed form.
        variance = 1 + w.square().sum(dim=1)
        t = b / variance.sqrt()
        slope = torch.special.ndtr(t) + t * (-t.square() / 2).exp() / sqrt(2 * pi) / variance
        torch.testing.assert_close(block.mlp, mlp.fc2.weight @ (slope.unsqueeze(1) * w))


@pytest.mark.parametrize(
    "name", ["timm/vit", "timm/dinov2_reg", "timm/eva02_fused", "transformers/dinov3_gated"]
)
def test_the_closed_form_agrees_with_samples(name):
    vit = wrap(name)
    with torch.no_grad():
        block = list_row_blocks(vit)[0]
        exact = integrate_neurons(block)
        first, second = (fit_neurons(block, 4000, seed) for seed in (0, 1))
    # Two samples are as far from each other as their mean is from the truth.
    error, expected = (first + second) / 2 - exact, (first - second) / 2
    assert 0.9 < error.norm() / expected.norm() < 1.1
    assert (error.abs() < 3 * expected.square().mean(dim=1).sqrt()[:, None]).double().mean() > 0.99


def test_neurons_with_a_norm_of_their_own_are_sampled():
    vit = wrap("timm/eva02")
    with torch.no_grad():
        assert integrate_neurons(list_row_blocks(vit)[0]) is None


def test_running_blocks_leaves_no_hooks(few_samples):
    vit = wrap("timm/eva02")
    list(linearise_blocks(vit))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vit.module.modules())
