"""The torch.hub adapter on structural twins of DINOv2's and DINOv3's code, and what it may load.

Tolerances: the product's own limits for a balanced ledger, 1e-10 in float64 and 1e-4 in float32.
"""

import copy
import os
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from torch import nn

import hub_twin
import hub_twin_dinov3
from reference import make_reference
from tracing import check_layers, make_pixels
from vitscope.adapters.torch_hub import load_torch_hub, make_torch_hub_adapter
from vitscope.adapters.transformers_families import FAMILIES
from vitscope.errors import (
    ModelUnreachableError,
    UnknownModelError,
    UnsupportedModelError,
    UsageError,
    VitscopeError,
)
from vitscope.maps.passes import run_blocks
from vitscope.testing.randomize import randomize

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
SIZES = ((28, 28), (28, 42))
DINOV2 = {
    "plain": {},
    "registers": {
        "num_register_tokens": 4,
        "interpolate_antialias": True,
        "interpolate_offset": 0.0,
    },
    "swiglu": {"ffn_layer": "swiglufused"},
    "no layer scale": {"init_values": None},
    "chunked": {"block_chunks": 3},
    "plain kernel": {"attn_class": hub_twin.Attention},
    "registers last": {"num_register_tokens": 4, "registers_last": True},
}
DINOV3 = {
    "masked bias": {},
    "bias": {"mask_k_bias": False},
    "no bias to mask": {"qkv_bias": False},  # vit7b16
    "no bias": {"qkv_bias": False, "mask_k_bias": False},
    "own cls norm": {"untie_cls_and_patch_norms": True},
}


def make_dinov2(**settings):
    return randomize(hub_twin.DinoVisionTransformer(**settings))


def make_dinov3(**settings):
    return randomize(hub_twin_dinov3.DinoVisionTransformer(patch_size=7, **settings))


MODELS = [
    *(pytest.param(make_dinov2, settings, id=f"dinov2 {n}") for n, settings in DINOV2.items()),
    *(pytest.param(make_dinov3, settings, id=f"dinov3 {n}") for n, settings in DINOV3.items()),
]


def list_blocks(module):
    kinds = (hub_twin.Block, hub_twin_dinov3.SelfAttentionBlock)
    return [part for part in module.modules() if isinstance(part, kinds)]


def rotate(x, sin, cos):
    """DINOv3's rotation, pair by pair, in the precision of its tables."""
    prefix = x.shape[2] - sin.shape[0]
    x = x.to(sin.dtype)
    patches = x[:, :, prefix:].clone()
    half = x.shape[-1] // 2
    for i in range(half):
        a, b = patches[..., i], patches[..., i + half]
        x[:, :, prefix:, i] = a * cos[:, i] - b * sin[:, i]
        x[:, :, prefix:, i + half] = b * cos[:, i] + a * sin[:, i]
    return x.double()


def raw_reference(block, stream, rope):
    attention = block.attn
    x = stream - stream.mean(dim=-1, keepdim=True)
    x = x / (x.square().mean(dim=-1, keepdim=True) + block.norm1.eps).sqrt()
    x = x * block.norm1.weight + block.norm1.bias
    projected = torch.einsum("bnd,ed->bne", x, attention.qkv.weight)
    if attention.qkv.bias is not None:
        bias = attention.qkv.bias.clone()
        if hasattr(attention.qkv, "bias_mask"):
            bias.view(3, -1)[1] = 0
        projected = projected + bias
    parts = projected.chunk(3, dim=-1)
    heads = [torch.stack(part.chunk(attention.num_heads, dim=-1), dim=1) for part in parts]
    q, k, v = heads
    if rope is not None:
        q, k = rotate(q, *rope), rotate(k, *rope)
    return make_reference(
        q,
        k,
        v,
        scale=q.shape[-1] ** -0.5,
        out_weight=attention.proj.weight,
        out_bias=attention.proj.bias,
        layer_scale=getattr(block.ls1, "gamma", None),
        stream=stream,
        query=0,
    )


