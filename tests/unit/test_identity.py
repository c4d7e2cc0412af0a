"""What tells two models apart: whatever changes a forward, and nothing that does not."""

import re
import sys
from functools import partial, wraps
from types import MethodType

import accelerate
import pytest
import torch
from timm.layers import Attention
from timm.models import VisionTransformer
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import hub_twin
from accelerated import prepare_in_bf16
from support_table import tiny_pixels
from vitscope import wrap_model
from vitscope.models.identity import describe_behaviour, hash_weights
from vitscope.testing.randomize import randomize
from vitscope.testing.tiny_timm import TINY_TIMM

FACTOR = 2.0
DIRECTION = torch.ones(32)


def make():
    return TINY_TIMM["dinov2_reg"]().eval()


PLAIN = describe_behaviour(make())


def double(module, args, output):
    return output * 2


def triple(module, args, output):
    return output * 3


def times_factor(module, args, output):
    return output * FACTOR


def steer(module, args, output):
    return output + DIRECTION


def halve_input(module, args):
    return (args[0] / 2, *args[1:])


def double_forward(self, x):
    return nn.Linear.forward(self, x) * 2


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Scaled(nn.GELU):
    def __init__(self, factor):
        super().__init__()
        self._factor = factor

    def forward(self, x):
        return super().forward(x) * self._factor


class Steered(nn.GELU):
    def forward(self, x):
        return super().forward(x) * FACTOR


class Counter:
    def __init__(self, factor):
        self.factor = factor

    def hook(self, *given):
        return given[2] * self.factor


# --- the same model ------------------------------------------------------------------------------


def compile_blocks(module):
    for block in module.blocks:
        block.compile(backend="eager")


def compile_forward(module):
    block = module.blocks[0]
    block.forward = torch.compile(block.forward, backend="eager")


def dispatch(module):
    accelerate.dispatch_model(module, {"": "cpu"}, main_device="cpu", force_hooks=True)


def checkpoint(module):
    module.set_grad_checkpointing(True)


def drop(module):
    module.blocks[0].attn.attn_drop = nn.Dropout(0.3)


def unfuse(module):
    module.blocks[0].attn.fused_attn = False


def count_on_the_way_back(module):
    module.register_full_backward_hook(lambda *_: None)


@pytest.mark.parametrize(
    "change",
    [
        nn.Module.train,
        compile_blocks,
        compile_forward,
        prepare_in_bf16,
        dispatch,
        checkpoint,
        drop,
        unfuse,
        count_on_the_way_back,
    ],
)
def test_what_changes_no_number_does_not_count(change):
    module = make()
    change(module)
    assert describe_behaviour(module) == PLAIN


def test_vitscopes_own_hooks_do_not_count():
    vit = wrap_model(make())
    found = []
    vit.trace(tiny_pixels(vit), [0, 1], lambda _: found.append(vit.describe_behaviour()))
    assert found == [PLAIN, PLAIN]


# --- another model -------------------------------------------------------------------------------


def hook(function):
    return lambda module: module.blocks[0].mlp.register_forward_hook(function)


def hook_before(function):
    return lambda module: module.blocks[0].register_forward_pre_hook(function)


def double_weights(module):
    parametrize.register_parametrization(module.blocks[0].mlp.fc2, "weight", Doubled())


def swap_activation(module):
    module.blocks[0].mlp.act = nn.ReLU()


def scale_activation(factor):
    def change(module):
        module.blocks[0].mlp.act = Scaled(factor)

    return change


def replace_forward(module):
    module.blocks[0].mlp.fc2.forward = MethodType(double_forward, module.blocks[0].mlp.fc2)


def set_number(path, name, value):
    return lambda module: setattr(module.get_submodule(path), name, value)


def add_buffer(value):
    def change(module):
        module.blocks[0].register_buffer("shift", torch.full((3,), value), persistent=False)

    return change


def keep_tensor(module):
    module.blocks[0].shift = torch.ones(3)


KNOWN = {
    "hook": hook(double),
    "another hook": hook(triple),
    "hook elsewhere": lambda module: module.norm.register_forward_hook(double),
    "hook with a number": hook(times_factor),
    "hook with a tensor": hook(steer),
    "pre-hook": hook_before(halve_input),
    "parametrisation": double_weights,
    "orthogonal": lambda module: parametrizations.orthogonal(module.blocks[0].mlp.fc2),
    "pruned": lambda module: prune.l1_unstructured(module.blocks[0].mlp.fc2, "weight", 0.5),
    "class": swap_activation,
    "own class": scale_activation(2.0),
    "own class, other setting": scale_activation(3.0),
    "forward": replace_forward,
    "eps": set_number("norm", "eps", 0.1),
    "heads": set_number("blocks.0.attn", "num_heads", 2),
    "scale": set_number("blocks.1.attn", "scale", 0.1),
    "buffer": add_buffer(1.0),
    "buffer's value": add_buffer(2.0),
    "tensor": keep_tensor,
}


def describe_changed(change):
    module = make()
    change(module)
    return describe_behaviour(module)


