"""One model in several threads, as web servers use it: the numbers are those of one thread."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle

import pytest
import torch

from audits import assert_same_numbers
from images import write_images
from support_table import TINY_MODELS, tiny_pixels
from vitscope import AuditConfig, audit, decompose, map_tokens, restrict, wrap_model
from vitscope.errors import UsageError
from vitscope.ledger import compute_scalars

LONG_S = 600
NUM_TURNS = 5
"""How often the same inputs come again, more of which would only need more expected numbers."""


@pytest.fixture(autouse=True)
def switching():
    """Threads that take turns far more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("threads") / "images", 12)


def make(name="timm/dinov2_reg"):
    return wrap_model(TINY_MODELS[name]())


def make_inputs(vit, count=12):
    shape = tiny_pixels(vit).shape
    return [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(count)]


def look(vit, pixels):
    ledger, maps = (
        decompose(vit, pixels),
        map_tokens(vit, pixels, layer=0 if 0 in vit.blocks else None),
    )
    rows = restrict(vit, ledger)["embedding"]["patches"]
    return [maps["share"], maps["attention"], rows, *compute_scalars(ledger).values()]


def look_many(vits, inputs, num_threads):
    with ThreadPoolExecutor(num_threads) as pool:
        futures = [
            pool.submit(look, vit, pixels) for vit, pixels in zip(cycle(vits), inputs, strict=False)
        ]
        return [future.result(LONG_S) for future in futures]


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert all(
            torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(one, other, strict=True)
        )


@pytest.mark.parametrize("name", ["timm/dinov2_reg", "transformers/dinov3", "timm/siglip"])
def test_one_adapter_in_several_threads(name):
    vit = make(name)
    inputs = make_inputs(vit)
    expected = [look(vit, pixels) for pixels in inputs]
    for num_threads in (2, 4):
        assert_equal(look_many([vit], inputs * NUM_TURNS, num_threads), expected * NUM_TURNS)
    assert not any(module._forward_hooks for module in vit.module.modules())


def test_two_adapters_of_one_module():
    vit = make()
    other = wrap_model(vit.module, model_id="the same")
    inputs = make_inputs(vit)
    expected = [look(vit, pixels) for pixels in inputs]
    assert_equal(look_many([vit, other], inputs * NUM_TURNS, 2), expected * NUM_TURNS)


def test_two_models_that_share_a_block():
    vit, build = make(), TINY_MODELS["timm/dinov2_reg"]
    module = build()
    module.blocks[1] = vit.module.blocks[1]
    with torch.no_grad():
        module.blocks[0].attn.qkv.weight.mul_(1.5)
    other = wrap_model(module)
    inputs = make_inputs(vit)
    expected = [look(v, pixels) for v, pixels in zip(cycle([vit, other]), inputs, strict=False)]
    assert_equal(look_many([vit, other], inputs * NUM_TURNS, 2), expected * NUM_TURNS)


def test_two_audits_of_one_model_in_other_precisions(images):
    vit = make()
    configs = [
        AuditConfig(gallery=0, device="cpu", batch_size=2, dtype=dtype)
        for dtype in ("float32", "float64", "bfloat16")
    ]
    expected = [audit(vit, images, config).summary for config in configs]
    weights = {name: p.detach().clone() for name, p in vit.module.named_parameters()}
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(audit, vit, images, config) for config in configs]
        found = [future.result(LONG_S) for future in futures]
    for result, summary in zip(found, expected, strict=True):
        assert_same_numbers(result.summary, summary, 0)
    assert all(torch.equal(p, weights[name]) for name, p in vit.module.named_parameters())


def test_a_batch_decomposed_while_an_audit_in_another_precision_goes_on(images):
    vit = make()
    inputs = make_inputs(vit, 20)
    expected = [look(vit, pixels) for pixels in inputs]
    config = AuditConfig(gallery=0, device="cpu", batch_size=1, dtype="float64")
    summary = audit(vit, images, config).summary
    begun = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(audit, vit, images, config, on_progress=lambda *_: begun.set())
        begun.wait(LONG_S)
        found = pool.submit(lambda: [look(vit, pixels) for pixels in inputs]).result(LONG_S)
        assert_same_numbers(running.result(LONG_S).summary, summary, 0)
    assert_equal(found, expected)


def test_a_callback_may_use_the_model_that_is_audited(images):
    vit = make()
    pixels = tiny_pixels(vit)
    config = AuditConfig(gallery=0, device="cpu", batch_size=4, dtype="float32")
    summary, expected = audit(vit, images, config).summary, look(vit, pixels)
    found = []
    result = audit(vit, images, config, on_progress=lambda *_: found.append(look(vit, pixels)))
    assert_same_numbers(result.summary, summary, 0)
    assert_equal(found, [expected] * len(found))
    assert len(found) >= 3


def test_a_trace_within_a_trace_is_its_own():
    vit = make()
    one, other = make_inputs(vit, 2)
    expected = [look(vit, pixels) for pixels in (one, other)]
    inner, outer = [], []

    def take(trace):
        inner.append(look(vit, other))
        outer.append(trace.layer)

    vit.trace(one, [0, 1], take)
    assert outer == [0, 1]
    assert_equal(inner, [expected[1]] * 2)
    assert_equal([look(vit, one)], [expected[0]])


def test_a_plain_forward_of_another_thread_is_neither_seen_nor_cut_short():
    vit = make()
    one, other = make_inputs(vit, 2)
    with torch.no_grad():
        expected, wanted = vit.module(other), decompose(vit, one)
    found = []

    def run():
        with torch.no_grad():
            found.append(vit.module(other))

    def take(trace):
        traces.append(trace)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(LONG_S)

    for verified in (True, False):
        traces = []
        vit.trace(one, [0, 1], take, verified=verified)
        assert [trace.layer for trace in traces] == [0, 1]
    assert len(found) == 4
    assert all(torch.equal(each, expected) for each in found)
    assert torch.equal(decompose(vit, one).contributions, wanted.contributions)


def test_different_models_run_at_the_same_time():
    first, second = make(), make()
    reached = threading.Barrier(2, timeout=LONG_S)

    def run(vit):
        vit.trace(tiny_pixels(vit), [0], lambda _: reached.wait())

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(run, vit) for vit in (first, second)]:
            future.result(LONG_S)


def test_two_threads_that_would_wait_for_ever_are_told_so():
    first, second = make(), make()
    reached = threading.Barrier(2, timeout=LONG_S)

    def run(own, other):
        with own.undisturbed():
            reached.wait()
            return look(other, tiny_pixels(other))

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run, *pair) for pair in ((first, second), (second, first))]
        errors = [future.exception(LONG_S) for future in futures]
    (error,) = [each for each in errors if each is not None]
    assert isinstance(error, UsageError)
    assert "two threads wait for each other's models" in str(error)


def test_what_failed_in_a_thread_is_free_for_the_next():
    vit = make()

    def fail(*_):
        raise RuntimeError("as told")

    failing = replace(vit, run=fail)  # over the same module
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="as told"):
        pool.submit(look, failing, tiny_pixels(vit)).result(LONG_S)
    assert look(vit, tiny_pixels(vit))
