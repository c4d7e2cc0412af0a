"""transformers adapters against a float64 reference made from raw weights, on tiny models.

Tolerances: 1e-10 in float64 and 1e-4 in float32 are the product's own limits for a balanced ledger;
the same hold for agreement with the reference, whose inputs are the same numbers.
"""

import copy
from functools import cache

import pytest
import torch

from reference import make_reference
from tracing import check_layers, collect, make_pixels
from vitscope.adapters.transformers import make_transformers_adapter
from vitscope.testing.tiny_transformers import TINY_TRANSFORMERS

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
SIZES = ((32, 32), (24, 40))
HEADS = 4

DINO = ("norm1", "attention", "o_proj")
VIT = ("layernorm_before", "attention", "o_proj")
CLIP = ("layer_norm1", "self_attn", "out_proj")
STYLES = {
    "dinov2": DINO,
    "dinov3": DINO,
    "vit": VIT,
    "deit": VIT,
    "msn": VIT,
    "beit": VIT,
    "clip": CLIP,
    "metaclip": CLIP,
    "data2vec": ("layernorm_before", "attention", "output.dense"),
    "internvl": ("layernorm_before", "attention", "projection_layer"),
}
"""Names of the norm, the attention and its output projection, by the start of a model's name."""

POOLED = {"siglip", "aimv2"}
FIRST_ROW = ("vit", "deit", "msn", "beit", "data2vec", "internvl")
"""Families whose library returns the [CLS] row among all tokens."""


@cache
def build(name):
    return TINY_TRANSFORMERS[name]()


def call(module, pixels, **options):
    """The library's own forward, at any size."""
    name = type(module).__name__
    if name.startswith(("ViT", "DeiT", "CLIP", "Siglip", "MetaClip2")):
        options["interpolate_pos_encoding"] = True
    with torch.no_grad():
        return module(pixels, **options)


def public_feature(name, module, pixels):
    """What the library's documentation tells its users to take."""
    output = call(module, pixels)
    if name.startswith(FIRST_ROW):
        return output.last_hidden_state[:, 0]
    return output.image_embeds if name == "clip" else output.pooler_output


# --- the reference's own account of the library's attention --------------------------------------


def layer_norm(x, weights, prefix, eps):
    x = x - x.mean(dim=-1, keepdim=True)
    x = x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return x * weights[f"{prefix}.weight"] + weights[f"{prefix}.bias"]


def project(x, weights, prefix):
    y = torch.einsum("bnd,ed->bne", x, weights[f"{prefix}.weight"])
    y = y + weights.get(f"{prefix}.bias", 0)
    batch, tokens, _ = y.shape
    return y.reshape(batch, tokens, HEADS, -1).permute(0, 2, 1, 3)


def rotate(x, size, config):
    """Patches turned as complex numbers: dimension i is the real part, i + d / 2 the imaginary."""
    half = x.shape[-1] // 2
    rows, columns = size[0] // config.patch_size, size[1] // config.patch_size
    # The library computes frequencies and coordinates in float32, whatever the model's precision.
    frequency = 1 / config.rope_theta ** torch.arange(0, 1, 2 / half, dtype=torch.float32)
    axes = [(torch.arange(n, dtype=torch.float32) + 0.5) / n * 2 - 1 for n in (rows, columns)]
    places = [2 * torch.pi * axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]
    angles = torch.cat([p.double()[:, None] * frequency.double() for p in places], dim=-1)
    turn = torch.polar(torch.ones_like(angles), angles)
    patches = x[:, :, -rows * columns :]
    turned = torch.complex(patches[..., :half], patches[..., half:]) * turn
    turned = torch.cat((turned.real, turned.imag), dim=-1)
    return torch.cat((x[:, :, : -rows * columns], turned), dim=2)


