"""Wrong use: one sentence says what was given, what was expected, and what to do."""

import pytest
import torch

from audits import tiny_vit
from edited_vit import draw_pixels
from support_table import ALL_MODELS
from vitscope import wrap_model
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.remedies.registers import Neuron, Neurons, TestTimeRegisters
from vitscope.remedies.registry import parse_remedy
from vitscope.remedies.tokens import ReplaceTokens
from written_vit import draw_images, write_model


def wrap(name):
    return wrap_model(ALL_MODELS[name]())


def apply(remedy, vit):
    with remedy.applied(vit):
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zeros", "no remedy is called 'zeros': choose from zero, mean"),
        ("zero:foo=1", "has no setting 'foo': choose from tokens, layers, threshold"),
        ("clip:tokens=registers", "clip has no setting 'tokens': choose from layers, threshold"),
        ("zero:layers=x", "'x': expected last or all or block numbers such as 0.1"),
        ("zero:layers", "layers of zero was given as '': expected last or all"),
        ("zero:tokens=patches", "'patches': expected registers or cls or high_norm"),
        ("skip:by_mean=1", "by_mean of skip was given as '1': expected true or false"),
        ("test-time-registers:count=1.5", "'1.5': expected a whole number"),
        ("test-time-registers:count=0", "count was given as 0: expected 1 or more"),
        ("test-time-registers:top=0", "top was given as 0: expected 1 or more"),
        ("test-time-registers:threshold=0", "threshold was given as 0.0: expected a norm above 0"),
        ("clip:threshold=nan", "threshold was given as nan: expected a norm above 0"),
        ("zero:threshold=3", "threshold was given for registers: it is one of patches"),
        ("skip:scale=2", "scale was given as 2.0: expected 0 .closed. to 1"),
    ],
)
def test_settings(text, message):
    with pytest.raises(UsageError, match=message):
        parse_remedy(text)


@pytest.mark.parametrize("by", ["interpolate", "clip"])
def test_patches_alone_are_repaired(by):
    with pytest.raises(UsageError, match=f"{by} was asked for registers: it repairs patches"):
        ReplaceTokens(by=by)


@pytest.mark.parametrize(
    "text",
    ["zero", "mean", "mask", "clip:threshold=3", "interpolate", "skip", "position-mean"],
)
def test_layers_that_the_model_does_not_have(text):
    vit = wrap("timm/dinov2_reg")
    join = "," if ":" in text else ":"
    remedy = parse_remedy(f"{text}{join}layers=1+7")
    message = "VisionTransformer has no block 7: choose from 0 to 1"
    with pytest.raises(UsageError, match=message):
        remedy.fitted(vit, lambda: [draw_pixels(vit, 2)])
    if text not in {"mean", "interpolate", "position-mean"}:
        with pytest.raises(UsageError, match=message):
            apply(remedy, vit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("interpolate", "no high-norm patches were found in 2 images at depth 2 of "),
        ("test-time-registers", "at depth 1, 2, 3 of .*; give depth and threshold"),
        ("test-time-registers:depth=2", "at depth 2 of .*; give depth and threshold"),
        ("test-time-registers:depth=2,threshold=99", "norm of 99.0 or more at depth 2 of .* lower"),
        ("test-time-registers:depth=4", "depth was given as 4: expected one from 1 to 3"),
        ("test-time-registers:depth=0,threshold=1", "as 0: expected one from 1 to 3"),
        ("test-time-registers:depth=1,threshold=1,highest=3", "as 3: expected a block from 0 to 2"),
    ],
)
def test_no_high_norm_patches(text, message):
    vit, pixels = wrap_model(write_model(depth=3)), draw_images([()] * 2)
    with pytest.raises(UsageError, match=message):
        parse_remedy(text).fitted(vit, lambda: [pixels])


@pytest.mark.parametrize(
    "text", ["mean", "interpolate", "test-time-registers", "position-mean", "sinks"]
)
def test_no_images(text):
    with pytest.raises(UsageError, match="no images to measure the remedy on: give some"):
        parse_remedy(text).fitted(wrap("timm/dinov2_reg"), list)


@pytest.mark.parametrize("text", ["mean", "noise", "shuffle", "skip:by_mean=true", "position-mean"])
def test_nothing_is_measured_on_one_image(text):
    vit = wrap("timm/dinov2_reg")
    pixels = draw_pixels(vit, 1).float()
    with pytest.raises(UsageError, match="and one was given: give two or more different"):
        parse_remedy(text).fitted(vit, lambda: [pixels, pixels])


@pytest.mark.parametrize(
    "text", ["mean", "clip", "mask:tokens=high_norm", "skip:by_mean=true", "position-mean"]
)
def test_measured_first(text):
    with pytest.raises(UsageError, match="is measured on images first: call fitted"):
        apply(parse_remedy(text), wrap("timm/dinov2_reg"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("timm/dinov2", "zero", "has no registers to edit: its tokens are cls, patches"),
        ("timm/siglip", "zero:tokens=cls", "has no .CLS. token to edit: its tokens are patches"),
        ("timm/siglip", "skip", "has no .CLS. token to edit: its tokens are patches"),
        ("timm/vit_gap", "mask:tokens=cls", "has no .CLS. token to edit: its tokens are patches"),
        (
            "timm/siglip",
            "mask:tokens=high_norm,threshold=1,rows=cls",
            "is by attention pooling: this edit is one of the .CLS. row",
        ),
    ],
)
def test_tokens_that_the_model_does_not_have(name, text, message):
    with pytest.raises(UnsupportedModelError, match=message):
        apply(parse_remedy(text), wrap(name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/vit_gap", "is an average of its tokens, which would change with new tokens"),
        ("timm/vit_all", "is an average of its tokens, which would change with new tokens"),
        ("transformers/beit", "adds position biases to all pairs of tokens"),
    ],
)
def test_models_that_take_no_new_tokens(name, message):
    remedy = TestTimeRegisters(neurons=Neurons((Neuron(0, 1, 1.0),), 1))
    with pytest.raises(UnsupportedModelError, match=message):
        apply(remedy, wrap(name))


def test_neurons_of_registers_that_the_model_does_not_have():
    vit = wrap("timm/dinov2")
    read = [draw_pixels(vit, 1).float()].copy
    with pytest.raises(UnsupportedModelError, match="has no registers to edit"):
        parse_remedy("test-time-registers:at=registers").fitted(vit, read)


@pytest.mark.parametrize("name", ["mean:tokens=cls", "shuffle:tokens=cls", "position-mean"])
def test_images_of_another_size_than_the_measured_ones_are_refused(name):
    vit = tiny_vit("dinov2_reg")
    small, large = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 32, 32)
    remedy = parse_remedy(name).fitted(vit, lambda: [small])
    with remedy.applied(vit) as edited:
        edited.run(small)
        with pytest.raises(UsageError, match=r"with 9 tokens, and these have 21"):
            edited.run(large)
