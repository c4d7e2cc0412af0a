"""Adapters are sent to other processes: what arrives is the same model, in every family."""

import pickle
from functools import partial

import pytest
import torch

import hub_twin
import hub_twin_dinov3
from audits import assert_same_numbers
from images import write_images
from support_table import TINY_MODELS, tiny_pixels
from tracing import make_pixels
from vitscope import AuditConfig, audit, wrap_model
from vitscope.adapters.torch_hub import make_torch_hub_adapter
from vitscope.decomposition import decompose_layers
from vitscope.ledger import balance_tolerance
from vitscope.testing.randomize import randomize

HUB = {
    "hub/dinov2": partial(hub_twin.DinoVisionTransformer, num_register_tokens=4),
    "hub/dinov3": partial(hub_twin_dinov3.DinoVisionTransformer, patch_size=7),
}


def adapt(name):
    if name in HUB:
        return make_torch_hub_adapter(randomize(HUB[name]())), make_pixels((28, 28), torch.float32)
    vit = wrap_model(TINY_MODELS[name]())
    return vit, tiny_pixels(vit)


def run(vit, pixels):
    return decompose_layers(
        vit,
        pixels,
        vit.select_layers("all"),
        renormalize=False,
        tolerance=balance_tolerance(vit.dtype),
    )


@pytest.mark.parametrize("name", [*TINY_MODELS, *HUB])
def test_what_arrives_is_the_same_model_to_the_last_bit(name):
    vit, pixels = adapt(name)
    sent = pickle.loads(pickle.dumps(vit))
    expected, found = (run(each, pixels) for each in (vit, sent))
    assert found.keys() == expected.keys()
    for layer, rows in expected.items():
        assert found[layer].features.keys() == rows.features.keys()
        assert all(torch.equal(found[layer].features[n], x) for n, x in rows.features.items())
        assert all(torch.equal(found[layer].scalars[p], x) for p, x in rows.scalars.items())


@pytest.mark.parametrize("name", ["timm/eva02", "open_clip/plain", "transformers/dinov3"])
def test_the_parts_that_arrive_are_those_of_the_model_that_arrives(name):
    """Or a change of precision or device would reach one of them and not the other."""
    sent = pickle.loads(pickle.dumps(adapt(name)[0]))
    pixels = tiny_pixels(sent)
    with sent.placed("cpu", torch.float64):
        rows = run(sent, pixels)
    assert max(float(row.scalars["balance_error",].max()) for row in rows.values()) < 1e-12


def test_what_arrives_audits_the_same(tmp_path):
    vit, _ = adapt("timm/dinov2_reg")
    images = write_images(tmp_path / "images", 12)
    config = AuditConfig(device="cpu")
    expected, found = (
        audit(each, images, config) for each in (vit, pickle.loads(pickle.dumps(vit)))
    )
    assert found.provenance["weights_hash"] == expected.provenance["weights_hash"]
    assert_same_numbers(found.summary, expected.summary, 0)