def relative_bias(weights, size, config):
    """Bias (head, token, token) of all relative positions, pair by pair, [CLS] first."""
    table = next((w for name, w in weights.items() if "relative_position_bias_table" in name), None)
    if table is None:
        return 0.0
    rows, columns = size[0] // 8, size[1] // 8
    old = 2 * config.image_size // 8 - 1
    window = table[:-3].T.reshape(1, HEADS, old, old)
    window = torch.nn.functional.interpolate(
        window, size=(2 * rows - 1, 2 * columns - 1), mode="bilinear"
    )[0]
    from_cls, to_cls, own = table[-3:]
    bias = torch.empty(HEADS, 1 + rows * columns, 1 + rows * columns, dtype=torch.float64)
    for i in range(rows * columns):
        for j in range(rows * columns):
            down, right = i // columns - j // columns, i % columns - j % columns
            bias[:, 1 + i, 1 + j] = window[:, down + rows - 1, right + columns - 1]
    bias[:, 0, :], bias[:, :, 0] = from_cls[:, None], to_cls[:, None]
    bias[:, 0, 0] = own
    return bias


def reference_of_layer(name, layer, stream, size, config, shared):
    weights = {key: value.double() for key, value in layer.state_dict().items()}
    norm, attention, out = next(style for key, style in STYLES.items() if name.startswith(key))
    x = layer_norm(stream, weights, norm, config.layer_norm_eps)
    parts = [f"{attention}.{part}_proj" for part in "qkv"]
    if name == "data2vec":
        parts = [f"attention.attention.{part}" for part in ("query", "key", "value")]
    q, k, v = (project(x, weights, part) for part in parts)
    if name.startswith("dinov3"):
        q, k = rotate(q, size, config), rotate(k, size, config)
    return make_reference(
        q,
        k,
        v,
        scale=(config.hidden_size / HEADS) ** -0.5,
        out_weight=weights[f"{attention}.{out}.weight"],
        out_bias=weights[f"{attention}.{out}.bias"],
        layer_scale=weights.get("layer_scale1.lambda1", weights.get("lambda_1")),
        stream=stream,
        query=0,
        bias=relative_bias(weights, size, config) + shared,
    )


def reference_of_pooling(head, tokens):
    weights = {key: value.double() for key, value in head.state_dict().items()}
    packed = weights["attention.in_proj_weight"].split(tokens.shape[-1])
    bias = weights["attention.in_proj_bias"].split(tokens.shape[-1])
    named = {f"{i}.weight": w for i, w in enumerate(packed)}
    named |= {f"{i}.bias": b for i, b in enumerate(bias)}
    probe = weights["probe"].expand(tokens.shape[0], -1, -1)
    return make_reference(
        project(probe, named, "0"),
        project(tokens, named, "1"),
        project(tokens, named, "2"),
        scale=(tokens.shape[-1] / HEADS) ** -0.5,
        out_weight=weights["attention.out_proj.weight"],
        out_bias=weights["attention.out_proj.bias"],
        layer_scale=None,
        stream=None,
        query=0,
    )


def reference_of_aim_pooling(head, tokens):
    weights = {key: value.double() for key, value in head.state_dict().items()}
    query = weights["cls_token"].expand(tokens.shape[0], -1, -1)
    return make_reference(
        query.reshape(len(tokens), 1, HEADS, -1).permute(0, 2, 1, 3),
        project(tokens, weights, "k_proj"),
        project(tokens, weights, "v_proj"),
        scale=(tokens.shape[-1] / HEADS) ** -0.5,
        out_weight=weights["output_proj.weight"],
        out_bias=weights["output_proj.bias"],
        layer_scale=None,
        stream=None,
        query=0,
    )


