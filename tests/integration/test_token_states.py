"""What is read of tokens and depths, against own hooks on every library's own forward.

Whatever the model computes is read off it, so hidden and normed states must be the very same
numbers; keys, values and norms are computed anew here, and 1e-12 is the rounding of float64.
"""

import copy
from functools import cache

import pytest
import torch
from torch import nn

import hub_twin
import hub_twin_dinov3
from support_table import TINY_MODELS
from vitscope import wrap_model
from vitscope.adapters.torch_hub import make_torch_hub_adapter
from vitscope.errors import UsageError
from vitscope.models.stream import name_tokens
from vitscope.testing.randomize import randomize

HUB = {
    "hub/dinov2": lambda: hub_twin.DinoVisionTransformer(num_register_tokens=4, block_chunks=3),
    "hub/dinov3": lambda: hub_twin_dinov3.DinoVisionTransformer(patch_size=7),
}
MODELS = [*TINY_MODELS, *HUB]
POOLED = {
    *("transformers/siglip", "transformers/aimv2", "timm/siglip", "timm/vit_map", "timm/eva_map"),
    "open_clip/timm_pooling",
}
# Positions turn the keys of patches there, and those of no other token.
ROTARY = ("dinov3", "rope", "eva")
# Registers before [CLS].
FIRST_REGISTERS = {"ph-reg/dinov2": 3}
FIRST_NORMS = ("norm1", "layernorm_before", "layer_norm1", "ln_1", "rms_norm1")


@cache
def adapt(name):
    """The adapter in float64; no test changes it for good."""
    vit = (
        make_torch_hub_adapter(randomize(HUB[name]()))
        if name in HUB
        else wrap_model(TINY_MODELS[name]())
    )
    return vit.to("cpu", torch.float64)


def sizes_of(name):
    """The native input, and one that is neither square nor native where the model takes it."""
    vit = adapt(name)
    (height, width), (patch_height, patch_width) = vit.preprocessing.size, vit.info.patch_size
    if name in HUB:
        height, width = 28, 28
    wide = (height - patch_height, width + 2 * patch_width)
    try:
        vit.make_layout(*wide)
    except UsageError:
        return [(height, width)]
    return [(height, width), wide]


def make_pixels(size, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 3, *size, generator=generator, dtype=torch.float64).to(dtype)


# --- this file's own account of a model: its blocks, and what passes through them -----------------


def list_blocks(module):
    """Every library's blocks, by what their classes are called."""
    kinds = ("Block", "Layer")  # ResidualAttentionBlock, EvaBlock, Dinov2Layer, CLIPEncoderLayer, …
    return [m for m in module.modules() if type(m).__name__.endswith(kinds) and has_norm(m)]


def has_norm(module):
    return any(hasattr(module, name) for name in FIRST_NORMS)


def first_norm(block):
    return next(getattr(block, name) for name in FIRST_NORMS if hasattr(block, name))


def unwrap(value):
    return value if isinstance(value, torch.Tensor) else value[0]


class Witness:
    """Inputs and outputs of all blocks and of their first norms in one forward without vitscope."""

    def __init__(self, vit, pixels):
        self.inputs, self.normed, self.outputs = [], [], []
        blocks = list_blocks(vit.module)
        handles = []
        for block in blocks:
            handles += [
                block.register_forward_pre_hook(self._enter, with_kwargs=True),
                block.register_forward_hook(self._leave),
                first_norm(block).register_forward_hook(self._norm),
            ]
        with torch.no_grad():
            vit.run(pixels)
        for handle in handles:
            handle.remove()
        self.depths = [*self.inputs, self.outputs[-1]]

    def _enter(self, _, args, kwargs):
        self.inputs.append(unwrap(args[0] if args else kwargs["hidden_states"]).clone())

    def _leave(self, _, __, output):
        self.outputs.append(unwrap(output).clone())

    def _norm(self, _, __, output):
        self.normed.append(output.clone())


def read(vit, pixels, layers="all"):
    """What vitscope reads: the states of each layer, and the stream."""
    traces, streams = {}, []
    chosen = vit.select_layers(layers)
    vit.trace(pixels, chosen, lambda t: traces.__setitem__(t.layer, t), streams.append)
    assert len(streams) == 1
    return traces, streams[0]


def choose(tokens, stream, num_patches, cls):
    """[CLS], all else before the patches, then the patch of the highest norm; patches come last."""
    norms = stream[:, -num_patches:].double().square().sum(dim=-1)
    highest = stream.shape[1] - num_patches + norms.argmax(dim=1)
    places = sorted(range(stream.shape[1] - num_patches), key=lambda place: place != cls)
    prefix = tokens[:, places]
    return torch.cat([prefix, tokens[torch.arange(len(tokens)), highest].unsqueeze(1)], dim=1)


# --- keys and values from raw weights ----------------------------------------------------------


