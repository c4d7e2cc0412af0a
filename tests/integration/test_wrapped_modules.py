"""Models within wrappers are opened, a note says so, and numbers are those of the bare model."""

import copy

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn

from vitscope import audit, decompose, explain, wrap_model
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.training import TrainingAudit


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3).eval()


class Classifier(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.head = nn.Linear(2, 2)


WRAPPERS = {
    "the wrapper DataParallel": nn.DataParallel,
    "the wrapper OptimizedModule (torch.compile)": torch.compile,
    "only the part backbone of Classifier": lambda module: Classifier(backbone=module),
    "only the part vit of Classifier": lambda module: Classifier(vit=module, backbone=None),
}


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("note", WRAPPERS)
def test_wrappers_are_opened(module, pixels, note):
    vit = wrap_model(WRAPPERS[note](module))
    assert vit.module is module
    assert vit.info.notes[-1].startswith(note)
    expected = decompose(wrap_model(module), pixels).contributions
    assert torch.equal(decompose(vit, pixels).contributions, expected)


def test_wrappers_within_wrappers_are_opened_one_by_one(module):
    vit = wrap_model(nn.DataParallel(Classifier(backbone=torch.compile(module))))
    assert vit.module is module
    assert [note.split()[2] for note in vit.info.notes] == [
        "DataParallel",
        "part",
        "OptimizedModule",
    ]


def test_what_accelerate_prepared_is_taken(module, pixels):
    prepared = Accelerator(cpu=True).prepare(copy.deepcopy(module))
    expected = decompose(wrap_model(module), pixels).contributions
    assert torch.equal(decompose(wrap_model(prepared), pixels).contributions, expected)


def test_the_note_is_in_the_result_and_training_takes_it_too(module):
    images = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8)
    notes = audit(Classifier(vit=module), images, gallery=0).summary.model.notes
    assert any("the part vit" in note for note in notes)
    notes = TrainingAudit(images).run(torch.compile(module)).summary.model.notes
    assert any("torch.compile" in note for note in notes)


@pytest.mark.parametrize(
    "make", [lambda m: Classifier(backbone=m, vit=copy.deepcopy(m)), lambda m: Classifier(body=m)]
)
def test_what_is_not_clear_is_refused(module, make):
    with pytest.raises(UnsupportedModelError, match=r"Classifier is not a model .* give that part"):
        wrap_model(make(module))


@pytest.mark.parametrize("merged", [False, True])
def test_adapters_of_peft_are_merged_into_a_copy(module, pixels, merged):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["qkv", "proj", "fc1"], init_lora_weights=False)
    tuned = peft.get_peft_model(copy.deepcopy(module), config)
    with torch.no_grad():
        feature = tuned.eval()(pixels)
    if merged:
        tuned.merge_adapter()
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    vit = wrap_model(tuned)
    assert "merged into a copy" in vit.info.notes[-1]
    decompose(vit, pixels)  # balances against the merged model
    with torch.no_grad():
        found = vit.module(pixels)
    # float32: x W + x A B beside x (W + A B).
    torch.testing.assert_close(found, feature, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())


def look(module, args, output=None):
    """A hook, before or after a forward."""


class Tuned(nn.Module):
    """As PEFT's models: `merge_and_unload` gives the model without the layers around its parts."""

    def __init__(self, base_model):
        super().__init__()
        self.base_model = base_model

    def merge_and_unload(self):
        for block in self.base_model.blocks:
            block.attn.proj = block.attn.proj.base_layer
        return self.base_model


class TunedLayer(nn.Module):
    """As PEFT's layers: what it is around, and whether it adds to it."""

    disable_adapters = False

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer


for _kind in (Tuned, TunedLayer):
    _kind.__module__ = "peft.stand_in"


@pytest.fixture
def tuned(module):
    inner = copy.deepcopy(module)
    inner.disable_adapters = lambda: None  # which models of transformers have as a method
    inner.blocks[0].attn.proj = TunedLayer(inner.blocks[0].attn.proj)
    return Tuned(inner)


def test_adapters_that_are_switched_off_are_refused(tuned):
    assert "merged into a copy" in wrap_model(tuned).info.notes[-1]
    tuned.base_model.blocks[0].attn.proj.disable_adapters = True
    with pytest.raises(UnsupportedModelError, match="adapters of Tuned are switched off"):
        wrap_model(tuned)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_hooks_on_a_wrapper_are_refused_and_those_inside_are_kept(module, wrap, register):
    inner = copy.deepcopy(module)
    getattr(inner, register)(look)
    wrapper = wrap(inner)
    assert list(wrap_model(wrapper).module.modules()) == list(inner.modules())
    getattr(wrapper, register)(look)
    for outer in (wrapper, Classifier(backbone=wrapper)):
        with pytest.raises(UnsupportedModelError, match=r"hooks of its own \(look\)"):
            wrap_model(outer)


@pytest.mark.parametrize("path", ["", "base_model.blocks.0.attn.proj"])
def test_hooks_on_what_merging_removes_are_refused(tuned, path):
    tuned.get_submodule(path).register_forward_hook(look)
    with pytest.raises(UnsupportedModelError, match=r"wrapper Tuned.* hooks of its own \(look\)"):
        wrap_model(tuned)


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, lambda m: Classifier(vit=m)])
def test_a_module_that_is_looked_at_stays_in_the_mode_that_it_is_in(module, pixels, wrap):
    model = wrap(copy.deepcopy(module)).train()
    images = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8)
    next(part for part in model.modules() if isinstance(part, nn.LayerNorm)).eval()  # frozen
    modes = [part.training for part in model.modules()]
    audit(model, images, gallery=0)
    explain(model, images[0])
    decompose(model, pixels)
    assert [part.training for part in model.modules()] == modes
    with pytest.raises(UsageError, match="layer 7"):
        decompose(model, pixels, layer=7)
    assert [part.training for part in model.modules()] == modes
