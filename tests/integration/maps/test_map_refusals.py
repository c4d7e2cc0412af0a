"""What cannot be traced is refused by name, and the model is left as it was found."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack

from map_inputs import MODELS, draw_pixels, make_input, wrap
from vitscope import wrap_model
from vitscope.errors import ImbalanceError, UnsupportedModelError, UsageError
from vitscope.maps.functions import CaughtFunctions
from vitscope.maps.passes import run_blocks
from vitscope.maps.references import make_references
from vitscope.maps.registry import METHODS
from vitscope.maps.rules import FROZEN, SECANT
from vitscope.maps.token_maps import map_tokens
from vitscope.maps.traced import trace_output
from vitscope.testing.randomize import randomize

NAME = "timm/dinov2_reg"
DIFFERENTIATED = ("chefer", "legrad", "cdam", "gradcam", "gradient_input", "frozen")


def make_unseen(compute):
    """A function whose gradient is right but which torch's function mode does not see."""

    class Unseen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return compute(x)

        @staticmethod
        def backward(ctx, m):
            with torch.enable_grad():
                (x,) = ctx.saved_tensors
                x = x.detach().requires_grad_()
                return torch.autograd.grad(compute(x), x, m)[0]

    return Unseen.apply


def hide_norm(block):
    norm = block.norm2
    norm.forward = make_unseen(
        lambda x: functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    )


def hide_attention(block):
    hidden = make_unseen(type(block.attn).forward.__get__(block.attn))
    block.attn.forward = lambda x, **_: hidden(x)


def hide_activation(block):
    block.mlp.act.forward = make_unseen(functional.silu)


@pytest.mark.parametrize(
    ("hide", "named"),
    [
        (hide_norm, "in block 1 of .* 1 of 2 calls of kind 'norm'"),
        (hide_attention, "in block 1 of .* 0 of 1 calls of kind 'attention'"),
        (hide_activation, "in block 1 of .* 0 of 1 calls of kind 'activation'"),
    ],
)
def test_a_block_with_an_operation_that_is_not_seen_is_refused(hide, named):
    given = make_input(wrap(NAME))
    hide(given.vit.module.blocks[1])
    for method in ("traced", *DIFFERENTIATED):
        with pytest.raises(UnsupportedModelError, match=named):
            METHODS[method].compute(given)


def hide_from_modes(module):
    forward = module.forward

    def run(*args, **kwargs):
        with torch._C.DisableTorchFunction():
            return forward(*args, **kwargs)

    module.forward = run


@pytest.mark.parametrize("method", ["rollout", "rollout_norm"])
def test_a_rollout_needs_every_attention_and_nothing_else(method):
    wanted = METHODS[method].compute(make_input(wrap(NAME))).values
    given = make_input(wrap(NAME))
    hide_norm(given.vit.module.blocks[1])
    torch.testing.assert_close(METHODS[method].compute(given).values, wanted)
    given = make_input(wrap(NAME))
    hide_from_modes(given.vit.module.blocks[1].attn)
    with pytest.raises(UnsupportedModelError, match=r"in block 1 of .* 0 of 1 calls"):
        METHODS[method].compute(given)


def test_a_rollout_by_norm_needs_the_skip_connection_of_every_row():
    vit = wrap(NAME)
    last = vit.last_layer
    constant = replace(vit.blocks[last], skip=torch.zeros_like)
    for blocks in ({last: vit.blocks[last]}, {**vit.blocks, last: constant}):
        other = replace(vit, blocks=blocks)
        with pytest.raises(UnsupportedModelError, match=r"has none, or another: use traced"):
            map_tokens(other, draw_pixels(vit, 1), ["rollout_norm"])


@pytest.mark.parametrize("method", ["rollout", "chefer"])
def test_a_pooling_head_whose_attention_is_not_seen_is_refused(method):
    given = make_input(wrap("timm/siglip"))
    hide_from_modes(given.vit.module.attn_pool)
    with pytest.raises(UnsupportedModelError, match=r"in the pooling head of .* 0 of 1"):
        METHODS[method].compute(given)


def multiply_in_place(x):
    x = x.clone()
    x.mul_(x.flip(1))
    return x


@pytest.mark.parametrize(
    ("compute", "named"),
    [
        (torch.sin, "Sin"),
        (lambda x: torch.maximum(x, x.flip(1)), "Maximum"),
        (lambda x: x.cumprod(dim=1), "Cumprod"),
        (lambda x: x / (2 + x.abs()), "Abs, Div"),
        (lambda x: 2**x, "Pow"),
        (lambda x: x.abs() ** x, "Abs, Pow"),
        (
            lambda x: (
                torch.einsum("bnd,bmd->bnm", x, x)
                @ torch.ones(len(x), x.shape[1], x.shape[2]).to(x)
            ),
            "Bmm",
        ),
        (lambda x: x.softmax(dim=1), "Softmax"),
        (multiply_in_place, "Mul"),
        (make_unseen(torch.sin), "Unseen"),
    ],
)
def test_an_operation_without_a_rule_is_named(compute, named):
    given = make_input(wrap(NAME))
    given.vit.module.blocks[0].mlp.register_forward_hook(lambda _, __, out: compute(out))
    with pytest.raises(ImbalanceError, match=f"no exact backward rule for {named}$"):
        trace_output(given)
    with pytest.raises(UnsupportedModelError, match=f"no exact backward rule for {named}$"):
        trace_output(given, rules=FROZEN)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: torch.cumsum(x**2, dim=1),
        lambda x: x.pow(3).mean(dim=1, keepdim=True) + x.roll(1, dims=1) / 3,
        lambda x: torch.mul(input=x, other=x[:, :1]).tanh(),
        lambda x: torch.stack([x, x.exp().neg()]).sum(dim=0),
        lambda x: functional.layer_norm(input=x, normalized_shape=(32,), eps=0.1),
        lambda x: functional.rms_norm(x, normalized_shape=[32]),
        lambda x: x * x.mean(dim=(1, 2), keepdim=True).sigmoid(),
    ],
)
def test_other_operations_with_rules_are_traced_exactly(compute):
    given = make_input(wrap(NAME))
    given.vit.module.blocks[0].mlp.register_forward_hook(lambda _, __, out: compute(out))
    assert trace_output(given).gap.max() < 1e-12
    trace_output(given, rules=FROZEN)