@torch.no_grad()
def raw_references(module, pixels, grid):
    module = copy.deepcopy(module).double()
    streams = []
    blocks = list_blocks(module)
    for block in blocks:
        block.norm1.register_forward_pre_hook(lambda _, args: streams.append(args[0].clone()))
    module(pixels.double())
    rope_embed = getattr(module, "rope_embed", None)
    rope = None if rope_embed is None else rope_embed(H=grid[0], W=grid[1])
    return [raw_reference(b, stream, rope) for b, stream in zip(blocks, streams, strict=True)]


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("make", "settings"), MODELS)
def test_every_layer_agrees_with_the_reference(make, settings, size, dtype):
    adapter = make_torch_hub_adapter(make(**settings))
    grid = adapter.make_layout(*size).grid
    assert grid == (size[0] // 7, size[1] // 7)
    pixels = make_pixels(size, dtype)
    references = raw_references(adapter.module, pixels, grid)
    feature = check_layers(adapter.to("cpu", dtype), pixels, TOLERANCES[dtype], references)
    with torch.no_grad():
        torch.testing.assert_close(feature, adapter.module(pixels), rtol=0, atol=0)


def test_info():
    info = make_torch_hub_adapter(make_dinov2(num_register_tokens=4), model_id="mine").info
    assert (info.id, info.family, info.num_registers) == ("mine", "torch_hub/dinov2", 4)
    assert (info.depth, info.embed_dim, info.num_heads, info.patch_size) == (3, 32, 4, (7, 7))
    info = make_torch_hub_adapter(make_dinov3()).info
    assert (info.family, info.num_registers) == ("torch_hub/dinov3", 4)


@pytest.mark.parametrize("registers_last", [False, True])
def test_tokens_are_what_the_layout_says(registers_last):
    module = make_dinov2(num_register_tokens=4, registers_last=registers_last)
    adapter = make_torch_hub_adapter(module)
    layout = adapter.make_layout(28, 42)
    one, other = run_blocks(adapter, make_pixels((28, 42), torch.float32)).streams[0]
    groups = layout.groups
    assert torch.equal(one[groups["registers"]], module.register_tokens[0])
    assert torch.equal(one[groups["cls"]], other[groups["cls"]])
    assert (one != other).any(dim=1)[groups["patches"]].all()
    last = groups["registers"].stop == layout.num_tokens
    assert (layout.query, last) == (0, registers_last)


def test_tokens_of_zeros_after_the_patches_are_registers():
    module = make_dinov2(registers_last=True)
    module.num_register_tokens = 2  # as the fork sets it for test-time registers
    layout = make_torch_hub_adapter(module).make_layout(28, 42)
    assert layout.groups["registers"] == range(25, 27)


class Rolled(hub_twin.DinoVisionTransformer):
    """[CLS], patches, registers, all moved on by some places."""

    places = 0

    def prepare_tokens_with_masks(self, x, masks=None):
        return super().prepare_tokens_with_masks(x, masks).roll(self.places, dims=1)


Rolled.__name__ = "DinoVisionTransformer"


@pytest.mark.parametrize(
    ("places", "patches"),
    [(2, "3, 4"), (3, "0, 4"), (1, "2, 3")],  # the first: registers, [CLS], patches
)
def test_registers_at_other_places_are_refused(places, patches):
    module = randomize(Rolled(num_register_tokens=2, registers_last=True))
    module.places = places
    message = rf"5 tokens of .* these at \[{patches}\]: expected \[CLS\], then 2 registers before"
    with pytest.raises(UnsupportedModelError, match=message):
        make_torch_hub_adapter(module)


def test_registers_that_are_no_tokens_are_refused():
    module = make_dinov2()
    module.num_register_tokens = 1
    with pytest.raises(UnsupportedModelError, match="makes 3 tokens of an image of two patches"):
        make_torch_hub_adapter(module)


def activate_on_registers(_, __, output):
    return output


def test_the_published_hooks_are_refused_with_the_remedy():
    module = make_dinov2()
    module.blocks[1].mlp.act.register_forward_hook(partial(activate_on_registers))
    message = (
        "edit the first image of a batch alone: take .* with the remedy "
        "test-time-registers:published=true,compat=released$"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        make_torch_hub_adapter(module)


def test_size_must_fit_the_patch():
    with pytest.raises(UsageError, match="multiple of 7"):
        make_torch_hub_adapter(make_dinov2()).make_layout(28, 30)


def add_part(name, part):
    module = make_dinov2()
    owner, _, attribute = name.rpartition(".")
    module.get_submodule(owner).add_module(attribute, part)
    return module


@pytest.mark.parametrize(
    ("word", "build"),
    [
        ("architecture Mlp", lambda: hub_twin.Mlp(8, 8)),
        (
            "'q_norm' in its MemEffAttention",
            lambda: add_part("blocks.1.attn.q_norm", nn.Identity()),
        ),
        ("'gate' in its NestedTensorBlock", lambda: add_part("blocks.2.gate", nn.Identity())),
        ("a Sequential in its blocks", lambda: add_part("blocks.0.ls1", nn.Sequential())),
        ("an MLP Bilinear", lambda: add_part("blocks.0.mlp", nn.Bilinear(32, 32, 32))),
        (
            "attention projection Bilinear",
            lambda: add_part("blocks.0.attn.proj", nn.Bilinear(32, 32, 32)),
        ),
    ],
)
def test_unknown_parts_are_refused_by_name(word, build):
    with pytest.raises(UnsupportedModelError, match=word):
        make_torch_hub_adapter(build())


# --- loading, with torch.hub replaced -------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """Replaces torch.hub.load; `answer` is raised or returned, `calls` is what was asked for."""

    fake = SimpleNamespace(answer=None, calls=[])

    def load(repository, name, **settings):
        fake.calls.append((repository, name, settings))
        sys.stdout.write("Downloading")
        if isinstance(fake.answer, Exception):
            raise fake.answer
        return fake.answer

    monkeypatch.setattr(torch.hub, "load", load)
    return fake


def test_published_model(hub, capsys):
    hub.answer = make_dinov2(num_register_tokens=4)
    adapter = load_torch_hub("dinov2_vits14_reg")
    repository, name, settings = hub.calls[0]
    assert (repository, name) == ("facebookresearch/dinov2", "dinov2_vits14_reg")
    assert settings["trust_repo"] is settings["pretrained"] is True
    assert adapter.info.id == "torchhub:dinov2_vits14_reg"
    assert adapter.info.source == "torch.hub, facebookresearch/dinov2"
    own = FAMILIES["dinov2"].preprocessing
    assert adapter.preprocessing == replace(own, pipeline="torchvision")
    assert adapter.preprocessing.crop_fraction == 224 / 256
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["dinov2_vits14_lc", "resnet50", "dinov3_convnext_tiny", ""])
def test_other_names_never_reach_torch_hub(hub, name):
    with pytest.raises(UnknownModelError, match=r"dinov2_vits14, .* dinov3_vits16"):
        load_torch_hub(name)
    assert hub.calls == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("It looks like there is no internet connection and the repo is not cached"),
        URLError(OSError(-2, "Name or service not known")),
    ],
)
def test_no_network_is_one_line(hub, error):
    hub.answer = error
    with pytest.raises(
        ModelUnreachableError, match=r"^torchhub:dinov2_vitb14 cannot be read or fetched"
    ) as caught:
        load_torch_hub("dinov2_vitb14")
    assert "\n" not in str(caught.value)


