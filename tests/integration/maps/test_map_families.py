"""Every family: what is traced adds up, what is caught is all, what is dropped is gone."""

import weakref
from collections import Counter

import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from map_inputs import MODELS, draw_pixels, make_input, wrap
from vitscope.maps import functions
from vitscope.maps.checks import find_unknown
from vitscope.maps.functions import CaughtFunctions
from vitscope.maps.passes import run_blocks
from vitscope.maps.registry import METHODS
from vitscope.maps.rules import SECANT
from vitscope.maps.targets import explain_cosine
from vitscope.maps.token_maps import map_tokens
from vitscope.maps.traced import trace_output
from vitscope.maps.watch import _Watch

HUB = "hub/dinov3"  # rotates queries and keys in float32, whatever the model's precision
STEPS = "transformers/aimv2"  # computes norms step by step, in float32
ROUNDED = (HUB, STEPS)
NORMS_INSIDE = {"timm/vit_qk_norm": 2, "timm/rope_grouped": 2, "timm/eva02": 1}
EXACT = [name for name in MODELS if name not in ROUNDED]


def check_sums(trace, given, tolerance):
    run = run_blocks(given.vit, given.references.pixels)
    target = given.target
    others = torch.stack([target.measure(f.expand_as(given.own.feature)) for f in run.feature])
    wanted = target.measure(given.vit.run(given.pixels).detach()) - others.mean(dim=0)
    torch.testing.assert_close(trace.total, wanted, rtol=tolerance, atol=tolerance)
    sums = trace.parts.sum(dim=-1)
    torch.testing.assert_close(
        sums, trace.total.unsqueeze(1).expand_as(sums), rtol=tolerance, atol=tolerance
    )
    assert sums.shape[1] == given.vit.info.depth + 1
    assert trace.gap.max() <= tolerance


@pytest.mark.parametrize("name", EXACT)
def test_parts_sum_to_the_total_at_every_depth(name):
    vit = wrap(name)
    trace = trace_output(given := make_input(vit))
    check_sums(trace, given, 1e-8)
    # Nothing of the class tokens and registers at depth 0 depends on the image.
    patches = given.layout.find_patches(given.num_tokens)
    of_patches = trace.parts[:, 0, patches.start : patches.stop]
    torch.testing.assert_close(of_patches.sum(dim=1), trace.total, rtol=1e-8, atol=1e-8)
    if given.layout.query is not None:
        torch.testing.assert_close(trace.parts[:, -1, given.layout.query], trace.total)


@pytest.mark.parametrize("name", MODELS)
def test_parts_sum_to_the_total_in_float32_with_either_kernel(name):
    traces = []
    for eager in (False, True):
        vit = wrap(name, torch.float32, eager=eager)
        trace = trace_output(given := make_input(vit, choice=explain_cosine))
        check_sums(trace, given, 1e-3)
        traces.append(trace)
    for field in ("parts", "through_values", "through_routing"):
        a, b = (getattr(trace, field) for trace in traces)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ROUNDED)
def test_a_model_that_rounds_to_float32_is_traced_as_if_it_did_not(name):
    assert trace_output(make_input(wrap(name))).gap.max() <= 1e-8


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("eager", [False, True])
def test_every_operation_is_caught_and_computes_what_the_model_does(name, eager):
    vit = wrap(name, torch.float32, eager=eager)
    pixels = draw_pixels(vit, 2)
    catching = CaughtFunctions(SECANT)
    run = run_blocks(vit, pixels, functions=catching)
    with torch.no_grad():
        torch.testing.assert_close(run.feature.detach(), vit.run(pixels), rtol=1e-4, atol=1e-4)
    assert find_unknown(run.feature) == []
    assert vit.embed(torch.zeros(1, vit.info.embed_dim)).shape[-1] == run.feature.shape[-1]

    depth, pooled = vit.info.depth, vit.last_layer == vit.info.depth
    found = Counter(call.kind for call in catching.calls)
    assert found["attention"] + found["read"] == depth + pooled
    assert found["softmax"] == found["read"]
    of_blocks = (2 + NORMS_INSIDE.get(name, 0)) * depth
    # A square and an inverse root for each norm; AIMv2's pooling head has neither norm nor MLP.
    steps = 2 if name == STEPS else 0
    of_head = pooled and not steps
    assert found["norm"] == of_blocks + 1 + of_head + (name == HUB)
    activations = found["activation"] - steps * found["norm"]
    assert activations == depth + of_head + (name == "transformers/vit_pooler")
    for block in range(depth):
        kinds = Counter(call.kind for call in catching.calls if call.block == block)
        assert kinds["attention"] + kinds["read"] == 1
        assert kinds["activation"] == 1 + steps * kinds["norm"]


