"""Backward rules: a difference is passed on exactly, and what is held stays held."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from vitscope.maps.rules import FROZEN, SECANT, Pair, apply_to_both, find_secant
from vitscope.maps.targets import Target

DIM, TOKENS, KEYS, HEADS = 6, 3, 5, 2
FUNCTIONS = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
    "relu": functional.relu,
    "hardswish": functional.hardswish,
    "mish": functional.mish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "exp": torch.exp,
    "square": torch.square,
    "cube": partial(torch.pow, exponent=3),
}
WEIGHT = torch.linspace(-1.5, 2, DIM, dtype=torch.float64)
MASK = torch.zeros(TOKENS, KEYS, dtype=torch.float64)
MASK[0, 1:3] = MASK[2, 4] = -torch.inf
BIAS = MASK + torch.linspace(-1, 1, KEYS, dtype=torch.float64)


class Operation(NamedTuple):
    """A function, the shapes of its inputs, and its rule: (rules, m, *pairs) -> multipliers."""

    shapes: list[tuple[int, ...]]
    compute: object
    pull: object


def _cast(value, like):
    return None if value is None else value.to(like.dtype)


def _norm(weight):
    return Operation(
        [(2, TOKENS, DIM)],
        lambda x: functional.layer_norm(x, (DIM,), _cast(weight, x), None, 1e-6),
        lambda rules, m, x: [rules.layer_norm(m, x, _cast(weight, m), 1e-6)],
    )


def _softmax(mask):
    return Operation(
        [(2, TOKENS, KEYS)],
        lambda logits: (logits + _cast(mask, logits)).softmax(dim=-1),
        lambda rules, m, logits: [
            rules.softmax(m, Pair(*((x + _cast(mask, x)).log_softmax(dim=-1) for x in logits)))
        ],
    )


def _attention(bias, scale):
    heads = (2, HEADS, KEYS, DIM)
    return Operation(
        [(2, HEADS, TOKENS, DIM), heads, heads],
        lambda q, k, v: functional.scaled_dot_product_attention(
            q, k, v, _cast(bias, q), scale=scale
        ),
        lambda rules, m, *pairs: rules.attention(m, *pairs, _cast(bias, m), scale, rules.read),
    )


def _cosine(centre):
    target = Target(
        name="test",
        directions=torch.linspace(-1, 1, DIM, dtype=torch.float64).unsqueeze(0),
        centre=centre,
        unit_length=True,
    )

    def cast(x):
        directions, centre = target.directions.to(x), _cast(target.centre, x)
        return replace(target, directions=directions, centre=centre)

    return Operation(
        [(2, DIM)],
        lambda f: cast(f).measure(f),
        lambda _, m, f: [m.unsqueeze(-1) * cast(f.image).pull(f.image, f.reference)],
    )


OPERATIONS = {
    "layer_norm": _norm(WEIGHT),
    "layer_norm_bare": _norm(None),
    "rms_norm": Operation(
        [(2, TOKENS, DIM)],
        lambda x: functional.rms_norm(x, (DIM,), eps=1e-6),
        lambda rules, m, x: [rules.rms_norm(m, x, DIM, 1e-6)],
    ),
    "product": Operation(
        [(2, DIM), (2, DIM)], torch.mul, lambda rules, m, a, b: rules.product(m, a, b)
    ),
    "matmul": Operation(
        [(2, TOKENS, DIM), (2, DIM, KEYS)],
        torch.matmul,
        lambda rules, m, a, b: rules.matmul(m, a, b),
    ),
    "read": Operation(
        [(2, TOKENS, KEYS), (2, KEYS, DIM)],
        torch.matmul,
        lambda rules, m, a, b: rules.read(m, a, b),
    ),
    "softmax": _softmax(torch.zeros(KEYS, dtype=torch.float64)),
    "softmax_masked": _softmax(MASK),
    "attention": _attention(None, 0.3),
    "attention_biased": _attention(BIAS, 1.0),
    "cosine": _cosine(None),
    "cosine_centred": _cosine(WEIGHT),
    **{
        name: Operation(
            [(2, DIM)],
            function,
            lambda rules, m, x, function=function: [rules.elementwise(m, function, x)],
        )
        for name, function in FUNCTIONS.items()
    },
}
EVERY_OPERATION = pytest.mark.parametrize("name", OPERATIONS)


def draw(operation, seed, spread=1.0, distance=1.0, dtype=torch.float64):
    """A multiplier of the output, and a pair for each input."""
    generator = torch.Generator().manual_seed(seed)

    def make(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    pairs = []
    for shape in operation.shapes:
        x = spread * make(shape)
        pairs.append(Pair(x.to(dtype), (x + distance * make(shape)).to(dtype)))
    m = make(operation.compute(*(pair.image for pair in pairs)).shape).to(dtype)
    return m, pairs


def multiply(multipliers, pairs):
    return sum((m * (x.image - x.reference)).sum() for m, x in zip(multipliers, pairs, strict=True))


def differentiate(operation, m, inputs):
    inputs = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(operation.compute(*inputs), inputs, m)


@EVERY_OPERATION
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    spread=st.sampled_from([0.01, 1.0, 5.0]),
    distance=st.sampled_from([1e-12, 1e-7, 1e-5, 1e-3, 0.1, 3.0]),
)
@example(seed=339, spread=0.01, distance=1e-7)  # 0 is between two inputs of ReLU
def test_secant_rules_pass_a_difference_on(name, seed, spread, distance):
    operation = OPERATIONS[name]
    m, pairs = draw(operation, seed, spread, distance)
    multipliers = operation.pull(SECANT, m, *pairs)
    image, reference = (operation.compute(*inputs) for inputs in zip(*pairs, strict=True))
    wanted = (m * (image - reference)).sum()
    size = sum(
        (p * (x.image - x.reference)).abs().sum() for p, x in zip(multipliers, pairs, strict=True)
    )
    rounding = 1e-14 * max(image.abs().max(), 1)
    assert (multiply(multipliers, pairs) - wanted).abs() <= 1e-10 * size + rounding


@EVERY_OPERATION
def test_secant_rules_are_the_same_with_image_and_reference_exchanged(name):
    operation = OPERATIONS[name]
    m, pairs = draw(operation, seed=1)
    swapped = [Pair(x.reference, x.image) for x in pairs]
    for a, b in zip(
        operation.pull(SECANT, m, *pairs), operation.pull(SECANT, m, *swapped), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@EVERY_OPERATION
@pytest.mark.parametrize(("distance", "error"), [(0.0, 1e-12), (1e-9, 1e-7), (1e-5, 1e-3)])
def test_secant_rules_become_the_gradient_as_the_reference_comes_close(name, distance, error):
    operation = OPERATIONS[name]
    m, pairs = draw(operation, seed=2, distance=distance)
    wanted = differentiate(operation, m, [x.image for x in pairs])
    for a, b in zip(operation.pull(SECANT, m, *pairs), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=error, atol=error)


@EVERY_OPERATION
@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-4, 5e-3, 0.1])
def test_secant_rules_are_accurate_in_float32(name, distance):
    operation = OPERATIONS[name]
    m, pairs = draw(operation, seed=3, distance=distance, dtype=torch.float32)
    wanted = operation.pull(
        SECANT, m.double(), *(Pair(*map(torch.Tensor.double, x)) for x in pairs)
    )
    for a, b in zip(operation.pull(SECANT, m, *pairs), wanted, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_constants_added_to_all_logits_change_nothing():
    operation = OPERATIONS["softmax"]
    m, (logits,) = draw(operation, seed=4)
    shifted = Pair(logits.image + 7, logits.reference - 30)
    (a,), (b,) = (operation.pull(SECANT, m, x) for x in (logits, shifted))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(a.sum(dim=-1), torch.zeros(2, TOKENS, dtype=torch.float64))


def test_masked_logits_get_nothing():
    m, (logits,) = draw(OPERATIONS["softmax_masked"], seed=5)
    (found,) = OPERATIONS["softmax_masked"].pull(SECANT, m, logits)
    assert (found[:, MASK.isneginf()] == 0).all()
    assert found.isfinite().all()


def test_attention_that_is_certain_stays_finite():
    logits = Pair(torch.tensor([[0.0, 800.0, -800.0]]), torch.tensor([[0.0, 799.0, -1.0]]))
    logs = Pair(*(x.double().log_softmax(dim=-1) for x in logits))
    found = SECANT.softmax(torch.ones(1, 3, dtype=torch.float64), logs)
    torch.testing.assert_close(found, torch.zeros_like(found))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_where_the_derivative_takes_over_the_slope_does_not_jump(name):
    function = FUNCTIONS[name]
    x = torch.linspace(0.1, 2, 20, dtype=torch.float64)
    jumps = [
        find_secant(function, Pair(x, x + distance)) - find_secant(function, Pair(x, x + 6.1e-6))
        for distance in (6.0e-6, 6.2e-6)
    ]
    assert max(jump.abs().max() for jump in jumps) < 1e-5


def _hold_norm(x):
    centred = x - x.mean(dim=-1, keepdim=True)
    spread = (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return centred / spread.detach() * WEIGHT


def _hold_attention(q, k, v):
    return (q @ k.mT * 0.3).softmax(dim=-1).detach() @ v


HELD = {
    "layer_norm": _hold_norm,
    "rms_norm": lambda x: x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt().detach(),
    "product": lambda a, b: (a.detach() * b + a * b.detach()) / 2,
    "matmul": lambda a, b: (a.detach() @ b + a @ b.detach()) / 2,
    "read": lambda a, b: a.detach() @ b,
    "softmax": lambda logits: 0 * logits,
    "attention": _hold_attention,
    **{
        name: lambda x, function=function: (function(x) / x).detach() * x
        for name, function in FUNCTIONS.items()
    },
}


@pytest.mark.parametrize("name", HELD)
def test_frozen_rules_are_gradients_of_what_is_held(name):
    operation = OPERATIONS[name]
    m, pairs = draw(operation, seed=6)
    held = operation._replace(compute=HELD[name])
    wanted = torch.autograd.grad(
        held.compute(*(inputs := [x.image.clone().requires_grad_() for x in pairs])),
        inputs,
        m,
        allow_unused=True,
    )
    for a, b in zip(operation.pull(FROZEN, m, *pairs), wanted, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


def test_a_frozen_slope_at_zero_is_the_derivative():
    x = Pair(torch.tensor([0.0, 1e-30]), torch.ones(2))
    found = FROZEN.elementwise(torch.ones(2), functional.gelu, x)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5]))


def test_what_is_the_same_at_both_is_computed_once():
    seen = []
    x, y = torch.zeros(2, 3)

    def add(a, b):
        seen.append(1)
        return a + b

    found = apply_to_both(add, Pair(x, x), Pair(y, y))
    assert found.image is found.reference
    assert len(seen) == 1
    found = apply_to_both(add, Pair(x, x), Pair(y, y + 1))
    assert len(seen) == 3
    assert torch.equal(found.reference, found.image + 1)
