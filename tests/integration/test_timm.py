"""timm adapters against a float64 reference made from raw weights, on tiny models of every kind.

Tolerances: 1e-10 in float64 and 1e-4 in float32 are the product's own limits for a balanced ledger;
the same hold for agreement with the reference, whose float32 inputs are the same numbers.
"""

import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from reference import make_reference
from tracing import check_layers, collect, make_pixels
from vitscope.adapters.timm import make_timm_adapter
from vitscope.errors import UsageError
from vitscope.testing.randomize import randomize
from vitscope.testing.tiny_timm import AVERAGED_TIMM, TINY_TIMM

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
POOLED = ("siglip", "vit_map", "eva_map")
AVERAGED = ("vit_avg", "eva02", "dinov3", "dinov3_bias")
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


def list_inputs():
    for name, build in TINY_TIMM.items():
        module = build()
        height, width = module.patch_embed.img_size
        yield pytest.param(name, (height, width), id=f"{name}-{height}x{width}")
        if module.dynamic_img_size:
            yield pytest.param(name, (height - 8, width + 16), id=f"{name}-wide")


# --- the reference's own account of timm's attention -------------------------------------------


def layer_norm(x, norm):
    if isinstance(norm, nn.Identity):
        return x
    x = x - x.mean(dim=-1, keepdim=True)
    return x / (x.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def project(x, weight, bias, num_heads):
    y = torch.einsum("bnd,ed->bne", x, weight)
    y = y if bias is None else y + bias
    return y.reshape(*y.shape[:2], num_heads, -1).transpose(1, 2)


def raw_projections(attention):
    """Weight and bias of q, k and v, wherever this kind of attention keeps them."""
    if attention.qkv is None:
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        return [(layer.weight, layer.bias) for layer in layers]
    weights = attention.qkv.weight.chunk(3)
    if attention.qkv.bias is not None:
        return list(zip(weights, attention.qkv.bias.chunk(3), strict=True))
    q_bias = getattr(attention, "q_bias", None)
    v_bias = getattr(attention, "v_bias", None)
    return list(zip(weights, (q_bias, None, v_bias), strict=True))


def rotate(x, table, prefix, half):
    """Rotate pairs of coordinates of the tokens behind the prefix, one pair at a time."""
    sin, cos = table.chunk(2, dim=-1)
    x = x.clone()
    patches = x[:, :, prefix:].clone()
    dim = x.shape[-1]
    for i in range(dim // 2):
        a, b = (i, i + dim // 2) if half else (2 * i, 2 * i + 1)
        x[:, :, prefix:, a] = patches[..., a] * cos[..., a] - patches[..., b] * sin[..., a]
        x[:, :, prefix:, b] = patches[..., b] * cos[..., a] + patches[..., a] * sin[..., a]
    return x


def raw_block_heads(module, layer, stream, grid):
    block = module.blocks[layer]
    attention = block.attn
    x = layer_norm(stream, block.norm1)
    (wq, bq), (wk, bk), (wv, bv) = raw_projections(attention)
    kv_heads = wk.shape[0] // (wq.shape[0] // attention.num_heads)
    q = layer_norm(project(x, wq, bq, attention.num_heads), attention.q_norm)
    k = layer_norm(project(x, wk, bk, kv_heads), attention.k_norm)
    v = project(x, wv, bv, kv_heads)
    if getattr(module, "rope", None) is not None:
        table = module.rope.get_embed(shape=list(grid))
        table = table[layer] if module.rope_mixed else table
        prefix = stream.shape[1] - grid[0] * grid[1]
        q, k = (rotate(part, table, prefix, attention.rotate_half) for part in (q, k))
    shared = [head * kv_heads // attention.num_heads for head in range(attention.num_heads)]
    return q, k[:, shared], v[:, shared]


def raw_block_reference(module, layer, stream, grid):
    block = module.blocks[layer]
    q, k, v = raw_block_heads(module, layer, stream, grid)
    gamma = getattr(block, "gamma_1", None)
    return make_reference(
        q,
        k,
        v,
        scale=q.shape[-1] ** -0.5,
        out_weight=block.attn.proj.weight,
        out_bias=block.attn.proj.bias,
        layer_scale=getattr(getattr(block, "ls1", None), "gamma", gamma),
        stream=stream,
        query=0,
    )


def raw_pool_reference(module, tokens):
    pool = module.attn_pool
    latent = pool.latent.expand(tokens.shape[0], -1, -1)
    (wk, wv), (bk, bv) = pool.kv.weight.chunk(2), pool.kv.bias.chunk(2)
    q = project(latent, pool.q.weight, pool.q.bias, pool.num_heads)
    return make_reference(
        q,
        project(tokens, wk, bk, pool.num_heads),
        project(tokens, wv, bv, pool.num_heads),
        scale=q.shape[-1] ** -0.5,
        out_weight=pool.proj.weight,
        out_bias=pool.proj.bias,
        layer_scale=None,
        stream=None,
        query=0,
    )


@torch.no_grad()
def raw_references(module, pixels, grid):
    """The reference of every analysable layer, on the streams that a float64 copy computes."""
    module = copy.deepcopy(module).double()
    streams = []
    stages = list(module.blocks) if module.attn_pool is None else [module.attn_pool]
    for stage in stages:
        stage.register_forward_pre_hook(lambda _, args: streams.append(args[0].clone()))
    module(pixels.double())
    if module.attn_pool is not None:
        return [raw_pool_reference(module, streams[0])]
    return [raw_block_reference(module, i, stream, grid) for i, stream in enumerate(streams)]


# --- what every model must do ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize(("name", "size"), list(list_inputs()))
def test_every_layer_agrees_with_the_reference(name, size, dtype):
    adapter = make_timm_adapter(TINY_TIMM[name]())
    pixels = make_pixels(size, dtype)
    references = raw_references(adapter.module, pixels, adapter.make_layout(*size).grid)
    check_layers(adapter.to("cpu", dtype), pixels, TOLERANCES[dtype], references)


@pytest.mark.parametrize("name", list(TINY_TIMM))
def test_weights_make_attention_uneven(name):
    adapter = make_timm_adapter(TINY_TIMM[name]())
    found, _ = collect(adapter, make_pixels(adapter.preprocessing.size, torch.float32))
    assert all(trace.logits.std(dim=-1).mean() > 0.5 for trace, _ in found)


@pytest.mark.parametrize("name", [n for n in TINY_TIMM if n not in {*AVERAGED, "deit_distilled"}])
def test_run_is_the_librarys_own_feature(name):
    adapter = make_timm_adapter(TINY_TIMM[name]())
    module, pixels = adapter.module, make_pixels(adapter.preprocessing.size, torch.float32)
    with torch.no_grad():
        tokens = module.forward_features(pixels)
        expected = module.forward_head(tokens, pre_logits=name != "clip")
    _, feature = collect(adapter, pixels)
    torch.testing.assert_close(feature, expected, rtol=0, atol=0)
    assert adapter.info.notes == ()
    assert adapter.info.global_feature == ("attention pooling" if name in POOLED else "cls")


@pytest.mark.parametrize("name", AVERAGED)
def test_averaged_model_with_cls_hands_out_the_cls_row_and_says_so(name):
    adapter = make_timm_adapter(TINY_TIMM[name]())
    module, pixels = adapter.module, make_pixels(adapter.preprocessing.size, torch.float32)
    with torch.no_grad():
        tokens = module.forward_features(pixels)
        averaged = module.forward_head(tokens, pre_logits=True)
        expected = layer_norm(tokens[:, 0], module.fc_norm)
    _, feature = collect(adapter, pixels)
    torch.testing.assert_close(feature, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(feature, averaged, atol=0.1)
    assert "averages its patches" in adapter.info.notes[0]


@pytest.mark.parametrize("name", AVERAGED_TIMM)
def test_averaged_model_without_cls_hands_out_its_own_feature(name):
    module = AVERAGED_TIMM[name]()
    adapter = make_timm_adapter(module)
    pixels = make_pixels((32, 32), torch.float32)
    with torch.no_grad():
        expected = module.forward_head(module.forward_features(pixels), pre_logits=True)
        assert torch.equal(adapter.run(pixels), expected)
    assert not adapter.info.notes


def test_distilled_model_hands_out_its_cls_row_and_says_so():
    adapter = make_timm_adapter(TINY_TIMM["deit_distilled"]())
    pixels = make_pixels((32, 32), torch.float32)
    _, feature = collect(adapter, pixels)
    with torch.no_grad():
        torch.testing.assert_close(feature, adapter.module.forward_features(pixels)[:, 0])
    assert "distillation" in adapter.info.notes[0]
    assert tuple(adapter.make_layout(32, 32).groups) == ("cls", "distillation", "patches")


@pytest.mark.parametrize("name", ["vit", "dinov3", "eva02", "rope_grouped", "siglip"])
def test_fused_and_plain_attention_give_the_same_ledger(name):
    ledgers = []
    for fused in (True, False):
        module = TINY_TIMM[name]()
        for part in module.modules():
            if hasattr(part, "fused_attn"):
                part.fused_attn = fused
        adapter = make_timm_adapter(module).to("cpu", torch.float64)
        found, _ = collect(adapter, make_pixels(adapter.preprocessing.size))
        ledgers.append([ledger for _, ledger in found])
    for fused, plain in zip(*ledgers, strict=True):
        torch.testing.assert_close(fused.contributions, plain.contributions, rtol=1e-9, atol=1e-9)
        assert plain.balance_error.max() <= 1e-10


def test_bias_added_in_place_after_the_projection():
    module = TINY_TIMM["eva02_fused"]()
    for block in module.blocks:
        block.attn.qkv_bias_separate = True
    adapter = make_timm_adapter(module).to("cpu", torch.float64)
    found, _ = collect(adapter, make_pixels((32, 32)))
    assert all(ledger.balance_error.max() <= 1e-10 for _, ledger in found)


def test_patch_dropout_is_off_in_evaluation():
    module = VisionTransformer(**TINY, patch_drop_rate=0.5).train()
    adapter = make_timm_adapter(randomize(module)).to("cpu", torch.float64)
    found, _ = collect(adapter, make_pixels((32, 32)))
    assert found[-1][1].balance_error.max() <= 1e-10


# --- what the adapter says of a model -------------------------------------------------------------


def test_layouts():
    def describe(name, *size):
        return make_timm_adapter(TINY_TIMM[name]()).make_layout(*size).describe()

    assert describe("dinov2_reg", 24, 48) == "1 cls + 4 registers + 3 x 6 patches = 23 tokens"
    assert describe("vit_grid", 24, 40) == "1 cls + 3 x 4 patches = 13 tokens"
    assert describe("siglip", 32, 40) == "4 x 5 patches = 20 tokens"
    assert describe("eva_map", 32, 40) == "1 cls + 4 x 5 patches = 21 tokens"
    # Registers and [CLS] do not enter this pool.
    assert describe("vit_map", 32, 32) == "4 x 4 patches = 16 tokens"


def test_pooling_that_includes_the_prefix():
    module = VisionTransformer(**TINY, reg_tokens=2, global_pool="map", pool_include_prefix=True)
    adapter = make_timm_adapter(randomize(module)).to("cpu", torch.float64)
    found, _ = collect(adapter, make_pixels((32, 32)))
    assert found[0][1].groups == ("cls", "registers", "patches")
    assert found[0][0].skip is None
    assert found[0][0].layer == adapter.info.depth == 2
    assert found[0][1].balance_error.max() <= 1e-10


def test_info():
    info = make_timm_adapter(TINY_TIMM["dinov2_reg"](), model_id="mine").info
    expected = ("mine", "timm/vit", 2, 32, 4, (8, 8), 4)
    found = (info.id, info.family, info.depth, info.embed_dim, info.num_heads, info.patch_size)
    assert (*found, info.num_registers) == expected
    with_classifier = TINY_TIMM["vit"]()
    classifier = with_classifier.head.weight.numel() + with_classifier.head.bias.numel()
    total = sum(parameter.numel() for parameter in with_classifier.parameters())
    assert make_timm_adapter(with_classifier).info.num_params == total - classifier


@pytest.mark.parametrize(
    ("pooling", "own_output"),
    [
        ({"global_pool": "token"}, ""),
        ({"global_pool": "avg"}, "timm averages its patches"),
        ({"global_pool": "avg", "pool_include_prefix": True}, "timm averages its tokens"),
        ({"global_pool": "avgmax"}, "timm pools its patches"),
    ],
)
def test_a_model_that_does_not_return_its_cls_token_says_what_it_returns(pooling, own_output):
    info = make_timm_adapter(VisionTransformer(**TINY, **pooling)).info
    assert info.own_output == own_output
    assert any("the [CLS] token was analysed" in note for note in info.notes) == bool(own_output)


def test_size_of_a_model_built_for_one_size():
    adapter = make_timm_adapter(TINY_TIMM["vit"]())
    with pytest.raises(UsageError, match=r"40 x 32 px .* built for 32 x 32 px .*dynamic_img_size"):
        adapter.make_layout(40, 32)
    adapter.module.set_input_size((40, 32))
    assert adapter.make_layout(40, 32).grid == (5, 4)


def test_size_beyond_the_last_whole_patch():
    fixed = make_timm_adapter(randomize(VisionTransformer(**{**TINY, "img_size": 30})))
    assert fixed.preprocessing.size == (30, 30)
    found, _ = collect(fixed, make_pixels((30, 30), torch.float32))
    assert found[-1][0].layout.grid == (3, 3)
    module = VisionTransformer(**{**TINY, "img_size": 30}, dynamic_img_size=True)
    dynamic = make_timm_adapter(module)
    assert dynamic.preprocessing.size == (24, 24)
    assert "30 x 30" in dynamic.info.notes[0]