def test_weights_of_one_attention_are_in_memory_at_a_time(monkeypatch):
    make, told = functions.AttentionBackward, []

    def watch(**parts):
        assert all(weights() is None for weights in told)
        item = make(**parts)
        told.append(weakref.ref(item.weights))
        return item

    monkeypatch.setattr(functions, "AttentionBackward", watch)
    trace_output(make_input(wrap("transformers/dinov2"), references=2))
    assert len(told) == 3 * 2


class Square(TorchFunctionMode):
    """Counts the tensors of heads × tokens × tokens that are alive at a time."""

    def __init__(self, num_tokens):
        super().__init__()
        self.shape, self.made, self.most = (num_tokens, num_tokens), [], 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[2:] == self.shape:
            self.made.append(weakref.ref(output))
            self.most = max(self.most, self.count())
        return output

    def count(self):
        return sum(each() is not None for each in self.made)


@pytest.mark.parametrize("eager", [False, True])
def test_a_rollout_holds_the_weights_of_one_attention(eager):
    given = make_input(wrap("transformers/dinov2", eager=eager))
    with Square(given.vit.make_layout(32, 32).num_tokens) as square:
        assert len(given.own.attentions) == 3
        assert square.count() == 0
        total = METHODS["rollout"].compute(given).values.sum(dim=1)
    assert len(square.made) >= 3 * 3
    assert square.most <= 3  # logits, their logarithms, weights
    torch.testing.assert_close(total, torch.ones_like(total))  # as every row of weights has


@pytest.mark.parametrize("name", ["transformers/dinov2", "torchvision/vit"])
def test_attentions_are_kept_only_for_maps_that_read_them(monkeypatch, name):
    vit, kept = wrap(name), []
    keep = _Watch._keep
    monkeypatch.setattr(_Watch, "_keep", lambda *given: kept.append(given) or keep(*given))
    maps = [map_tokens(vit, draw_pixels(vit, 1), ["attention"], target="cosine")]
    assert kept == []
    maps.append(map_tokens(vit, draw_pixels(vit, 1), ["attention", "rollout"], target="cosine"))
    assert len(kept) == vit.info.depth
    torch.testing.assert_close(maps[0]["attention"], maps[1]["attention"], rtol=0, atol=0)


class Unread(TorchFunctionMode):
    """Hides tokens from every attention, which is to the others as if they were not there."""

    def __init__(self, hidden, num_tokens):
        super().__init__()
        self.hidden, self.num_tokens = hidden, num_tokens

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            query, keys = args[:2]
            mask = self.make_mask(keys.shape[-2], keys.dtype).expand(query.shape[-2], -1)
            bias = kwargs.pop("attn_mask", None)
            mask = mask if bias is None else bias + mask
            return function(query, keys, args[2], mask, **kwargs)
        if function is functional.multi_head_attention_forward:
            mask = self.make_mask(len(args[1]), args[1].dtype).expand(len(args[0]), -1)
            return function(*args, **{**kwargs, "attn_mask": mask})
        if function is torch.Tensor.softmax:
            return function(args[0] + self.make_mask(args[0].shape[-1], args[0].dtype), **kwargs)
        return function(*args, **kwargs)

    def make_mask(self, num_keys, dtype):
        mask = torch.zeros(1, num_keys, dtype=dtype)
        left_out = self.num_tokens - num_keys  # leading tokens that a pooling head does not read
        mask[0, [place - left_out for place in self.hidden]] = -torch.inf
        return mask


@pytest.mark.parametrize("name", MODELS)
def test_dropped_patches_are_as_if_no_attention_read_them(name):
    given = make_input(wrap(name), references=2)
    # The model's own run is watched, which changes nothing.
    assert torch.equal(given.own.feature, run_blocks(given.vit, given.pixels).feature)
    num, tolerance = len(given.patches), 1e-6 if name in ROUNDED else 1e-9
    kept = torch.tensor([[i for i in range(num) if i not in gone] for gone in ([1, 6], [0, 3])])
    found = given.measure_sets(1, kept=kept)
    for gone, score in zip(([1, 6], [0, 3]), found, strict=True):
        hidden = [given.patches.start + i for i in gone]
        with torch.no_grad(), Unread(hidden, given.num_tokens):
            feature = given.vit.run(given.pixels[1:])
        wanted = given.target.select(1).measure(feature)[0]
        torch.testing.assert_close(score, wanted, rtol=tolerance, atol=tolerance)
    everything = given.measure_sets(1, kept=torch.arange(num).unsqueeze(0))
    torch.testing.assert_close(everything, given.scores[1:], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", EXACT)
def test_tokens_that_are_given_take_the_place_of_the_images_own(name):
    given = make_input(wrap(name), references=2)
    other = run_blocks(given.vit, given.references.pixels).streams[0]
    found = run_blocks(given.vit, given.pixels, other).feature
    wanted = run_blocks(given.vit, given.references.pixels).feature
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