def raw_projections(block):
    """Weight and bias of the keys' and the values' projection, wherever a library keeps them."""
    for name in ("attn", "attention", "self_attn", "self_attention"):
        attention = getattr(block, name, None)
        if attention is not None:
            break
    if hasattr(attention, "in_proj_weight"):
        pairs = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
        return attention, list(pairs)[1:]
    if hasattr(attention, "attention"):  # data2vec
        inner = attention.attention
        return inner, [(p.weight, p.bias) for p in (inner.key, inner.value)]
    if getattr(attention, "qkv", None) is None:
        return attention, [(p.weight, p.bias) for p in (attention.k_proj, attention.v_proj)]
    weights, bias = attention.qkv.weight.chunk(3)[1:], attention.qkv.bias
    if bias is not None:
        key_bias, value_bias = bias.chunk(3)[1:]
        masked = hasattr(attention.qkv, "bias_mask")  # the twin of DINOv3
        return attention, list(
            zip(weights, (None if masked else key_bias, value_bias), strict=True)
        )
    return attention, list(zip(weights, (None, getattr(attention, "v_bias", None)), strict=True))


def raw_keys_and_values(block, normed, num_heads):
    attention, projections = raw_projections(block)
    found = []
    for weight, bias in projections:
        rows = torch.einsum("bnd,ed->bne", normed, weight)
        rows = rows if bias is None else rows + bias
        heads = rows.unflatten(
            2, (-1, getattr(attention, "head_dim", 0) or len(weight) // num_heads)
        )
        found.append(heads)
    norm = getattr(attention, "k_norm", None)
    if isinstance(norm, nn.LayerNorm):
        keys = found[0] - found[0].mean(dim=-1, keepdim=True)
        keys = keys / (keys.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt()
        found[0] = keys * norm.weight + norm.bias
    # Fewer heads of keys and values than of queries: each stands for as many in a row.
    repeats = num_heads // found[0].shape[2]
    return [heads.repeat_interleave(repeats, dim=2).flatten(2) for heads in found]


# --- tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_what_is_read_is_what_the_model_computes(name):
    vit = adapt(name)
    for size in sizes_of(name):
        pixels = make_pixels(size)
        witness = Witness(vit, pixels)
        rows, columns = vit.make_layout(*size).grid
        traces, stream = read(vit, pixels)
        depths = torch.stack(witness.depths, dim=1)
        assert depths.shape[1] == vit.info.depth + 1
        norms = depths[:, :, -rows * columns :].square().sum(dim=-1).sqrt()
        torch.testing.assert_close(stream.patch_norms, norms, rtol=1e-12, atol=0)
        if name in POOLED:
            assert stream.rows is None
            assert all(trace.tokens is None for trace in traces.values())
            continue
        cls = FIRST_REGISTERS.get(name, 0)
        assert torch.equal(stream.rows, depths[:, :, cls])
        assert set(traces) == set(range(vit.info.depth))
        for layer, trace in traces.items():
            check_tokens(vit, name, layer, trace.tokens, witness, (rows * columns, cls))


def check_tokens(vit, name, layer, tokens, witness, places):
    num_patches, _ = places
    entering, normed = witness.inputs[layer], witness.normed[layer]
    assert set(tokens.states) == {"hidden", "normed", "keys", "values"}
    expected = choose(entering, entering, *places)
    assert torch.equal(tokens.states["hidden"], expected)
    assert torch.equal(tokens.states["normed"], choose(normed, entering, *places))
    norms = expected.square().sum(dim=-1).sqrt()
    torch.testing.assert_close(tokens.norms, norms, rtol=1e-12, atol=0)
    mean = entering[:, -num_patches:].square().sum(dim=-1).sqrt().mean(dim=1)
    torch.testing.assert_close(tokens.mean_patch_norm, mean, rtol=1e-12, atol=0)
    block = list_blocks(vit.module)[layer]
    keys, values = raw_keys_and_values(block, normed, vit.info.num_heads)
    for state, computed in (("keys", keys), ("values", values)):
        computed = choose(computed, entering, *places)
        turned = state == "keys" and any(word in name for word in ROTARY)
        # The hub's DINOv3 turns all keys in the precision of its tables, which is float32.
        rounded = state == "keys" and name == "hub/dinov3"
        torch.testing.assert_close(
            tokens.states[state][:, : -1 if turned else None],
            computed[:, : -1 if turned else None],
            rtol=1e-6 if rounded else 1e-10,
            atol=1e-12,
        )
        if turned:
            # Turned pairs of coordinates: another vector of the same length.
            a, b = tokens.states[state][:, -1], computed[:, -1]
            torch.testing.assert_close(a.norm(dim=-1), b.norm(dim=-1), rtol=1e-6, atol=0)
            assert not torch.allclose(a, b, rtol=1e-3)


def test_most_models_are_read_at_an_input_that_is_not_square():
    assert sum(len(sizes_of(name)) == 2 for name in MODELS) >= 25


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm/dinov2_reg", ("cls", *(f"register_{i}" for i in range(4)), "highest_patch")),
        ("transformers/deit", ("cls", "distillation", "highest_patch")),
        ("open_clip/plain", ("cls", "highest_patch")),
    ],
)
def test_tokens_have_names(name, expected):
    vit = adapt(name)
    traces, _ = read(vit, make_pixels(vit.preprocessing.size), "last")
    (trace,) = traces.values()
    assert trace.tokens.names == expected == name_tokens(trace.layout)