def test_causal_attention_is_refused():
    given = make_input(wrap(NAME))
    mlp = given.vit.module.blocks[0].mlp
    mlp.register_forward_hook(
        lambda _, __, x: functional.scaled_dot_product_attention(x, x, x, is_causal=True)
    )
    with pytest.raises(UnsupportedModelError, match="attention is causal"):
        trace_output(given)


def test_a_model_that_is_not_the_same_twice_is_refused():
    given = make_input(wrap(NAME))
    given.vit.module.blocks[0].mlp.register_forward_hook(
        lambda _, __, out: functional.dropout(out, 0.5)
    )
    for method in ("traced", *DIFFERENTIATED):
        with pytest.raises(ImbalanceError, match="differs from the model's own"):
            METHODS[method].compute(given)


def test_half_precision_is_refused():
    vit = wrap(NAME, torch.float32)
    pixels = draw_pixels(vit, 1)
    with (
        vit.placed("cpu", torch.bfloat16),
        pytest.raises(UsageError, match="half precision"),
    ):
        run_blocks(vit, pixels, functions=CaughtFunctions(SECANT))
    vit = wrap(NAME, torch.bfloat16)
    with pytest.raises(UsageError, match="half precision"):
        run_blocks(vit, draw_pixels(vit, 1), functions=CaughtFunctions(SECANT))


def test_an_outer_inference_mode_changes_no_map():
    vit, names = wrap(NAME), ["rollout", "traced", "integrated_gradients"]
    pixels, references = draw_pixels(vit, 1), draw_pixels(vit, 2, seed=1)
    usual = map_tokens(vit, pixels, names, references=references)
    with torch.inference_mode():
        made = map_tokens(vit, pixels.clone(), names, references=references.clone())
        assert torch.is_inference_mode_enabled()
    for name in names:
        torch.testing.assert_close(made[name], usual[name], rtol=0, atol=0)


def test_weights_made_in_inference_mode_are_refused_where_gradients_are_needed():
    with torch.inference_mode():
        vit = wrap_model(MODELS[NAME]())
    pixels, references = draw_pixels(vit, 1), draw_pixels(vit, 2, seed=1)
    with pytest.raises(
        UsageError, match=r"weights .* made in torch\.inference_mode, which"
    ) as told:
        map_tokens(vit, pixels, ["cdam"], references=references)
    assert "\n" not in str(told.value)
    assert all(weight.requires_grad for weight in vit.module.parameters())
    map_tokens(vit, pixels, ["attention", "single_deletion"], references=references)


def describe_state(module):
    return {
        "gradients": [(p.requires_grad, p.grad) for p in module.parameters()],
        "modes": [part.training for part in module.modules()],
        "hooks": [
            (len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()
        ],
        "functions": _get_current_function_mode_stack(),
        "enabled": torch.is_grad_enabled(),
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
    }


def assert_same_state(before, after):
    torch.testing.assert_close(before.pop("weights"), after.pop("weights"), rtol=0, atol=0)
    assert before == after


def prepare(module):
    module.train()
    module.blocks[0].eval()
    module.blocks[1].mlp.requires_grad_(False)
    return module


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_as_it_was_found(method):
    vit = wrap(NAME)
    before = describe_state(prepare(vit.module))
    with torch.no_grad():
        METHODS[method].compute(make_input(vit, images=1, references=1))
    assert_same_state(before, describe_state(vit.module))


@pytest.mark.parametrize("method", ["traced", "legrad", "single_deletion", "rollout_norm"])
def test_the_model_is_left_as_it_was_found_when_its_code_fails(method):
    vit = wrap(NAME)
    module = prepare(vit.module)
    before = describe_state(module)
    given = make_input(vit, images=1, references=1)
    assert given.target.name == "self"
    assert len(given.references.traced[1]) > 0
    if method == "rollout_norm":
        given = replace(given)  # it is made of the model's own run, which target has made

    def fail(*_):
        raise ZeroDivisionError

    module.blocks[1].mlp.fc1.forward = fail
    with pytest.raises(ZeroDivisionError):
        METHODS[method].compute(given)
    assert_same_state(before, describe_state(module))


def test_references_of_other_weights_are_refused():
    vit = wrap(NAME)
    pixels = draw_pixels(vit, 2)
    same = make_references(wrap(NAME), [draw_pixels(vit, 3, seed=1)])  # loaded once more
    made = map_tokens(vit, pixels, ["cdam"], references=same)["cdam"]
    assert made.isfinite().all()
    other = wrap_model(randomize(MODELS[NAME](), seed=7)).to("cpu", torch.float64)
    with pytest.raises(UsageError, match="with other weights than the model that is explained"):
        map_tokens(other, pixels, ["cdam"], references=same)


def test_the_mode_of_training_does_not_change_a_map():
    maps = []
    for training in (False, True):
        given = make_input(wrap(NAME))
        given.vit.module.train(training)
        given.vit.module.norm.register_forward_hook(
            lambda module, _, out: functional.dropout(out, 0.5, module.training)
        )
        maps += [METHODS["legrad"].compute(given).values]
    torch.testing.assert_close(*maps, rtol=0, atol=0)