def test_the_network_is_not_blamed_for_a_failed_import(hub):
    hub.answer = RuntimeError("no such operator")
    hub.answer.__cause__ = ImportError("no such operator", name="torchvision.ops")
    with pytest.raises(RuntimeError, match=r"^no such operator$"):
        load_torch_hub("dinov2_vitb14")


def test_missing_package_of_the_publishers_code(hub):
    hub.answer = ModuleNotFoundError("No module named 'omegaconf'", name="omegaconf")
    with pytest.raises(VitscopeError, match="pip install omegaconf"):
        load_torch_hub("dinov2_vitb14")


def test_dinov3_needs_its_weights_given(hub):
    with pytest.raises(UsageError, match=r"dinov3_vits16@checkpoint"):
        load_torch_hub("dinov3_vits16")
    assert hub.calls == []


@pytest.mark.parametrize(("suffix", "red"), [("lvd1689m", 0.485), ("sat493m", 0.430)])
def test_dinov3_from_a_file(hub, tmp_path, suffix, red):
    weights = make_dinov3().state_dict()
    # Left over from training; evaluation has no use for it.
    weights["local_cls_norm.weight"] = torch.ones(32)
    path = tmp_path / f"dinov3_vits16_pretrain_{suffix}.pth"
    torch.save(weights, path)
    hub.answer = hub_twin_dinov3.DinoVisionTransformer(patch_size=7)
    adapter = load_torch_hub("dinov3_vits16", path)
    assert hub.calls[0][0] == "facebookresearch/dinov3"
    assert hub.calls[0][2]["pretrained"] is False
    assert torch.equal(adapter.module.cls_token, weights["cls_token"])
    assert adapter.preprocessing.mean[0] == red
    # As for the same weights in transformers: the whole image, stretched.
    own = FAMILIES["dinov3_vit"].preprocessing
    mended = replace(own, mean=adapter.preprocessing.mean, std=adapter.preprocessing.std)
    assert adapter.preprocessing == replace(mended, pipeline="torchvision")
    assert (own.size, own.resize, own.interpolation) == ((224, 224), "stretch", "bilinear")
    assert adapter.info.source == str(path)


class Payload:
    """What hostile weights would hold: reading them must not call this."""

    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


FORCED = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


@pytest.mark.parametrize("before", [(None, None), ("0", "1")])
def test_published_weights_are_read_as_data_whatever_the_code_asks_for(
    tmp_path, monkeypatch, before
):
    for name, value in zip(FORCED, before, strict=True):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save({"cls_token": Payload()}, path)

    def load(*_, **__):
        # The publisher's code calls this on its own address; here the file is already cached.
        return torch.hub.load_state_dict_from_url(f"https://host/{path.name}", model_dir=tmp_path)

    monkeypatch.setattr(torch.hub, "load", load)
    with pytest.raises(
        ModelUnreachableError, match=r"^the weights of torchhub:dinov2_vits14"
    ) as caught:
        load_torch_hub("dinov2_vits14")
    message = str(caught.value)
    assert message.endswith(
        "never executed: give a file of the weights alone, torchhub:dinov2_vits14@checkpoint.pth"
    )
    assert "\n" not in message
    assert not Payload.ran
    assert tuple(os.environ.get(name) for name in FORCED) == before


def test_file_that_does_not_fit(hub, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"teacher": {"backbone.cls_token": torch.zeros(1, 1, 8)}}, path)
    hub.answer = make_dinov2()
    with pytest.raises(UsageError, match="does not fit") as caught:
        load_torch_hub("dinov2_vits14", path)
    assert "\n" not in str(caught.value)
