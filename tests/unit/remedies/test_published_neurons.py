"""The published neurons of test-time registers, in the published arithmetic."""

from functools import partial

import pytest
import timm
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

import hub_twin
from vitscope import wrap_model
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.remedies import registers
from vitscope.remedies.editor import Editor
from vitscope.remedies.registry import parse_remedy
from vitscope.testing.randomize import randomize

PLANTED = {0: (5, 60, 7), 1: (100,)}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
TIMM = "vit_large_patch14_dinov2"


def act_as_published(numbers, _, __, activations):
    """The published hook in other words: of the first image, the last token takes the extreme."""
    image = activations[0]
    seen = [float(token[number]) for token in image for number in numbers]
    extreme = max(seen, key=abs)
    for number in numbers:
        for token in range(1, len(image) - 1):
            image[token, number] = 0
        image[-1, number] = extreme
    return activations


def make_published(weights):
    """A model as the fork makes it: a last token of zeros, and hooks on the activations."""
    module = hub_twin.DinoVisionTransformer(registers_last=True, depth=2).double().eval()
    module.load_state_dict(weights)
    module.num_register_tokens = 1
    for layer, numbers in PLANTED.items():
        act = module.blocks[layer].mlp.act
        act.register_forward_hook(partial(act_as_published, numbers))
    return module


def test_the_published_model_is_a_remedy(monkeypatch):
    module = randomize(hub_twin.DinoVisionTransformer(depth=2)).double()
    vit = wrap_model(module)
    monkeypatch.setattr(registers, "_take_published", lambda _: PLANTED)
    pixels = torch.randn(3, 3, 28, 42, generator=torch.Generator().manual_seed(2)).double()
    published = make_published(module.state_dict())
    with torch.no_grad():
        expected = torch.cat([published(image) for image in pixels.split(1)])
    remedy = parse_remedy("test-time-registers:published=true,compat=released")
    assert remedy.fitted(vit, list) is remedy  # no images are read
    assert remedy.label == "test-time-registers:published=true,compat=released"
    with remedy.applied(vit) as edited:
        found = edited.run(pixels)
    assert (found - vit.run(pixels)).norm(dim=1).min() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


DINOV2_L = {
    "transformers": lambda: Dinov2Model(Dinov2Config(**LARGE, image_size=518)),
    "timm": lambda: timm.create_model(TIMM, weight_init="skip"),
    "torch.hub": lambda: hub_twin.DinoVisionTransformer(
        img_size=518, patch_size=14, embed_dim=1024, depth=24, num_heads=16
    ),
}


def wrap_without_weights(build):
    with torch.device("meta"):
        return wrap_model(build())


@pytest.mark.parametrize("library", DINOV2_L)
def test_dinov2_large_of_every_library_takes_them(library):
    vit = wrap_without_weights(DINOV2_L[library])
    edits = {}
    editor = Editor(vit, "published")
    editor.edit_neurons = lambda layer, edit: edits.__setitem__(layer, edit.args[0])
    parse_remedy("test-time-registers:published=true").edit(editor)
    assert [len(edits[layer]) for layer in range(12, 18)] == [1, 1, 8, 9, 9, 17]
    assert sum(map(sum, edits.values())) == 94_828
    assert set(edits) == set(range(12, 18))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: CLIPVisionModel(CLIPVisionConfig(**LARGE, intermediate_size=4096)),
            "CLIPVisionModel has 24 blocks of width 1024 with no layer scale",
        ),
        (
            lambda: timm.create_model(TIMM.replace("dinov2", "reg4_dinov2"), weight_init="skip"),
            "VisionTransformer has 24 .* with a layer scale .* patches of 14 px and 4 registers",
        ),
        (
            lambda: hub_twin.DinoVisionTransformer(),
            "has 3 blocks of width 32 with a layer scale and 128 neurons, patches of 7 px and 0",
        ),
    ],
)
def test_other_models_are_refused(build, message):
    vit = wrap_without_weights(build)
    remedy = parse_remedy("test-time-registers:published=true")
    with pytest.raises(UnsupportedModelError, match=message):
        remedy.edit(Editor(vit, "published"))


@pytest.mark.parametrize("setting", ["top=3", "depth=23", "highest=17", "threshold=150"])
def test_settings_of_the_search_are_refused(setting):
    with pytest.raises(UsageError, match=f"{setting.split('=')[0]} was given with published=true"):
        parse_remedy(f"test-time-registers:published=true,{setting}")
