"""The last block run for the [CLS] row alone, against the same batch verified in full.

A verified batch has its row in the same way, so that its ledger is the same to the last bit.
Against the model's own queries, keys and values the products are of another shape: in float64
they may differ by rounding, a few 1e-15, of which 1e-12 of a feature's length is a generous
multiple; in float32 a few 1e-7, of which 1e-5 is one. The same holds of the row of the last
block's output, which is the ledger's in both cases.
"""

import copy
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import nn

import hub_twin
import hub_twin_dinov3
from support_table import TINY_MODELS
from tracing import make_pixels
from vitscope import wrap_model
from vitscope.adapters.torch_hub import make_torch_hub_adapter
from vitscope.decomposition import decompose_layers
from vitscope.errors import ImbalanceError, NonFiniteError
from vitscope.ledger import balance_tolerance
from vitscope.models.stream import take_stream
from vitscope.testing.randomize import randomize

HUB = {
    "hub/dinov2": lambda: hub_twin.DinoVisionTransformer(num_register_tokens=4, block_chunks=3),
    # As published: with a bias whose keys are masked, and (vit7b16) without a bias to mask.
    "hub/dinov3": partial(hub_twin_dinov3.DinoVisionTransformer, patch_size=7),
    "hub/dinov3_7b": partial(hub_twin_dinov3.DinoVisionTransformer, patch_size=7, qkv_bias=False),
    "hub/dinov3_unmasked": partial(
        hub_twin_dinov3.DinoVisionTransformer, patch_size=7, mask_k_bias=False
    ),
    "hub/dinov3_unbiased": partial(
        hub_twin_dinov3.DinoVisionTransformer, patch_size=7, qkv_bias=False, mask_k_bias=False
    ),
}
POOLED = {
    *("transformers/siglip", "transformers/aimv2", "timm/siglip", "timm/vit_map", "timm/eva_map"),
    "open_clip/timm_pooling",
}
MODELS = [*TINY_MODELS, *HUB]
WITH_CLS = [name for name in MODELS if name not in POOLED]
ERRORS = ("balance_error", "residual_error", "block_error", "embedding_error")
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


@cache
def build(name, dtype=torch.float64):
    """The adapter and two inputs; no test changes it for good."""
    vit = (
        make_torch_hub_adapter(randomize(HUB[name]()))
        if name in HUB
        else wrap_model(TINY_MODELS[name]())
    )
    size = (28, 28) if name in HUB else vit.preprocessing.size
    # 224 px of patches of 8 px, where the input is free, are needlessly many.
    size = (32, 32) if size == (224, 224) else size
    return vit.to("cpu", dtype), make_pixels(size, dtype)


def run(vit, pixels, verified, layers="last", **options):
    """What a batch leaves behind, its streams and its maps."""
    streams, maps = [], []
    rows = decompose_layers(
        vit,
        pixels,
        vit.select_layers(layers),
        **{"renormalize": False, "tolerance": balance_tolerance(pixels.dtype), **options},
        verified=verified,
        on_stream=streams.append,
        on_maps=maps.append,
    )
    return rows, streams[0], maps[0]


def assert_close(found, expected, tolerance):
    """Each image's vectors, relative to the longest of them."""
    assert found.dtype == expected.dtype
    found, expected = found.double().flatten(1), expected.double().flatten(1)
    assert (found - expected).norm(dim=1).max() <= tolerance * expected.norm(dim=1).max()


def assert_same_layer(found, expected, tolerance):
    assert found.features.keys() == expected.features.keys()
    for name, rows in expected.features.items():
        assert_close(found.features[name], rows, tolerance)
    assert found.scalars.keys() == expected.scalars.keys()
    for path, values in expected.scalars.items():
        if path[0] not in ERRORS:
            # Cosines and shares are of the order of one.
            torch.testing.assert_close(found.scalars[path], values, rtol=tolerance, atol=tolerance)
    assert torch.equal(found.bias, expected.bias)
    for name, states in expected.tokens.states.items():
        assert_close(found.tokens.states[name], states, tolerance)
    assert torch.equal(found.tokens.norms, expected.tokens.norms)


def assert_same_streams(alone, of_all):
    assert torch.equal(alone.rows, of_all.rows)
    assert torch.equal(alone.patch_norms[:, :-1], of_all.patch_norms[:, :-1])
    assert alone.patch_norms[:, -1].isnan().all()
    assert of_all.patch_norms.isfinite().all()


@contextmanager
def keeping_output(module):
    outputs = []
    handle = module.register_forward_hook(lambda _, __, out: outputs.append(out))
    try:
        yield outputs
    finally:
        handle.remove()