def references(name, size):
    """One reference per analysed layer, from the library's public hidden states."""
    module = copy.deepcopy(build(name)).double()
    output = call(module, make_pixels(size), output_hidden_states=True)
    if name == "siglip":
        return [reference_of_pooling(module.head, output.last_hidden_state)]
    if name == "aimv2":
        return [reference_of_aim_pooling(module.head, output.last_hidden_state)]
    tower = module.vision_model if name == "clip" else module
    above_layers = {key: w.double() for key, w in tower.state_dict().items() if "layer" not in key}
    shared = relative_bias(above_layers, size, tower.config)
    layers = [m for m in tower.modules() if type(m).__name__.endswith(("Layer", "EncoderLayer"))]
    streams = output.hidden_states[: len(layers)]
    return [
        reference_of_layer(name, layer, stream, size, tower.config, shared)
        for layer, stream in zip(layers, streams, strict=True)
    ]


# --- tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", TINY_TRANSFORMERS)
def test_every_layer_matches_the_reference(name, size, dtype):
    module = copy.deepcopy(build(name))
    adapter = make_transformers_adapter(module).to("cpu", dtype)
    pixels, expected = make_pixels(size), references(name, size)
    assert len(expected) == (1 if name in POOLED else 3)
    feature = check_layers(adapter, pixels, TOLERANCES[dtype], expected)
    assert torch.equal(feature, public_feature(name, module, pixels.to(dtype)))


@pytest.mark.parametrize("name", TINY_TRANSFORMERS)
def test_the_kernel_of_attention_does_not_matter(name):
    # float32 on both sides, since some eager kernels know no other softmax.
    module = copy.deepcopy(build(name))
    pixels = make_pixels((24, 40)).float()
    results = {}
    for kernel in ("sdpa", "eager"):
        module.set_attn_implementation(kernel)
        results[kernel], _ = collect(make_transformers_adapter(module), pixels)
    for (_, fast), (_, eager) in zip(results["sdpa"], results["eager"], strict=True):
        assert eager.balance_error.max() <= 1e-4
        assert torch.allclose(fast.attention_mass, eager.attention_mass, atol=1e-4)
        difference = (fast.contributions - eager.contributions).norm()
        assert difference <= 1e-4 * fast.contributions.norm()


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("dinov2", {"cls": 1, "patches": 15}),
        ("dinov2_registers", {"cls": 1, "registers": 3, "patches": 15}),
        ("dinov3", {"cls": 1, "registers": 4, "patches": 15}),
        ("deit", {"cls": 1, "distillation": 1, "patches": 15}),
        ("siglip", {"patches": 15}),
    ],
)
def test_layouts(name, groups):
    layout = make_transformers_adapter(build(name)).make_layout(24, 40)
    assert {group: len(positions) for group, positions in layout.groups.items()} == groups
    assert layout.grid == (3, 5)
    assert layout.query == (None if name == "siglip" else 0)


def test_info_says_what_the_model_is():
    adapter = make_transformers_adapter(build("dinov2_registers"), model_id="mine")
    info = adapter.info
    assert (info.id, info.family) == ("mine", "transformers/dinov2_with_registers")
    assert (info.depth, info.embed_dim, info.num_heads) == (3, 32, 4)
    assert (info.patch_size, info.num_registers) == ((8, 8), 3)
    assert info.global_feature == "cls"
    assert info.num_params == sum(p.numel() for p in build("dinov2_registers").parameters())
    assert "preprocessing" in info.notes[0]
    pooled = make_transformers_adapter(build("siglip"))
    assert pooled.info.global_feature == "attention pooling"
    assert list(pooled.blocks) == [pooled.info.depth]


def test_a_model_in_training_mode_is_put_into_evaluation_mode():
    module = copy.deepcopy(build("dinov2_swiglu")).train()
    make_transformers_adapter(module)
    assert not any(part.training for part in module.modules())


def test_moving_the_adapter_moves_what_its_ledgers_are_made_of():
    adapter = make_transformers_adapter(copy.deepcopy(build("clip"))).to("cpu", torch.float64)
    found, feature = collect(adapter, make_pixels((32, 32)))
    assert feature.dtype == torch.float64
    assert all(trace.tail.weight.dtype == torch.float64 for trace, _ in found)
