"""Models whose maps are known in closed form: bag of patches, relays, and routing alone."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from map_inputs import make_input
from vitscope import wrap_model
from vitscope.maps.registry import METHODS
from vitscope.maps.rules import FROZEN
from vitscope.maps.traced import trace_output

# Channels of a token. Each is written as (v, -v), so that its mean is zero.
CLS, REGISTER, SPECIAL, OTHER = range(4)  # marks of what a token is
CONTENT, GATHERED, FINAL = slice(4, 7), slice(7, 10), slice(10, 13)
CHANNELS = 13
CERTAIN = 60.0  # a logit that leaves nothing to the others
PATCH = 4  # index of the special patch, of 3 x 3
PLACE = 2 + PATCH  # its place, after [CLS] and one register
EYE = torch.eye(3, dtype=torch.float64)


def write(channels):
    """From channels to dimensions."""
    return torch.stack([channels, -channels], dim=1).flatten(0, 1)


def read(matrix):
    """From dimensions to channels, then by a matrix."""
    return torch.stack([matrix, -matrix], dim=-1).flatten(1) / 2


def dimensions(channels):
    """Where the positive values of channels are."""
    return slice(2 * channels.start, 2 * channels.stop, 2)


def zeros():
    return torch.zeros(CHANNELS, CHANNELS, dtype=torch.float64)


class Planted:
    """A timm model with two blocks that do nothing yet, and norms that do nothing at all."""

    def __init__(self):
        width = 2 * CHANNELS
        self.module = VisionTransformer(
            img_size=12,
            patch_size=4,
            embed_dim=width,
            depth=2,
            num_heads=1,
            mlp_ratio=1,
            num_classes=0,
            reg_tokens=1,
        ).double()
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.zero_()
            for norm in (part for part in self.module.modules() if hasattr(part, "eps")):
                norm.eps, norm.weight[:] = 1e16, 1e8
            marks = torch.tensor([CLS, REGISTER, *[OTHER] * 9])
            marks[PLACE] = SPECIAL
            self.module.pos_embed[0] = write(torch.eye(CHANNELS, dtype=torch.float64)[marks].T).T
            colours = zeros()[:, :3]
            colours[CONTENT] = EYE
            filters = self.module.patch_embed.proj.weight
            filters[:] = write(colours)[:, :, None, None] / filters[0, 0].numel()

    @torch.no_grad()
    def attend(self, block, values, logits):
        """Values that a token hands over, and logits by channel of the query and of the key."""
        attention = self.module.blocks[block].attn
        query, key, value = attention.qkv.weight.unflatten(0, (3, 2 * CHANNELS))
        query[:CHANNELS] = read(logits.T) / attention.scale
        key[:CHANNELS] = read(torch.eye(CHANNELS, dtype=torch.float64))
        value[:] = write(read(values))
        attention.proj.weight[:] = torch.eye(2 * CHANNELS)

    @torch.no_grad()
    def bend(self, block):
        """An MLP that makes the gathered channels a nonlinear function of the content."""
        mlp, width = self.module.blocks[block].mlp, len(EYE)
        chosen = zeros()[:width]
        chosen[:, CONTENT] = EYE * 3
        mlp.fc1.weight[:width] = read(chosen)
        written = zeros()[:, :width]
        written[GATHERED] = EYE
        mlp.fc2.weight[:, :width] = write(written)

    def make_input(self, **settings):
        return make_input(wrap_model(self.module.eval()), **settings)


def hand_over(source, target):
    values = zeros()
    values[target, source] = EYE
    return values


def make_bag(*, bent=False):
    planted = Planted()
    logits = zeros()
    logits[CLS, SPECIAL] = math.log(3)
    if bent:
        planted.bend(0)
    planted.attend(1, hand_over(GATHERED if bent else CONTENT, FINAL), logits)
    return planted


def delete_by(given, tokens):
    """What each patch's own token adds to the score, against the one given in its place."""
    found = []
    for image in range(len(given.pixels)):
        for place in given.patches:
            changed = given.tokens.clone()
            changed[image, place] = tokens[place]
            found.append((given.scores - given.measure(changed))[image])
    return torch.stack(found).reshape(len(given.pixels), -1)


def assert_close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def take_patches(given, values):
    return values[:, given.patches.start : given.patches.stop]


def compute(name, given):
    return METHODS[name].compute(given)


