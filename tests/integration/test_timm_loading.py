"""Loading timm models by name: from the hub's cache and from files, without a network."""

import math

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor

from vitscope.errors import (
    ModelUnreachableError,
    UnknownModelError,
    UnsupportedModelError,
    UsageError,
)
from vitscope.models import hub
from vitscope.models import timm as vitscope_timm
from vitscope.models.timm import is_clip_tower, load_timm, make_timm_adapter
from vitscope.testing.randomize import randomize

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


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_fetching")
class TestRefusedBeforeAnythingIsFetched:
    def test_unknown_name(self):
        with pytest.raises(UnknownModelError, match=r"vit_small_patch14_dinov2\.lvd142m"):
            load_timm("vit_small_patch14_dinov2.lvd142")

    def test_nothing_like_it(self):
        with pytest.raises(UnknownModelError, match="list_models"):
            load_timm("@@@@")

    def test_repository_of_strangers(self):
        with pytest.raises(UnknownModelError):
            load_timm("hf-hub:someone/something")

    def test_no_transformer(self):
        with pytest.raises(UnsupportedModelError, match="resnet18"):
            load_timm("resnet18")

    def test_average_pooling_without_cls(self):
        with pytest.raises(UnsupportedModelError, match="average of the patches"):
            load_timm("vit_little_patch16_reg4_gap_256.sbb_in1k")

    def test_unsupported_setting(self):
        with pytest.raises(UnsupportedModelError, match="scale_attn_inner"):
            load_timm("eva02_base_patch16_clip_224.merged2b")

    def test_no_weights_published(self):
        with pytest.raises(UnknownModelError, match=r"timm:vit_small_patch16_36x1_224@checkpoint"):
            load_timm("vit_small_patch16_36x1_224")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_base_patch32_clip_224.openai", True),
        ("vit_base_patch16_clip_224.laion2b_ft_in12k", False),
        ("vit_base_patch16_clip_224.openai_ft_in1k", False),
        ("vit_pe_core_tiny_patch16_384.fb", True),
        ("eva_giant_patch14_336.clip_ft_in1k", False),
        ("vit_small_patch14_dinov2.lvd142m", False),
        ("deit3_small_patch16_224.fb_in1k", False),
    ],
)
def test_projection_is_told_from_classifier(name, expected):
    assert is_clip_tower(make_on_meta(name)) is expected


@pytest.mark.parametrize(
    ("name", "size", "resize", "crop_pct", "red"),
    [
        ("vit_small_patch14_dinov2.lvd142m", 518, "cover", 1.0, 0.485),
        ("deit3_small_patch16_224.fb_in1k", 224, "cover", 0.9, 0.485),
        ("vit_base_patch32_clip_quickgelu_224.openai", 224, "cover", 0.9, 0.48145466),
        ("eva02_base_patch14_448.mim_in22k_ft_in1k", 448, "cover", 1.0, 0.48145466),
        ("eva02_base_patch14_448.mim_in22k_ft_in22k", 448, "stretch", 1.0, 0.48145466),
        ("vit_so400m_patch14_siglip_384.webli", 378, "cover", 0.9, 0.5),
    ],
)
def test_preprocessing_of_known_names(name, size, resize, crop_pct, red):
    preprocessing = make_timm_adapter(make_on_meta(name)).preprocessing
    assert preprocessing.size == (size, size)
    assert preprocessing.resize == resize
    assert preprocessing.crop_fraction == pytest.approx(size / math.floor(size / crop_pct))
    assert preprocessing.mean[0] == pytest.approx(red)


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


def test_other_classifier_is_ignored(tmp_path, weights):
    path = save(tmp_path, weights | {"head.weight": torch.zeros(7, 64)})
    assert_filled(load_timm(TINY, path), weights)


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
    assert "it lacks blocks.0.attn.proj.bias" in str(caught.value)
    assert "of another shape are blocks.0.norm1.bias" in str(caught.value)
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
    with pytest.raises(UsageError, match=r"it lacks head\.weight"):
        load_timm(name, save(tmp_path, own))


def test_models_resampled_by_name_take_no_file(tmp_path, weights):
    with pytest.raises(UnsupportedModelError, match="flexivit_small"):
        load_timm("flexivit_small.1200ep_in1k", save(tmp_path, weights))