def test_each_image_has_its_own_highest_patch():
    vit = adapt("timm/dinov2_reg")
    traces, stream = read(vit, make_pixels((32, 32)))
    places = stream.patch_norms.argmax(dim=-1)
    assert any(len(set(places[:, depth].tolist())) > 1 for depth in traces)
    for layer, trace in traces.items():
        assert torch.equal(trace.tokens.norms[:, -1], stream.patch_norms[:, layer].amax(dim=-1))


@pytest.mark.parametrize("name", ["transformers/dinov2_registers", "transformers/clip_tower"])
def test_rows_are_the_hidden_states_that_the_library_hands_out(name):
    vit = adapt(name)
    pixels = make_pixels((32, 32))
    _, stream = read(vit, pixels)
    with torch.no_grad():
        states = vit.module(pixels, output_hidden_states=True).hidden_states
    assert len(states) == stream.rows.shape[1]
    # What the library calls the last hidden state may have gone through the final norm.
    for depth, state in enumerate(states[:-1]):
        assert torch.equal(stream.rows[:, depth], state[:, 0])


@pytest.mark.parametrize("name", MODELS)
def test_under_autocast_states_are_read_as_they_are_and_handed_over_in_float32(name):
    vit = adapt(name)
    size = sizes_of(name)[0]
    with vit.placed("cpu", torch.bfloat16):
        pixels = make_pixels(size, torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            witness = Witness(vit, pixels)
        traces, stream = read(vit, pixels, "last")
    num_patches = stream.patch_norms.shape[2]
    depths = torch.stack(witness.depths, dim=1)
    norms = depths[:, :, -num_patches:].double().square().sum(dim=-1).sqrt().float()
    # A sum of squares in float32.
    torch.testing.assert_close(stream.patch_norms, norms, rtol=1e-6, atol=0)
    if name in POOLED:
        return
    tokens = traces[vit.last_layer].tokens
    assert all(rows.dtype == torch.float32 for rows in tokens.states.values())
    entering = witness.inputs[-1]
    hidden = choose(entering, entering, num_patches, FIRST_REGISTERS.get(name, 0))
    assert torch.equal(tokens.states["hidden"], hidden.float())


def test_a_block_that_adds_to_its_input_in_place_is_read_the_same():
    vit = adapt("timm/dinov2_reg")
    pixels = make_pixels((32, 32))
    changed = wrap_model(copy.deepcopy(vit.module))
    for block in changed.module.blocks:
        block.forward = lambda x, block=block, **_: add_in_place(block, x)
    (traces, stream), (expected, expected_stream) = read(changed, pixels), read(vit, pixels)
    assert torch.equal(stream.rows, expected_stream.rows)
    assert torch.equal(stream.patch_norms, expected_stream.patch_norms)
    for layer, trace in traces.items():
        for state, rows in trace.tokens.states.items():
            assert torch.equal(rows, expected[layer].tokens.states[state]), (layer, state)


def add_in_place(block, x):
    x += block.ls1(block.attn(block.norm1(x)))
    x += block.ls2(block.mlp(block.norm2(x)))
    return x


# --- hooks -------------------------------------------------------------------------------------


def count_hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize("name", MODELS)
def test_hooks_are_gone_afterwards(name):
    vit = adapt(name)
    before = count_hooks(vit.module)
    read(vit, make_pixels(sizes_of(name)[0]))
    assert count_hooks(vit.module) == before


class StopError(Exception):
    pass


def stop(*_):
    raise StopError


@pytest.mark.parametrize("name", ["timm/dinov2_reg", "timm/siglip", "transformers/dinov3"])
@pytest.mark.parametrize("where", ["trace", "stream", "model"])
def test_hooks_are_gone_after_an_error_too(name, where):
    vit = adapt(name)
    pixels = make_pixels(vit.preprocessing.size)
    before = count_hooks(vit.module)
    handle = (
        list_blocks(vit.module)[-1].register_forward_pre_hook(stop) if where == "model" else None
    )
    with pytest.raises(StopError):
        vit.trace(
            pixels,
            vit.select_layers("all"),
            stop if where == "trace" else lambda _: None,
            stop if where == "stream" else lambda _: None,
        )
    if handle is not None:
        handle.remove()
    assert count_hooks(vit.module) == before
    read(vit, pixels)


def test_without_a_listener_nothing_of_the_stream_is_read(monkeypatch):
    monkeypatch.setattr("vitscope.models.stream.StreamRecorder._keep", stop)
    vit = adapt("timm/dinov2_reg")
    vit.trace(make_pixels((32, 32)), [1], lambda _: None)
    with pytest.raises(StopError):
        vit.trace(make_pixels((32, 32)), [1], lambda _: None, lambda _: None)
