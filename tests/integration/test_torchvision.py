"""torchvision's Vision Transformer: its own feature, its own reference, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from reference import make_reference
from tracing import check_layers, make_pixels
from vitscope import load_model, wrap_model
from vitscope.errors import UnknownModelError, UnsupportedModelError, UsageError
from vitscope.testing.tiny_torchvision import TINY_TORCHVISION

SIZE = (32, 32)


def references(module, pixels):
    """From raw weights, on the streams that a float64 copy computes."""
    module, streams = copy.deepcopy(module).double(), []
    for layer in module.encoder.layers:
        layer.register_forward_pre_hook(lambda _, args: streams.append(args[0].detach().clone()))
    module(pixels)
    for layer, stream in zip(module.encoder.layers, streams, strict=True):
        attention = layer.self_attention
        x = torch.nn.functional.layer_norm(stream, (32,), layer.ln_1.weight, layer.ln_1.bias, 1e-6)
        q, k, v = (
            (x @ weight.T + bias).reshape(*x.shape[:2], 4, 8).transpose(1, 2)
            for weight, bias in zip(
                attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True
            )
        )
        yield make_reference(
            q,
            k,
            v,
            scale=8**-0.5,
            out_weight=attention.out_proj.weight,
            out_bias=attention.out_proj.bias,
            layer_scale=None,
            stream=stream,
            query=0,
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", TINY_TORCHVISION)
@torch.no_grad()
def test_every_layer_matches_the_reference(name, dtype, tolerance):
    module = TINY_TORCHVISION[name]()
    expected = list(references(module, make_pixels(SIZE)))
    adapter = wrap_model(module).to("cpu", dtype)
    feature = check_layers(adapter, make_pixels(SIZE), tolerance, expected)
    assert torch.equal(module.heads(feature), module(make_pixels(SIZE).to(dtype)))


def test_info_says_what_the_model_is():
    module = TINY_TORCHVISION["vit"]()
    info = wrap_model(module, model_id="mine").info
    assert (info.id, info.family, info.global_feature) == ("mine", "torchvision/vit", "cls")
    assert (info.depth, info.embed_dim, info.num_heads, info.patch_size) == (3, 32, 4, (8, 8))
    own = [part for name, part in module.named_parameters() if not name.startswith("heads")]
    assert info.num_params == sum(parameter.numel() for parameter in own)
    assert ["classifier" in info.notes[0], "preprocessing" in info.notes[1]] == [True, True]


def test_another_size_is_refused():
    with pytest.raises(UsageError, match="interpolate_embeddings"):
        wrap_model(TINY_TORCHVISION["vit"]()).make_layout(40, 32)


def test_there_are_no_ids_of_torchvision():
    with pytest.raises(UnknownModelError, match="torchvision:vit_b_16"):
        load_model("torchvision:vit_b_16")


class MyViT(VisionTransformer):
    """A subclass might compute anything."""


def replace_block(module):
    module.encoder.layers[1] = nn.Identity()


def replace_mlp(module):
    module.encoder.layers[1].mlp = nn.Linear(32, 32)


def add_part(module):
    module.encoder.layers[1].gate = nn.Linear(32, 32)


def replace_attention(module):
    module.encoder.layers[1].self_attention = nn.MultiheadAttention(32, 4)


def subclass(module):
    module.__class__ = MyViT


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replace_block, "blocks Identity"),
        (replace_mlp, "an MLP Linear"),
        (add_part, "a part 'gate' in its EncoderBlock"),
        (replace_attention, "batch_first=False"),
        (subclass, "MyViT"),
    ],
)
def test_what_is_not_known_is_refused_by_name(change, words):
    module = TINY_TORCHVISION["vit"]()
    change(module)
    with pytest.raises(UnsupportedModelError, match=words):
        wrap_model(module)