def test_every_change_of_what_is_computed_counts_and_is_told_from_every_other():
    found = {name: describe_changed(change) for name, change in KNOWN.items()}
    assert all(behaviour.unknown == () for behaviour in found.values())
    digests = [PLAIN.digest, *(behaviour.digest for behaviour in found.values())]
    assert len(set(digests)) == len(KNOWN) + 1
    # And each is the same again.
    assert {name: describe_changed(change) for name, change in KNOWN.items()} == found


def test_what_a_hook_reads_is_a_part_of_it(monkeypatch):
    expected = describe_changed(hook(times_factor))
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3.0)
    assert describe_changed(hook(times_factor)).digest != expected.digest


def test_a_number_that_an_own_class_reads_is_a_part_of_it(monkeypatch):
    module = make()
    module.blocks[0].mlp.act = Steered()
    expected = describe_behaviour(module)
    assert describe_behaviour(module) == expected
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3.0)
    assert describe_behaviour(module).digest != expected.digest


def test_the_order_of_hooks_counts():
    found = []
    for pair in ((double, triple), (triple, double)):
        module = make()
        for function in pair:
            module.norm.register_forward_hook(function)
        found.append(describe_behaviour(module).digest)
    assert found[0] != found[1]


def test_a_method_replaced_for_a_whole_class_counts(monkeypatch):
    monkeypatch.setattr(Attention, "forward", double_forward)
    found = describe_behaviour(make())
    assert found.digest != PLAIN.digest
    assert found.unknown == ()


@pytest.mark.parametrize("method", ["forward_features", "_pos_embed", "forward_head"])
def test_any_method_replaced_for_a_whole_class_counts(method, monkeypatch):
    monkeypatch.setattr(VisionTransformer, method, double_forward)
    found = describe_behaviour(make())
    assert found.digest != PLAIN.digest
    assert found.unknown == ()


def test_a_method_of_a_class_that_was_wrapped_counts(monkeypatch):
    published = VisionTransformer.forward_features

    @wraps(published)
    def doubled(self, *given, **named):
        return 2 * published(self, *given, **named)

    monkeypatch.setattr(VisionTransformer, "forward_features", doubled)
    found = describe_behaviour(make())
    assert "class's forward_features of the model" in found.unknown[0]
    assert describe_behaviour(make()).digest != found.digest


def test_a_hook_of_every_module_counts():
    handle = nn.modules.module.register_module_forward_hook(double)
    try:
        found = describe_behaviour(make())
    finally:
        handle.remove()
    assert found.digest != PLAIN.digest
    assert found.unknown == ()
    assert describe_behaviour(make()) == PLAIN


def test_own_code_of_a_published_class_is_told_by_its_methods(monkeypatch):
    build = partial(hub_twin.DinoVisionTransformer, num_register_tokens=4)
    expected = describe_behaviour(randomize(build()))
    assert describe_behaviour(randomize(build())) == expected
    monkeypatch.setattr(hub_twin.Block, "forward", double_forward)
    assert describe_behaviour(randomize(build())).digest != expected.digest


# --- what cannot be compared ---------------------------------------------------------------------


def make_closure(factor):
    def closure(module, args, output):
        return output * factor

    return closure


def times_secret(module, args, output):
    return output * SECRET.factor


SECRET = Counter(2)


def make_local_class(module):
    class Local(nn.GELU):
        pass

    module.blocks[0].mlp.act = Local()


def wrap_forward(module):
    block = module.blocks[0]
    block.forward = torch.autocast("cpu", dtype=torch.bfloat16)(block.forward)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (hook(lambda *given: given[2] * 2), r"forward hook of blocks\.0\.mlp \(a lamb"),
        (hook(make_closure(2)), r"\(a function within a function, make_closure.<locals>.closure"),
        (hook(partial(double)), r"\(an object of class partial\)"),
        (hook(Counter(2).hook), r"\(a bound method, Counter\.hook\)"),
        (hook(times_secret), r"\(it reads SECRET, an object of class Counter\)"),
        (hook_before(lambda *given: given[1]), r"forward pre-hook of blocks\.0 \(a lambda"),
        (set_number("blocks.0", "forward", lambda x: x), r"the forward of blocks\.0 \(a lambda"),
        (set_number("", "_pos_embed", Counter(2)), r"_pos_embed of the model \(an object of class"),
        (set_number("", "_pos_embed", partial(Counter(2).hook)), r"_pos_embed .* \(a bound meth"),
        (make_local_class, r"class of blocks\.0\.mlp\.act \(a class within a function"),
    ],
)
def test_code_that_cannot_be_compared_is_named_and_like_no_other(change, words):
    found = describe_changed(change)
    (unknown,) = found.unknown
    assert re.search(words, unknown)
    assert describe_changed(change).digest != found.digest


def test_a_decorator_does_not_pass_for_what_it_wraps():
    assert describe_changed(wrap_forward) != PLAIN


def test_weights_are_told_by_name_precision_shape_and_bytes():
    expected = hash_weights(make())
    assert hash_weights(make()) == expected
    module = make()
    module.norm.bias.data[3] += 1e-7
    assert hash_weights(module) != expected
    assert hash_weights(make().double()) != expected