def read_off(vit):
    """The same model, whose queries, keys and values are read off it in the last block too."""
    last = vit.last_layer
    parts = {last: replace(vit.blocks[last], project_heads=None)}
    return replace(vit, blocks={**vit.blocks, **parts})


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", WITH_CLS)
def test_the_row_alone_gives_the_numbers_of_the_models_own_tensors(name, dtype):
    vit, pixels = build(name, dtype)
    tolerance = TOLERANCES[dtype]
    expected, stream_of_all, maps_of_all = run(read_off(vit), pixels, verified=False)
    found, stream, maps = run(vit, pixels, verified=False)
    assert expected[vit.last_layer].scalars["balance_error",].isfinite().all()
    assert_same_layer(found[vit.last_layer], expected[vit.last_layer], tolerance)
    for field in ("attention", "contribution_norm", "share", "head_share"):
        assert_close(getattr(maps, field), getattr(maps_of_all, field), tolerance)
    assert torch.equal(stream.rows[:, :-1], stream_of_all.rows[:, :-1])
    assert_close(stream.rows[:, -1], stream_of_all.rows[:, -1], tolerance)
    assert torch.equal(stream.patch_norms[:, :-1], stream_of_all.patch_norms[:, :-1])
    assert stream.patch_norms[:, -1].isnan().all()


