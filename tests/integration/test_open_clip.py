"""open_clip adapters against a float64 reference made from raw weights, on tiny models.

Tolerances: 1e-10 in float64 and 1e-4 in float32 are the product's own limits for a balanced ledger;
the same hold for agreement with the reference, whose inputs are the same numbers.
"""

import copy
import warnings
from functools import cache

import open_clip
import pytest
import torch
from open_clip import CLIPTextCfg, CLIPVisionCfg, CoCa
from open_clip.coca_model import MultimodalCfg
from torch import nn

from reference import make_reference
from tracing import check_layers, collect, make_pixels
from vitscope.adapters import open_clip as adapters
from vitscope.adapters.open_clip import load_open_clip, make_open_clip_adapter
from vitscope.adapters.timm import make_timm_adapter
from vitscope.errors import (
    ModelUnreachableError,
    UnknownModelError,
    UnsupportedModelError,
    UsageError,
)
from vitscope.testing.tiny_open_clip import TINY_OPEN_CLIP, make_tiny_clip

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
NATIVE = [name for name in TINY_OPEN_CLIP if not name.startswith("timm")]
HEADS = 4


@cache
def build(name):
    return TINY_OPEN_CLIP[name]()


# --- the reference's own account of torch's packed attention --------------------------------------


def reference_of_block(weights, stream):
    x = stream - stream.mean(dim=-1, keepdim=True)
    x = x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    x = x * weights["ln_1.weight"] + weights["ln_1.bias"]
    packed = torch.einsum("bnd,ed->bne", x, weights["attn.in_proj_weight"])
    packed = packed + weights["attn.in_proj_bias"]
    batch, tokens, dim = x.shape
    q, k, v = packed.reshape(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    return make_reference(
        q,
        k,
        v,
        scale=(dim / HEADS) ** -0.5,
        out_weight=weights["attn.out_proj.weight"],
        out_bias=weights["attn.out_proj.bias"],
        layer_scale=weights.get("ls_1.gamma"),
        stream=stream,
        query=0,
    )


def references(name):
    tower = copy.deepcopy(build(name)).double().visual
    blocks = list(tower.transformer.resblocks)
    streams = []
    for block in blocks:
        block.register_forward_pre_hook(lambda _, args: streams.append(args[0].detach().clone()))
    tower(make_pixels(tower.image_size))
    return [
        reference_of_block(block.state_dict(), stream)
        for block, stream in zip(blocks, streams, strict=True)
    ]


# --- tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", TINY_OPEN_CLIP)
def test_every_layer_matches_the_reference_and_embeds_as_open_clip_does(name, dtype):
    module = copy.deepcopy(build(name)).to(dtype)
    adapter = make_open_clip_adapter(module)
    pixels = make_pixels(module.visual.image_size)
    # Towers of timm are compared with timm's own below.
    expected = references(name) if name in NATIVE else None
    feature = check_layers(adapter, pixels, TOLERANCES[dtype], expected)
    with torch.no_grad():
        output = module.visual(pixels.to(dtype))
    assert torch.equal(feature, output[0] if isinstance(output, tuple) else output)


@pytest.mark.parametrize("name", [name for name in TINY_OPEN_CLIP if name.startswith("timm")])
def test_a_timm_tower_has_the_ledgers_of_its_trunk(name):
    module = copy.deepcopy(build(name)).double()
    adapter, trunk = make_open_clip_adapter(module), make_timm_adapter(module.visual.trunk)
    pixels = make_pixels(module.visual.image_size)
    found, feature = collect(adapter, pixels)
    expected, _ = collect(trunk, pixels)
    assert len(found) == len(expected) == len(adapter.blocks)
    # The same tensors in the same order of sums: not a bit may differ.
    for (trace, ledger), (_, of_trunk) in zip(found, expected, strict=True):
        assert ledger.groups == of_trunk.groups
        assert torch.equal(ledger.contributions, of_trunk.contributions)
        assert torch.equal(ledger.residual_total, of_trunk.residual_total)
        assert trace.layout == trunk.make_layout(*module.visual.image_size)
    with torch.no_grad():
        assert torch.equal(feature, module.encode_image(pixels))


def test_blocks_see_the_batch_in_the_first_dimension():
    tower = build("plain").visual
    shapes = []
    handle = tower.transformer.resblocks[0].attn.register_forward_pre_hook(
        lambda _, args: shapes.append([tuple(arg.shape) for arg in args])
    )
    tower(make_pixels(tower.image_size).float())
    handle.remove()
    assert shapes == [[(2, 17, 32)] * 3]


def test_a_tower_alone_is_adapted_too():
    tower = build("plain").visual
    adapter = make_open_clip_adapter(tower, model_id="mine")
    assert adapter.module is tower
    info = adapter.info
    assert (info.id, info.family, info.depth, info.num_heads) == ("mine", "open_clip/vit", 3, 4)
    assert (info.embed_dim, info.patch_size, info.num_registers) == (32, (8, 8), 0)
    assert info.num_params == sum(p.numel() for p in tower.parameters())


def test_the_pooling_head_of_a_timm_tower_is_analysed_in_place_of_cls():
    adapter = make_open_clip_adapter(build("timm_pooling"))
    assert adapter.info.global_feature == "attention pooling"
    assert adapter.info.family == "open_clip/timm/vit"


def test_preprocessing_is_what_open_clip_attached_to_the_model():
    module = copy.deepcopy(build("plain"))
    defaults = make_open_clip_adapter(module)
    assert "default" in defaults.info.notes[0]
    assert (defaults.preprocessing.size, defaults.preprocessing.resize) == ((32, 32), "cover")
    settings = {
        "size": (32, 32),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.1, 0.2, 0.3),
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    open_clip.set_model_preprocess_cfg(module, settings)
    adapter = make_open_clip_adapter(module)
    preprocessing = adapter.preprocessing
    assert adapter.info.notes == ()
    assert (preprocessing.mean, preprocessing.std) == (settings["mean"], settings["std"])
    assert (preprocessing.resize, preprocessing.interpolation) == ("stretch", "bilinear")
    open_clip.set_model_preprocess_cfg(module, settings | {"resize_mode": "longest"})
    with pytest.raises(UnsupportedModelError, match="resize_mode"):
        make_open_clip_adapter(module)


def test_another_size_than_the_towers_is_refused():
    adapter = make_open_clip_adapter(build("wide"))
    assert adapter.make_layout(24, 40).grid == (3, 5)
    with pytest.raises(UsageError, match=r"40 x 24 px .* 24 x 40 px alone"):
        adapter.make_layout(40, 24)


# --- refused -----------------------------------------------------------------------------------


def make_coca():
    return CoCa(
        embed_dim=32,
        multimodal_cfg=MultimodalCfg(width=32, heads=4, layers=1),
        text_cfg=CLIPTextCfg(context_length=4, vocab_size=8, width=32, heads=4, layers=1),
        vision_cfg=CLIPVisionCfg(
            layers=1, width=32, head_width=8, patch_size=8, image_size=32, attentional_pool=True
        ),
    )


def swap_batch_and_tokens():
    module = make_tiny_clip()
    module.visual.transformer.batch_first = False
    return module


def make_block_with(name, part):
    module = make_tiny_clip()
    setattr(module.visual.transformer.resblocks[1], name, part)
    return module


@pytest.mark.parametrize(
    ("build_module", "words"),
    [
        (make_coca, "attentional_pool"),
        (lambda: make_tiny_clip(pool_type="avg"), "pool_type='avg'"),
        (lambda: make_tiny_clip(pool_type="none"), "pool_type='none'"),
        (lambda: make_tiny_clip(qk_norm=True), "CustomResidualAttentionBlock .*qk_norm"),
        (lambda: make_tiny_clip(scale_heads=True), "CustomResidualAttentionBlock"),
        (lambda: make_tiny_clip(layers=(1, 1, 1, 1)), "ModifiedResNet"),
        (swap_batch_and_tokens, "batch_first"),
        (lambda: make_block_with("attn", nn.MultiheadAttention(32, 4)), "batch_first=False"),
        (lambda: make_block_with("ln_1_kv", nn.LayerNorm(32)), "ln_1_kv"),
        (lambda: make_block_with("ls_1", nn.Linear(32, 32)), "a scale Linear"),
        (
            lambda: make_tiny_clip(
                timm_model_name="test_vit", image_size=160, timm_pool="avg", timm_proj="linear"
            ),
            "timm_pool='avg'",
        ),
        (
            lambda: make_tiny_clip(
                timm_model_name="test_vit", image_size=160, timm_pool="token", timm_proj="mlp"
            ),
            "a Mlp on top of its timm tower",
        ),
    ],
)
def test_settings_that_are_not_modelled_are_refused_by_name(build_module, words):
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        make_open_clip_adapter(build_module())
    assert "\n" not in str(caught.value)


# --- loaded ------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """ViT-B-32 shrunk to a toy, its weights lying where the hub would put them."""
    toy = {
        "embed_dim": 12,
        "vision_cfg": {
            "layers": 2,
            "width": 32,
            "head_width": 8,
            "patch_size": 32,
            "image_size": 224,
        },
        "text_cfg": {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 2, "layers": 1},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", toy)
    asked = []

    def find_snapshot(repo_id, others, weights):
        asked.append((repo_id, tuple(others), tuple(weights)))
        return tmp_path

    monkeypatch.setattr(adapters, "find_snapshot", find_snapshot)
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32")
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    return model, asked


def test_pretrained_weights_and_their_preprocessing_are_loaded(cached):
    model, asked = cached
    adapter = load_open_clip("ViT-B-32/laion2b_s34b_b79k")
    assert asked == [
        (
            "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
            (),
            ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
        )
    ]
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.eval().visual(pixels)
    assert torch.equal(adapter.trace(pixels, [1], lambda _: None), expected)
    assert adapter.info.id == "open_clip:ViT-B-32/laion2b_s34b_b79k"
    assert adapter.info.source == "open_clip ViT-B-32/laion2b_s34b_b79k"
    assert adapter.info.notes == ()
    assert adapter.preprocessing.mean == (0.48145466, 0.4578275, 0.40821073)


def test_weights_trained_with_quick_gelu_get_it_whatever_the_architecture_says(cached):
    model, _ = cached
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter = load_open_clip("ViT-B-32/openai")
    assert type(adapter.module.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert "QuickGELU" in adapter.info.notes[0]
    assert type(model.visual.transformer.resblocks[0].mlp.gelu) is nn.GELU


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("RN50/openai", "open_clip:RN50/openai has an image tower of class ModifiedResNet"),
        ("coca_ViT-B-32/laion2b_s13b_b90k", "attentional_pool"),
        ("ViT-L-14-CLIPA/datacomp1b", "pool_type='avg'"),
        ("EVA02-B-16/merged2b_s8b_b131k", "scale_attn_inner"),
        ("convnext_base/laion400m_s13b_b51k", "is not a VisionTransformer or Eva of timm"),
    ],
)
def test_a_tower_that_is_not_understood_is_refused_before_anything_is_fetched(
    monkeypatch, name, words
):
    monkeypatch.setattr(adapters, "_find_weights", lambda *_: pytest.fail("weights were asked for"))
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        load_open_clip(name)
    assert "\n" not in str(caught.value)


def test_damaged_weights(cached, tmp_path):
    path = tmp_path / "open_clip_pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelUnreachableError, match="damaged") as caught:
        load_open_clip("ViT-B-32/laion2b_s34b_b79k")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ViT-B-32/laion2b_s34b_b79", "vit-b-32/laion2b_s34b_b79k"])
def test_an_unknown_pair_is_answered_with_the_nearest(name):
    with pytest.raises(UnknownModelError, match=r"did you mean .*ViT-B-32/laion2b_s34b_b79k"):
        load_open_clip(name)
