"""Loading timm models by name: from the hub's cache and from files, without a network."""

import re

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor

from vitscope.adapters import timm as vitscope_timm
from vitscope.adapters.timm import load_timm, make_timm_adapter
from vitscope.errors import (
    ModelUnreachableError,
    UnsupportedModelError,
    UsageError,
)
from vitscope.testing.randomize import randomize
from vitscope.weights import hub

TINY = "test_vit.r160_in1k"
"""timm's own test model: 160 px, patch 16, a class token, 1000 classes."""


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return randomize(timm.create_model(TINY)).state_dict()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise LocalEntryNotFoundError("Cannot find the requested files in the local cache.\nMore.")

    monkeypatch.setattr(hub, "snapshot_download", refuse)


@pytest.fixture
def no_fetching(monkeypatch):
    def fail(*_):
        pytest.fail("weights were asked for")

    monkeypatch.setattr(vitscope_timm, "find_snapshot", fail)


def save(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    return path


def assert_filled(adapter, weights, leave=("head.",)):
    found = adapter.module.state_dict()
    kept = [name for name in weights if not name.startswith(leave)]
    assert kept
    assert all(torch.equal(found[name], weights[name]) for name in kept)


def make_on_meta(name):
    with torch.device("meta"):
        return timm.create_model(name, dynamic_img_size=True)


# --- weights of the hub ---------------------------------------------------------------------------


@pytest.mark.usefixtures("no_network")
def test_no_network_is_one_line():
    with pytest.raises(ModelUnreachableError, match=r"timm/test_vit\.r160_in1k") as caught:
        load_timm(TINY)
    assert "\n" not in str(caught.value)


def test_cached_weights(tmp_path, monkeypatch, weights):
    save_file(weights, tmp_path / "model.safetensors")
    asked = []

    def find(repository, *_):
        asked.append(repository)
        return tmp_path

    monkeypatch.setattr(vitscope_timm, "find_snapshot", find)
    adapter = load_timm(TINY)
    assert asked == ["timm/test_vit.r160_in1k"]
    assert_filled(adapter, weights, leave=())
    assert adapter.info.id == f"timm:{TINY}"
    assert adapter.info.source == "Hugging Face hub, timm/test_vit.r160_in1k"
    assert adapter.make_layout(160, 176).grid == (10, 11)


def test_dynamic_size_leaves_the_native_size_as_it_was(weights):
    pixels = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    features = []
    for dynamic in (False, True):
        module = timm.create_model(TINY, dynamic_img_size=dynamic)
        module.load_state_dict(weights)
        with torch.no_grad():
            features.append(make_timm_adapter(module).run(pixels))
    torch.testing.assert_close(*features, rtol=0, atol=0)


# --- weights of a file ----------------------------------------------------------------------------


def test_self_distillation_checkpoint(tmp_path, weights):
    teacher = {f"backbone.{k}": v for k, v in weights.items() if not k.startswith("head.")}
    student = {f"module.{k}": torch.zeros_like(v) for k, v in teacher.items()}
    heads = {"head.mlp.0.weight": torch.zeros(2, 2)}
    path = save(tmp_path, {"student": student | heads, "teacher": teacher | heads})
    adapter = load_timm(TINY, path)
    assert_filled(adapter, weights)
    assert adapter.info.id == f"timm:{TINY}@{path}"
    assert adapter.info.source == str(path)
    assert str(adapter.preprocessing.mean) in adapter.info.notes[-1]


@pytest.mark.parametrize("name", [TINY, "deit_tiny_distilled_patch16_224"])
def test_a_file_is_the_same_model_whenever_it_is_loaded(tmp_path, monkeypatch, name):
    small = {"embed_dim": 32, "depth": 1, "num_heads": 2, "dynamic_img_size": True}
    monkeypatch.setattr(vitscope_timm, "_create", lambda name: timm.create_model(name, **small))
    path = save(tmp_path, randomize(timm.create_model(name, **small)).state_dict())
    first, second = (load_timm(name, path) for _ in range(2))
    assert first.hashed().weights_hash == second.hashed().weights_hash
    assert first.describe_behaviour() == second.describe_behaviour()


@pytest.mark.parametrize("name", ["vit_base_patch16_224.mae", "vit_base_patch32_clip_224.openai"])
def test_what_is_true_of_the_tags_weights_is_not_said_of_a_file(tmp_path, monkeypatch, name):
    # As iBOT's large model, which is loaded by MAE's tag for its preprocessing's sake.
    small = {"embed_dim": 32, "depth": 1, "num_heads": 2, "dynamic_img_size": True}
    module = timm.create_model(name, **small)
    monkeypatch.setattr(vitscope_timm, "_create", lambda _: timm.create_model(name, **small))
    adapter = load_timm(name, save(tmp_path, module.state_dict()))
    assert [note.partition(";")[0] for note in adapter.info.notes] == [
        "the weights come from a file"
    ]


def test_other_classifier_is_ignored(tmp_path, weights):
    path = save(tmp_path, weights | {"head.weight": torch.zeros(7, 64)})
    assert_filled(load_timm(TINY, path), weights)


@pytest.mark.parametrize("classes", [7, 1000])
def test_the_classifier_of_a_file_is_kept(tmp_path, weights, classes):
    head = {"head.weight": torch.randn(classes, 64), "head.bias": torch.randn(classes)}
    adapter = load_timm(TINY, save(tmp_path, weights | head))
    assert_filled(adapter, weights)
    assert torch.equal(adapter.classifier.head.weight, head["head.weight"])
    assert adapter.classifier.num_classes == classes
    without = {k: v for k, v in weights.items() if not k.startswith("head.")}
    assert load_timm(TINY, save(tmp_path, without)).classifier is None


def test_position_embeddings_of_another_size_are_resampled(tmp_path, weights):
    larger = timm.create_model(TINY, img_size=224).state_dict()
    constant = weights | {"pos_embed": torch.full_like(larger["pos_embed"], 0.25)}
    adapter = load_timm(TINY, save(tmp_path, constant))
    torch.testing.assert_close(
        adapter.module.pos_embed.detach(), torch.full_like(weights["pos_embed"], 0.25)
    )


def test_layer_scales_of_deit_are_renamed(tmp_path):
    name = "deit3_small_patch16_224.fb_in1k"
    own = {k: torch.randn(v.shape) for k, v in make_on_meta(name).state_dict().items()}
    renamed = {
        k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for k, v in own.items()
    }
    assert_filled(load_timm(name, save(tmp_path, {"model": renamed})), own)


def test_checkpoint_that_does_not_fit(tmp_path, weights):
    narrower = {k: v[:2] for k, v in weights.items() if "norm1" in k}
    with pytest.raises(UsageError, match="does not fit VisionTransformer") as caught:
        load_timm(TINY, save(tmp_path, narrower))
    assert "missing: blocks.0.attn.proj.bias" in str(caught.value)
    assert "of another shape: blocks.0.norm1.bias" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_position_embeddings_that_are_no_grid(tmp_path, weights):
    odd = weights | {"pos_embed": torch.zeros(1, 1 + 17, 64)}
    with pytest.raises(UsageError, match="does not fit") as caught:
        load_timm(TINY, save(tmp_path, odd))
    assert "\n" not in str(caught.value)


def test_clip_tower_needs_its_projection(tmp_path):
    name = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
    own = {k: torch.zeros(v.shape) for k, v in make_on_meta(name).state_dict().items()}
    del own["head.weight"]
    with pytest.raises(UsageError, match=r"missing: head\.weight"):
        load_timm(name, save(tmp_path, own))


def test_models_resampled_by_name_take_no_file(tmp_path, weights):
    with pytest.raises(UnsupportedModelError, match="flexivit_small"):
        load_timm("flexivit_small.1200ep_in1k", save(tmp_path, weights))


def test_averaged_weights_are_taken_and_the_choice_is_noted(tmp_path, weights):
    others = {name: torch.zeros_like(value) for name, value in weights.items()}
    path = save(tmp_path, {"state_dict": others, "state_dict_ema": weights})
    adapter = load_timm(TINY, path)
    assert_filled(adapter, weights)
    assert "used 'state_dict_ema', not 'state_dict'" in adapter.info.notes[0]


def test_layer_scale_that_the_architecture_lacks_is_built_in(tmp_path):
    """As of UNI: a plain architecture that was trained with init_values."""
    scaled = randomize(timm.create_model(TINY, init_values=0.1))
    path = save(tmp_path, scaled.state_dict())
    adapter = load_timm(TINY, path)
    assert_filled(adapter, scaled.state_dict())
    assert any("layer scale" in note for note in adapter.info.notes)
    pixels = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = scaled.eval().forward_head(scaled.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(adapter.run(pixels), expected, rtol=1e-5, atol=1e-5)


def test_position_tables_that_were_resampled_are_noted(tmp_path, weights):
    larger = weights | {"pos_embed": torch.zeros(1, 1 + 14 * 14, 64)}
    notes = load_timm(TINY, save(tmp_path, larger)).info.notes
    assert "position table of 197 entries was resampled to 101" in notes[0]
    assert len(load_timm(TINY, save(tmp_path, weights)).info.notes) == 1


def test_a_position_table_with_a_place_for_cls_where_there_is_none(tmp_path):
    name = "deit3_small_patch16_224.fb_in1k"
    own = {k: torch.zeros(v.shape) for k, v in make_on_meta(name).state_dict().items()}
    table = {"pos_embed": torch.zeros(1, 197, 384)}
    with pytest.raises(UsageError, match="has 197 entries, the architecture's 196") as caught:
        load_timm(name, save(tmp_path, own | table))
    assert "shape '" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_patches_of_another_size_are_not_resampled(tmp_path, weights):
    other = weights | {"patch_embed.proj.weight": torch.zeros(64, 3, 14, 14)}
    with pytest.raises(UsageError, match=r"patches are of 14 x 14 px, the architecture's of 16 x"):
        load_timm(TINY, save(tmp_path, other))


def test_weights_for_greyscale_images_are_refused(tmp_path):
    grey = timm.create_model(TINY, in_chans=1).state_dict()
    with pytest.raises(UnsupportedModelError, match="images with 1 channels: expected 3"):
        load_timm(TINY, save(tmp_path, grey))


def test_weights_of_something_else_are_told_so(tmp_path):
    words = "does not fit VisionTransformer: .*give the state_dict of the Vision Transformer alone"
    with pytest.raises(UsageError, match=words):
        load_timm(TINY, save(tmp_path, {"layer1.0.conv1.weight": torch.zeros(1)}))


def test_chunked_blocks_behind_a_trainers_prefix(tmp_path, weights):
    chunked = {
        "teacher.backbone." + re.sub(r"^blocks\.(\d+)", r"blocks.0.\1", name): value
        for name, value in weights.items()
    }
    student = {f"student.backbone.{name}": torch.zeros_like(v) for name, v in weights.items()}
    assert_filled(load_timm(TINY, save(tmp_path, {"model": chunked | student})), weights)


def test_the_names_of_dinov2s_own_code_are_understood(tmp_path):
    """Its position table has a place for [CLS], which timm adds to the token itself."""
    name, small = "vit_small_patch14_reg4_dinov2", {"depth": 1}
    own = randomize(timm.create_model(name, num_classes=0, **small)).state_dict()
    published = {key.replace("reg_token", "register_tokens"): v for key, v in own.items()}
    table = torch.cat([torch.zeros(1, 1, 384), own["pos_embed"]], dim=1)
    published |= {"pos_embed": table, "mask_token": torch.zeros(1, 384)}
    wrapped = {"teacher": {f"backbone.{key}": value for key, value in published.items()}}
    with pytest.MonkeyPatch.context() as patch:
        create = vitscope_timm._create
        patch.setattr(vitscope_timm, "_create", lambda name, **k: create(name, **small, **k))
        adapter = load_timm(name, save(tmp_path, wrapped))
    assert_filled(adapter, own)
    assert adapter.info.num_registers == 4
    assert [note.partition(";")[0] for note in adapter.info.notes] == [
        "the weights come from a file"
    ]