@pytest.mark.parametrize("name", WITH_CLS)
def test_no_ledger_depends_on_whether_its_batch_is_verified(name):
    vit, pixels = build(name, torch.float32)
    (found, stream, maps), (expected, stream_of_all, maps_of_all) = (
        run(vit, pixels, p) for p in (False, True)
    )
    assert_same_layer(found[vit.last_layer], expected[vit.last_layer], 0)
    assert torch.equal(maps.share, maps_of_all.share)
    assert_same_streams(stream, stream_of_all)
    own = vit.blocks[vit.last_layer].block
    with torch.inference_mode(), keeping_output(own) as outputs:
        vit.run(pixels)
    # And it is the row that the model has there.
    own_row = take_stream(outputs[0])[:, vit.make_layout(*pixels.shape[-2:]).query]
    assert_close(stream.rows[:, -1], own_row, TOLERANCES[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", WITH_CLS)
def test_no_stream_depends_on_whether_its_batch_is_verified_under_autocast(name, dtype):
    vit, pixels = build(name, torch.float32)
    with vit.placed("cpu", dtype):
        streams = [
            run(vit, pixels, verified, tolerance=balance_tolerance(dtype))[1]
            for verified in (False, True)
        ]
    assert_same_streams(*streams)


@pytest.mark.parametrize("options", [{"renormalize": True}, {"cls_term": "registers"}])
@pytest.mark.parametrize("name", ["timm/dinov2_reg", "transformers/dinov3", "hub/dinov2"])
def test_settings_change_both_ways_alike(name, options):
    vit, pixels = build(name)
    found = run(vit, pixels, verified=False, **options)[0]
    expected = run(read_off(vit), pixels, verified=True, **options)[0]
    assert_same_layer(found[vit.last_layer], expected[vit.last_layer], 1e-12)
    plain = run(vit, pixels, verified=False)[0][vit.last_layer]
    assert plain.features.keys() != found[vit.last_layer].features.keys()


@pytest.mark.parametrize("name", WITH_CLS)
def test_all_layers_but_the_last_are_verified(name):
    vit, pixels = build(name)
    rows, _, _ = run(vit, pixels, verified=False, layers="all")
    for layer, row in rows.items():
        for error in ERRORS[: 4 if layer == vit.last_layer else 3]:
            is_nan = row.scalars[error,].isnan()
            assert is_nan.all() if layer == vit.last_layer else not is_nan.any()


@pytest.mark.parametrize("name", sorted(POOLED))
def test_a_pooling_head_runs_in_full_and_is_verified(name):
    vit, pixels = build(name)
    found, stream, _ = run(vit, pixels, verified=False)
    assert max(float(found[vit.last_layer].scalars[error,].max()) for error in ERRORS) < 1e-12
    assert stream.patch_norms.isfinite().all()


# --- what is not run ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_CLS)
def test_nothing_past_the_last_attention_sees_the_tokens(name):
    vit, pixels = build(name)
    parts = vit.blocks[vit.last_layer]
    ran, rows_seen = [], []
    handles = [
        module.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        for module in (parts.attention, parts.branch, parts.block, vit.module)
    ]
    handles.append(
        parts.mlp_norm.register_forward_pre_hook(
            lambda _, args: rows_seen.append(args[0].numel() // args[0].shape[-1])
        )
    )
    try:
        rows, _, _ = run(vit, pixels, verified=False)
    finally:
        for handle in handles:
            handle.remove()
    assert not ran
    # The full row and one for each group, for two images.
    groups = [n for n in rows[vit.last_layer].features if n.startswith("block/")]
    assert rows_seen == [2 * len(groups)]


@pytest.mark.parametrize(
    "name", ["timm/dinov2_reg", "transformers/clip", "hub/dinov3", "hub/dinov3_7b"]
)
def test_the_query_is_projected_for_the_row_alone(name):
    """A fused projection is not called at all; a separate one is called with a single token."""
    vit, pixels = build(name)
    parts = vit.blocks[vit.last_layer]
    query = getattr(parts.attention, "q_proj", None) or parts.attention.qkv
    lengths = []
    handle = query.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    try:
        run(vit, pixels, verified=False)
    finally:
        handle.remove()
    assert lengths == ([1] if hasattr(parts.attention, "q_proj") else [])


# --- around the model --------------------------------------------------------------------------


def count_hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


class StopError(Exception):
    pass


def stop(*_):
    raise StopError


@pytest.mark.parametrize("name", WITH_CLS)
def test_the_model_is_as_before_afterwards(name):
    vit, pixels = build(name)
    before, expected = count_hooks(vit.module), vit.trace(pixels, [vit.last_layer], lambda _: None)
    assert vit.trace(pixels, [vit.last_layer], lambda _: None, verified=False) is None
    assert count_hooks(vit.module) == before
    assert torch.equal(vit.trace(pixels, [vit.last_layer], lambda _: None), expected)
    with torch.inference_mode():
        assert torch.equal(vit.run(pixels), expected)


@pytest.mark.parametrize("where", ["trace", "stream"])
@pytest.mark.parametrize("name", ["timm/dinov2_reg", "transformers/dinov3", "open_clip/plain"])
def test_hooks_are_gone_after_an_error_too(name, where):
    vit, pixels = build(name)
    before = count_hooks(vit.module)
    listeners = (stop, lambda _: None) if where == "trace" else (lambda _: None, stop)
    with pytest.raises(StopError):
        vit.trace(pixels, [vit.last_layer], *listeners, verified=False)
    assert count_hooks(vit.module) == before


def test_outputs_that_a_library_records_are_those_of_the_next_forward_alone():
    """transformers collects outputs by a decorator, which an abandoned forward must not confuse."""
    vit, pixels = build("transformers/dinov2")
    module = vit.module
    with torch.inference_mode():
        expected = module(pixels, output_hidden_states=True).hidden_states
        vit.trace(pixels, [vit.last_layer], lambda _: None, verified=False)
        found = module(pixels, output_hidden_states=True).hidden_states
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


def test_attention_that_is_not_entered_by_a_call_runs_in_full():
    vit, pixels = build("timm/dinov2_reg")
    changed = wrap_model(copy.deepcopy(vit.module))
    block = changed.module.blocks[-1]
    block.forward = lambda x, **_: finish(block, x + block.ls1(block.attn.forward(block.norm1(x))))
    rows, stream, _ = run(changed, pixels, verified=False)
    assert rows[changed.last_layer].scalars["balance_error",].max() < 1e-12
    assert stream.patch_norms.isfinite().all()


def finish(block, x):
    return x + block.ls2(block.mlp(block.norm2(x)))


class LowRank(nn.Module):
    """A projection with something beside it, as fine-tuned models have."""

    def __init__(self, projection):
        super().__init__()
        self.projection = projection
        self.down = nn.Linear(projection.in_features, 2, bias=False)
        self.up = nn.Linear(2, projection.out_features, bias=False)

    def forward(self, tokens):
        return self.projection(tokens) + self.up(self.down(tokens))


@pytest.mark.parametrize("name", ["timm/dinov2_reg", "hub/dinov2"])
def test_a_projection_of_another_kind_is_called_and_not_taken_apart(name):
    module = copy.deepcopy(build(name)[0].module)
    for part in list(module.modules()):
        if hasattr(part, "qkv"):
            part.qkv = LowRank(part.qkv)
    adapt = make_torch_hub_adapter if name in HUB else wrap_model
    vit = adapt(randomize(module)).to("cpu", torch.float64)
    pixels = build(name)[1]
    found, expected = (run(each, pixels, verified=False)[0] for each in (vit, read_off(vit)))
    assert_same_layer(found[vit.last_layer], expected[vit.last_layer], 1e-12)


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["query", "keys", "values"])
@pytest.mark.parametrize("name", WITH_CLS)
def test_a_row_had_wrongly_is_found_by_the_proof_of_one_batch(name, part):
    """The proof is of what the batches without one report, not of what is read off the model."""
    vit, pixels = build(name)
    right = vit.blocks[vit.last_layer]

    def project(call, row):
        heads = right.project_heads(call, row)
        return heads._replace(**{part: getattr(heads, part) * 1.01})

    wrong = replace(right, project_heads=project)
    with pytest.raises(ImbalanceError, match=f"layer {vit.last_layer}"):
        run(replace(vit, blocks={**vit.blocks, vit.last_layer: wrong}), pixels, verified=True)


def test_a_wrong_account_of_an_earlier_layer_is_found_without_the_last_proof():
    vit, pixels = build("timm/dinov2_reg")
    handle = vit.blocks[0].branch.register_forward_hook(lambda _, __, out: out * 1.01)
    try:
        with pytest.raises(ImbalanceError, match="layer 0"):
            run(vit, pixels, verified=False, layers="all")
    finally:
        handle.remove()


def test_numbers_that_are_not_finite_are_refused_by_image():
    vit, pixels = build("timm/dinov2_reg")
    broken = pixels.clone()
    broken[1] = float("nan")
    with pytest.raises(NonFiniteError, match="image 1") as error:
        run(vit, broken, verified=False)
    assert error.value.image == 1
