"""What the function mode catches, whatever the call: torch's values, and its gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from vitscope.maps.functions import CaughtFunctions
from vitscope.maps.rules import FROZEN, SECANT

HEADS = (2, 4, 5, 6)


def draw(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def attend(**settings):
    return lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, **settings)


def pack(**settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.MultiheadAttention(8, 2, dtype=torch.float64, **settings).eval()
    nn.init.normal_(module.in_proj_weight, generator=torch.Generator().manual_seed(1))
    return lambda x: module.requires_grad_(False)(x, x, x, need_weights=False)[0]


MASK = torch.ones(5, 5, dtype=torch.bool).tril(2)
CALLS = {
    "attention": (attend(), [HEADS] * 3, ["attention"]),
    "scaled": (attend(scale=0.7), [HEADS] * 3, ["attention"]),
    "masked": (attend(attn_mask=MASK), [HEADS] * 3, ["attention"]),
    "biased": (attend(attn_mask=MASK * 2.0), [HEADS] * 3, ["attention"]),
    "grouped": (attend(enable_gqa=True), [HEADS, (2, 2, 5, 6), (2, 2, 5, 6)], ["attention"]),
    "by_name": (
        lambda q, k, v: functional.scaled_dot_product_attention(query=q, key=k, value=v),
        [HEADS] * 3,
        ["attention"],
    ),
    "packed": (pack(), [(5, 2, 8)], ["attention"]),
    "packed_batch_first": (pack(batch_first=True), [(2, 5, 8)], ["attention"]),
    "packed_without_bias": (pack(bias=False), [(5, 2, 8)], ["attention"]),
    "eager": (
        lambda q, k, v: functional.dropout((q @ k.mT).softmax(-1), 0.1, training=False) @ v,
        [HEADS] * 3,
        ["matmul", "softmax", "read"],
    ),
    "bmm": (
        lambda q, k, v: torch.bmm(torch.softmax(torch.bmm(q, k.mT), dim=2), v),
        [(2, 5, 6)] * 3,
        ["matmul", "softmax", "read"],
    ),
    "softmax_in_another_precision": (
        lambda x: functional.softmax(x, dim=-1, dtype=torch.float64),
        [HEADS],
        ["softmax"],
    ),
    "softmax_over_heads": (lambda x: x.softmax(dim=1), [HEADS], []),
    "layer_norm": (
        lambda x: functional.layer_norm(x, (6,), torch.arange(6.0).double(), None, 1e-3),
        [HEADS],
        ["norm"],
    ),
    "rms_norm": (
        lambda x: functional.rms_norm(x, (6,), weight=torch.arange(6.0).double(), eps=1e-3),
        [HEADS],
        ["norm"],
    ),
    "rms_norm_of_unknown_size": (lambda x: nn.RMSNorm(6).double()(x), [HEADS], ["norm"]),
    "broadcast": (lambda a, b: a * b[:, :1] + a[..., :1].mul(b), [HEADS] * 2, ["product"] * 2),
    "constant": (lambda a: 3 * a * torch.ones(6).double() + a.mul(2.0), [HEADS], []),
    "matmul_of_a_constant": (lambda a: a @ torch.ones(6, 2).double(), [HEADS], []),
    "power": (lambda x: x**2 + torch.pow(x, 3) + x.pow(2), [HEADS], ["activation"] * 3),
    "gelu": (lambda x: functional.gelu(x, approximate="tanh"), [HEADS], ["activation"]),
    "in_place": (lambda x: functional.silu(x + 0, inplace=True), [HEADS], ["activation"]),
    "by_keyword": (lambda x: functional.relu(input=x), [HEADS], ["activation"]),
    "products_by_keyword": (
        lambda a, b: torch.matmul(input=torch.mul(input=a, other=b), other=b.mT),
        [HEADS] * 2,
        ["product", "matmul"],
    ),
    "bmm_by_keyword": (lambda a, b: torch.bmm(input=a, mat2=b.mT), [(2, 5, 6)] * 2, ["matmul"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_values_and_gradients_are_torchs_own(name):
    call, shapes, kinds = CALLS[name]
    inputs = [x.requires_grad_() for x in draw(*shapes)]
    functions = CaughtFunctions(SECANT)
    with functions:
        found = call(*inputs)
    assert [call.kind for call in functions.calls] == kinds
    wanted = call(*inputs)
    torch.testing.assert_close(found, wanted)
    (m,) = draw(wanted.shape)
    gradients = torch.autograd.grad(found, inputs, m)
    for a, b in zip(gradients, torch.autograd.grad(wanted, inputs, m), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["attention", "masked", "packed", "eager", "bmm"])
def test_frozen_attention_lets_nothing_through_queries_and_keys(name):
    call, shapes, _ = CALLS[name]
    inputs = [x.requires_grad_() for x in draw(*shapes)]
    with CaughtFunctions(FROZEN):
        found = call(*inputs)
    (m,) = draw(found.shape)
    *of_routing, of_values = torch.autograd.grad(found, inputs, m)
    assert all((each == 0).all() for each in of_routing)
    assert (of_values != 0).any()


def test_a_constant_is_cast_as_asked():
    tokens = draw((2, 3))[0].float().requires_grad_()
    with CaughtFunctions(SECANT, keep=True):
        assert draw((2, 3))[0].to(tokens).dtype == torch.float32


def test_what_does_not_depend_on_tokens_is_left_alone():
    functions = CaughtFunctions(SECANT)
    (x,) = draw(HEADS)
    with functions:
        functional.gelu(x)
        functional.scaled_dot_product_attention(x, x, x)
        with torch.no_grad():
            functional.gelu(x.requires_grad_())
    assert functions.calls == []


@pytest.mark.parametrize("name", ["attention", "eager", "packed"])
def test_every_attention_is_told_of_with_its_weights(name):
    call, shapes, _ = CALLS[name]
    inputs = [x.requires_grad_() for x in draw(*shapes)]
    told = []
    functions = CaughtFunctions(SECANT, on_attention=told.append)
    with functions:
        functions.block = 7
        found = call(*inputs)
        functions.block = None
    torch.autograd.grad(found.sum(), inputs)
    (item,) = told
    assert item.block == 7
    torch.testing.assert_close(item.weights.sum(dim=-1), torch.ones_like(item.weights[..., 0]))
    if name != "packed":
        q, k, _ = inputs
        scale = 1 if name == "eager" else 6**-0.5
        torch.testing.assert_close(item.weights, (q @ k.mT * scale).softmax(dim=-1))