def test_a_bag_of_patches_is_the_same_to_all_who_claim_a_sum():
    given = make_bag().make_input()
    wanted = delete_by(given, given.references.mean_tokens)
    direction = given.target.directions[:, dimensions(FINAL)]
    content = (given.tokens - given.references.mean_tokens)[..., dimensions(CONTENT)]
    content = take_patches(given, content)
    weights = torch.ones(9, dtype=torch.float64)
    weights[PATCH] = 3
    # Eleven tokens, one of which weighs as much as three; both signs of a channel count.
    closed = 2 * (content * direction.unsqueeze(1)).sum(dim=-1) * weights / 13
    assert_close(wanted, closed)
    for name in ("traced", "frozen", "integrated_gradients", "gradient_input"):
        found = compute(name, given)
        assert_close(take_patches(given, found.values), wanted)
        assert_close(found.values[:, :2], torch.zeros(2, 2, dtype=torch.float64))
    assert_close(compute("traced", given).total, wanted.sum(dim=1))
    assert_close(compute("integrated_gradients", given).total, wanted.sum(dim=1))


def test_a_bag_of_bent_patches_is_the_same_to_the_trace_and_to_deletion():
    given = make_bag(bent=True).make_input(references=1)
    wanted = delete_by(given, given.references.mean_tokens)
    assert_close(take_patches(given, compute("traced", given).values), wanted)
    integrated = take_patches(given, compute("integrated_gradients", given).values)
    torch.testing.assert_close(integrated, wanted, rtol=0.02, atol=1e-4)
    frozen = take_patches(given, compute("frozen", given).values)
    assert (frozen - wanted).abs().max() > 0.01


def relay():
    planted = Planted()
    first, second = zeros(), zeros()
    first[REGISTER, SPECIAL] = first[CLS, CLS] = first[SPECIAL, CLS] = first[OTHER, CLS] = CERTAIN
    second[CLS, REGISTER] = second[REGISTER, CLS] = second[SPECIAL, CLS] = CERTAIN
    second[OTHER, CLS] = CERTAIN
    planted.attend(0, hand_over(CONTENT, GATHERED), first)
    planted.attend(1, hand_over(GATHERED, FINAL), second)
    return planted.make_input()


def skip_relay():
    planted = Planted()
    first = zeros()
    first[CLS, SPECIAL] = first[REGISTER, CLS] = first[SPECIAL, CLS] = first[OTHER, CLS] = CERTAIN
    planted.attend(0, hand_over(CONTENT, FINAL), first)
    return planted.make_input()


@pytest.mark.parametrize(("make", "door"), [(relay, 1), (skip_relay, 0)])
def test_a_relay_is_followed_to_its_patch(make, door):
    given = make()
    trace = trace_output(given)
    for depth, place in enumerate((PLACE, door, 0)):
        wanted = torch.zeros_like(trace.parts[:, depth])
        wanted[:, place] = trace.total
        assert_close(trace.parts[:, depth], wanted)
    assert_close(trace_output(given, rules=FROZEN).parts, trace.parts)
    read_from = torch.zeros_like(trace.through_values)
    read_from[:, : door + 1] = trace.total.unsqueeze(1)
    assert_close(trace.through_values, read_from)
    assert_close(trace.through_routing, torch.zeros_like(read_from))


def test_a_relay_through_a_register_is_hidden_from_the_last_attention():
    given = relay()
    nothing = torch.zeros(2, 9, dtype=torch.float64)
    for name in ("attention", "cdam", "contribution_norm", "share", "gradcam"):
        assert_close(take_patches(given, compute(name, given).values), nothing)
    rollout = torch.zeros(2, 11, dtype=torch.float64)
    rollout[:, [0, 1, PLACE]] = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert_close(compute("rollout", given).values, rollout)


def route():
    planted = Planted()
    logits, values = zeros(), zeros()
    logits[CLS, CONTENT.start] = 5
    logits[CLS, CLS] = logits[CLS, OTHER] = -CERTAIN
    values[FINAL.start, SPECIAL], values[FINAL.start, REGISTER] = 1, -2
    planted.attend(0, values, logits)
    return planted.make_input(references=1)


def test_routing_alone_is_nothing_when_frozen_and_everything_to_the_secant():
    given = route()
    deleted = delete_by(given, given.references.mean_tokens)
    trace = trace_output(given)
    assert trace.total.abs().min() > 0.1
    wanted = torch.zeros_like(trace.parts[:, 0])
    wanted[:, PLACE] = trace.total
    assert_close(trace.parts[:, 0], wanted)
    assert_close(take_patches(given, wanted), deleted)
    assert_close(trace.through_routing[:, 0], trace.total)
    assert_close(trace.through_values, torch.zeros_like(trace.through_values))
    frozen = trace_output(given, rules=FROZEN)
    assert (frozen.parts[:, 0] == 0).all()
    # In closed form: the chance σ(5 t) of reading the patch, whose value is 1, or -2.
    chance = torch.sigmoid(5 * given.tokens[:, PLACE, 2 * CONTENT.start])
    centre = torch.sigmoid(5 * given.references.mean_tokens[PLACE, 2 * CONTENT.start])
    slope = 2 * given.target.directions[:, 2 * FINAL.start]
    assert_close(trace.total, slope * 3 * (chance - centre))
