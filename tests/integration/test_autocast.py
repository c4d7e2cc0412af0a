"""Half precisions: products in 16 bits, weights and the stream in 32, ledgers in 32 and 64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support_table import TINY_MODELS, tiny_pixels
from vitscope import decompose, map_tokens, wrap_model
from vitscope.decomposition import choose_dtype, decompose_layers
from vitscope.errors import ImbalanceError
from vitscope.ledger import balance_tolerance
from vitscope.models.running import has_native_bfloat16
from vitscope.models.stream import take_input, take_stream

CPU = torch.device("cpu")
HALVES = (torch.bfloat16, torch.float16)
HALF_STREAMS = {"open_clip/plain", "open_clip/quick_gelu", "open_clip/wide"}
"""open_clip adds positions in the precision of the patches, and its norms keep what is given."""

ERRORS = ("balance_error", "residual_error", "block_error", "embedding_error")


def adapt(name):
    return wrap_model(TINY_MODELS[name]())


def run(vit, pixels, dtype, **options):
    return decompose_layers(
        vit,
        pixels,
        vit.select_layers("all"),
        renormalize=False,
        tolerance=balance_tolerance(dtype),
        **options,
    )


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_family_balances_and_keeps_its_stream_in_float32(name, dtype):
    vit = adapt(name)
    block = vit.encoder[-1] if vit.encoder else vit.blocks[vit.last_layer].block
    seen = []
    handle = block.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(take_stream(take_input(args, kwargs)).dtype),
        with_kwargs=True,
    )
    with vit.placed("cpu", dtype):
        # Each error must be within the tolerance, or this raises.
        rows = run(vit, tiny_pixels(vit), dtype)
    handle.remove()
    assert seen == [dtype if name in HALF_STREAMS else torch.float32]
    scalars = rows[vit.last_layer].scalars
    # Really in half precision: in float32 the errors are below 1e-6.
    assert all(scalars[error,].max() > 1e-5 for error in ERRORS)
    assert all(f.dtype == torch.float32 for f in rows[vit.last_layer].features.values())


@pytest.mark.parametrize("name", ["timm/dinov2_reg", "transformers/dinov3", "open_clip/plain"])
def test_the_row_alone_is_that_of_a_verified_batch_under_autocast_too(name):
    vit = adapt(name)
    pixels = tiny_pixels(vit)
    with vit.placed("cpu", torch.bfloat16):
        found, expected = (run(vit, pixels, torch.bfloat16, verified=p) for p in (False, True))
    features = expected[vit.last_layer].features
    assert all(torch.equal(found[vit.last_layer].features[n], rows) for n, rows in features.items())


def test_a_ledger_is_not_made_under_autocast():
    vit = adapt("timm/dinov2_reg")
    inside = []
    with vit.placed("cpu", torch.bfloat16):
        handle = vit.module.norm.register_forward_hook(
            lambda *_: inside.append(torch.is_autocast_enabled("cpu"))
        )
        vit.trace(tiny_pixels(vit), [0], lambda _: inside.append(torch.is_autocast_enabled("cpu")))
        handle.remove()
    assert inside == [False, True]


def test_autocast_of_the_caller_changes_nothing():
    vit = adapt("timm/dinov2_reg")
    pixels = tiny_pixels(vit)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            with vit.placed("cpu", torch.float32):
                results.append(run(vit, pixels, torch.float32))
            assert torch.is_autocast_enabled("cpu") == enabled
    plain, under = (rows[vit.last_layer].features for rows in results)
    assert all(torch.equal(under[name], rows) for name, rows in plain.items())


class CountCasts(TorchDispatchMode):
    """Counts what of some tensors is cast to bfloat16; parts of them do not count."""

    def __init__(self, tensors):
        super().__init__()
        self.seen = {(t.data_ptr(), t.shape) for t in tensors}
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and kwargs["dtype"] == torch.bfloat16:
            self.count += (args[0].data_ptr(), args[0].shape) in self.seen
        return function(*args, **kwargs or {})


def test_whole_weights_are_cast_once_however_many_batches_come():
    vit = adapt("timm/dinov2_reg")
    pixels = tiny_pixels(vit)
    with vit.placed("cpu", torch.bfloat16):
        with CountCasts(vit.module.parameters()) as first:
            run(vit, pixels, torch.bfloat16)
        with CountCasts(vit.module.parameters()) as second:
            run(vit, pixels, torch.bfloat16)
    assert first.count > 10
    assert second.count == 0


def audited_features(vit, dtype):
    pixels = tiny_pixels(vit)
    with vit.placed("cpu", dtype):
        return run(vit, pixels, dtype)[vit.last_layer].features["embedding/full"]


def test_weights_that_a_callers_autocast_keeps_from_before_a_step_are_not_audited():
    vit = adapt("timm/dinov2_reg")
    with torch.autocast("cpu", torch.bfloat16):
        vit.module(tiny_pixels(vit))
        with torch.no_grad():
            for parameter in vit.module.parameters():
                parameter.mul_(1.5)
        found = audited_features(vit, torch.bfloat16)
    assert torch.equal(found, audited_features(vit, torch.bfloat16))


def test_weights_that_an_audit_casts_are_not_the_callers():
    vit = adapt("timm/dinov2_reg")
    pixels = tiny_pixels(vit)
    with torch.autocast("cpu", torch.float16):
        expected = vit.module(pixels)
    with torch.autocast("cpu", torch.float16):
        audited_features(vit, torch.bfloat16)
        assert torch.equal(vit.module(pixels), expected)


def test_outside_of_a_run_no_cast_weights_are_kept():
    vit = adapt("timm/dinov2_reg")
    pixels = tiny_pixels(vit)
    with torch.autocast("cpu", torch.bfloat16):
        trace = vit.trace(pixels, [], lambda _: None)
        with torch.no_grad():
            for parameter in vit.module.parameters():
                parameter.mul_(1.5)
        again = vit.trace(pixels, [], lambda _: None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vit.trace(pixels, [], lambda _: None), again)
    assert not torch.equal(trace, again)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("layer", [0, None])
@pytest.mark.parametrize("name", ["timm/dinov2_reg", "open_clip/plain", "timm/siglip"])
def test_the_functions_for_tensors_hold_a_half_precision_to_its_own_tolerance(name, layer, dtype):
    vit = adapt(name)
    pixels, layer = tiny_pixels(vit), vit.last_layer if layer is None else min(vit.blocks)
    with vit.placed("cpu", dtype):
        ledger, maps = decompose(vit, pixels, layer), map_tokens(vit, pixels, layer=layer)
    # An error that is not of float32, of which at most 1e-4 is accepted.
    assert 1e-4 < ledger.balance_error.max() <= balance_tolerance(dtype)
    assert maps["share"].isfinite().all()


def test_the_precision_of_a_model_is_the_one_it_computes_in():
    vit = adapt("timm/dinov2_reg")
    assert vit.dtype == torch.float32
    for dtype in (*HALVES, torch.float32, torch.float64):
        with vit.placed("cpu", dtype):
            assert vit.dtype == vit.named("copy", "here").dtype == dtype
        assert vit.dtype == torch.float32
    assert vit.to("cpu", torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_found(fails):
    vit = adapt("timm/dinov2_reg")
    vit.module.to(torch.float64)
    pixels = tiny_pixels(vit)
    weights = {name: p.data for name, p in vit.module.named_parameters()}
    expected = vit.trace(pixels, [vit.last_layer], lambda _: None)
    try:
        with vit.placed("cpu", torch.float16):
            assert vit.parameter.dtype == torch.float32
            if fails:
                raise ImbalanceError("as told")
    except ImbalanceError:
        assert fails
    assert not torch.is_autocast_enabled("cpu")
    assert all(
        p.data is weights[name] or p.data.equal(weights[name])
        for name, p in vit.module.named_parameters()
    )
    assert torch.equal(vit.trace(pixels, [vit.last_layer], lambda _: None), expected)


def test_copies_of_an_adapter_run_as_it_does():
    vit = adapt("timm/dinov2_reg")
    pixels = tiny_pixels(vit)
    with vit.placed("cpu", torch.bfloat16):
        rows = run(vit.named("copy", "here"), pixels, torch.bfloat16)
    assert rows[vit.last_layer].scalars["balance_error",].max() > 1e-5


# --- choosing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx512_bf16": False, "avx512_f": True}, False),
        ({}, False),
    ],
)
def test_a_processor_is_asked_for_what_it_has(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_native_bfloat16(CPU) == expected
    vit = adapt("timm/dinov2_reg")
    chosen = choose_dtype(vit, tiny_pixels(vit), CPU)
    assert chosen == ("bfloat16" if expected else "float32")


def test_a_device_that_cannot_be_told_of_is_not_taken_for_fast():
    assert not has_native_bfloat16(torch.device("mps"))


@pytest.mark.parametrize("layers", [None, (0, 1)])
def test_a_ledger_that_does_not_balance_in_bfloat16_asks_for_float32(monkeypatch, layers):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    vit = adapt("timm/dinov2_reg")
    layer = vit.last_layer if layers is None else 0
    handle = vit.blocks[layer].branch.register_forward_hook(
        lambda _, __, out: out * 1.1 if torch.is_autocast_enabled("cpu") else out
    )
    chosen = choose_dtype(vit, tiny_pixels(vit), CPU, layers)
    handle.remove()
    assert chosen == "float32"
    assert choose_dtype(vit, tiny_pixels(vit), CPU, layers) == "bfloat16"


def test_numbers_beyond_the_range_ask_for_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    vit = adapt("timm/dinov2_reg")
    handle = vit.module.blocks[0].register_forward_hook(
        lambda _, __, out: out / (0 if torch.is_autocast_enabled("cpu") else 1)
    )
    chosen = choose_dtype(vit, tiny_pixels(vit), CPU)
    handle.remove()
    assert chosen == "float32"
