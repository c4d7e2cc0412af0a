"""P8: an edit lasts as long as its context, is known by name, and treats each image for itself."""

import pickle
import re
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pytest
import torch

from edited_vit import draw_pixels, wrap_tiny
from vitscope.decomposition import decompose
from vitscope.errors import UsageError
from vitscope.models.identity import hash_weights
from vitscope.remedies.registry import REMEDIES, parse_remedy

SETTINGS = {
    "interpolate": ":threshold=15",
    "clip": ":threshold=15",
    "skip": ":by_mean=true",
    "test-time-registers": ":threshold=15,depth=1,top=3",
    "position-mean": ":layers=all",
    "sinks": ":concentration=0,small_value=100",
    "project-direction": ":deviations=0",
}


@pytest.fixture
def vit():
    return wrap_tiny("timm/dinov2_reg")


@pytest.fixture
def pixels(vit):
    return draw_pixels(vit, 8)


# A head edits no block: test_head.py has its tests.
@pytest.fixture(params=[name for name in REMEDIES if name != "attentive-head"])
def remedy(request, vit, pixels):
    text = request.param + SETTINGS.get(request.param, "")
    return parse_remedy(text).fitted(vit, lambda: pixels.split(5))


def describe(vit):
    hooks = [
        (name, list(part._forward_pre_hooks), list(part._forward_hooks))
        for name, part in vit.module.named_modules()
    ]
    return hash_weights(vit.module), vit.describe_behaviour(), hooks


class StoppedError(Exception):
    pass


def stop(*_):
    raise StoppedError


def test_the_model_is_as_it_was_afterwards(vit, pixels, remedy):
    before, feature = describe(vit), vit.run(pixels)
    with remedy.applied(vit) as edited:
        assert not torch.equal(edited.run(pixels), feature)
    assert describe(vit) == before
    with pytest.raises(StoppedError), remedy.applied(vit):
        raise StoppedError
    assert describe(vit) == before
    with ExitStack() as stack:
        edited = stack.enter_context(remedy.applied(vit))
        stack.callback(vit.encoder_blocks[-1].register_forward_hook(stop).remove)
        with pytest.raises(StoppedError):
            edited.run(pixels)
    assert describe(vit) == before
    assert torch.equal(vit.run(pixels), feature)


def test_an_edited_model_does_not_pass_for_the_original(vit, pixels, remedy):
    original = vit.describe_behaviour().digest
    with remedy.applied(vit) as edited:
        assert edited.describe_behaviour().digest != original
        assert not edited.describe_behaviour().unknown
        assert edited.info.id != vit.info.id
        with pytest.raises(UsageError, match="is being edited"):
            decompose(vit, pixels)
        with pytest.raises(UsageError, match="through the adapter that `applied` gave"):
            vit.run(pixels)
    for run in (partial(decompose, edited), edited.run):
        with pytest.raises(UsageError, match="has ended"):
            run(pixels)


def test_a_fit_on_other_images_is_another_edit(vit, pixels):
    shuffle = parse_remedy("shuffle:layers=1")
    texts = [shuffle.fitted(vit, lambda p=p: [p]).describe() for p in (pixels, pixels, pixels[1:])]
    assert texts[0] == texts[1] != texts[2]
    assert re.fullmatch(r"shuffle:layers=1 \(measured: [0-9a-f]{8}\)", texts[0])


def test_each_image_is_edited_for_itself(vit, pixels, remedy):
    with remedy.applied(vit) as edited:
        together = edited.run(pixels)
        alone = torch.cat([edited.run(image) for image in pixels.split(1)])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)


def test_a_pickled_edit_is_kept(vit, pixels, remedy):
    with remedy.applied(vit) as edited:
        feature, behaviour = edited.run(pixels), edited.describe_behaviour()
        copy = pickle.loads(pickle.dumps(edited))
    vit.run(pixels)
    assert torch.equal(copy.run(pixels), feature)
    assert copy.describe_behaviour() == behaviour
    decompose(copy, pixels)


def run_nested(outer, inner, vit, pixels):
    with outer.applied(vit) as once:
        before = once.describe_behaviour().digest, once.run(pixels)
        with inner.applied(once) as twice:
            found = twice.run(pixels)
            assert twice.describe_behaviour().digest != before[0]
            with pytest.raises(UsageError, match="is being edited"):
                decompose(once, pixels)
        with pytest.raises(UsageError, match="has ended"):
            twice.run(pixels)
        assert once.describe_behaviour().digest == before[0]
        assert torch.equal(once.run(pixels), before[1])
    assert not torch.equal(found, before[1])
    return found


def test_edits_can_be_nested_in_any_order(vit, pixels, remedy):
    zero = parse_remedy("zero:layers=0")
    remedy = replace(remedy, measured_on=None)  # so that the same numbers are applied in both
    found = run_nested(remedy, zero, vit, pixels)
    if remedy.name == "test-time-registers":
        with (
            zero.applied(vit) as once,
            pytest.raises(UsageError, match="insert them first"),
            remedy.applied(once),
        ):
            pass
    else:
        assert torch.equal(run_nested(zero, remedy, vit, pixels), found)


def test_an_edit_cannot_be_nested_in_itself(vit):
    zero = parse_remedy("zero")
    with (
        zero.applied(vit) as once,
        pytest.raises(UsageError, match="zero is being applied already"),
        zero.applied(once),
    ):
        pass
