"""What timm's names say of their weights, before anything is fetched."""

import math
import re

import pytest
import timm
import torch

from vitscope.adapters import timm as vitscope_timm
from vitscope.adapters.timm import is_clip_tower, load_timm, make_timm_adapter
from vitscope.errors import (
    UnknownModelError,
    UnsupportedModelError,
    UsageError,
)


@pytest.fixture
def no_fetching(monkeypatch):
    def fail(*_):
        pytest.fail("weights were asked for")

    monkeypatch.setattr(vitscope_timm, "find_snapshot", fail)


def make_on_meta(name):
    with torch.device("meta"):
        return timm.create_model(name, dynamic_img_size=True)


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

    def test_unsupported_setting(self):
        with pytest.raises(UnsupportedModelError, match="scale_attn_inner"):
            load_timm("eva02_base_patch16_clip_224.merged2b")

    def test_tokens_of_several_teachers(self):
        with pytest.raises(
            UnsupportedModelError, match=r"radio_v3.* teachers.*\(RADIO\)"
        ) as caught:
            load_timm("vit_base_patch16_radio_v3.c_radio")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "native"),
        [
            ("vit_base_patch32_clip_224.openai", "vit_base_patch32_clip_quickgelu_224.openai"),
            ("vit_large_patch14_clip_224.dfn2b", "vit_large_patch14_clip_quickgelu_224.dfn2b"),
            (
                "vit_base_patch16_clip_224.metaclip_400m",
                "vit_base_patch16_clip_quickgelu_224.metaclip_400m",
            ),
        ],
    )
    def test_weights_trained_with_another_activation(self, name, native):
        with pytest.raises(UsageError, match=f"load timm:{re.escape(native)}$") as caught:
            load_timm(name)
        assert "\n" not in str(caught.value)

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


def test_every_weight_that_timm_says_is_natively_quickgelu_is_found():
    # timm says so in a note of its own on the weights' settings.
    plain = [name for name in timm.list_pretrained("vit_*_clip_*") if "quickgelu" not in name]
    native = {name for name in plain if "QuickGELU" in str(timm.get_pretrained_cfg(name).notes)}
    assert len(native) > 10
    small = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    notes = {name: make_timm_adapter(timm.create_model(name, **small)).info.notes for name in plain}
    assert {name for name in plain if "QuickGELU" in str(notes[name])} == native


def test_weights_under_the_name_of_their_activation_need_no_note():
    notes = make_timm_adapter(make_on_meta("vit_base_patch32_clip_quickgelu_224.openai")).info.notes
    assert notes == ()


def test_a_wrapped_model_with_the_other_activation_says_so():
    wrapped = make_timm_adapter(make_on_meta("vit_base_patch32_clip_224.openai"))
    assert "build vit_base_patch32_clip_quickgelu_224.openai" in wrapped.info.notes[0]
    with torch.device("meta"):
        mended = timm.create_model("vit_base_patch32_clip_224.openai", act_layer="quick_gelu")
    assert make_timm_adapter(mended).info.notes == ()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_base_patch16_224.mae", "MAE never trains its [CLS] token"),
        ("eva02_tiny_patch14_224.mim_in22k", "masked image modelling never trains its [CLS]"),
        ("eva02_tiny_patch14_336.mim_in22k_ft_in1k", None),
        ("vit_base_patch16_224.dino", None),
    ],
)
def test_cls_token_that_was_never_trained_is_noted(name, words):
    notes = make_timm_adapter(make_on_meta(name)).info.notes
    found = [note for note in notes if "never trains" in note]
    assert len(found) == (words is not None)
    assert all(note.startswith(words) for note in found)


@pytest.mark.parametrize(
    "name",
    [
        "vit_little_patch16_reg4_gap_256",
        "vit_base_patch16_siglip_gap_224",
        "vit_medium_patch16_rope_reg1_gap_256",
    ],
)
def test_names_of_averaged_models_are_read(name):
    adapter = make_timm_adapter(make_on_meta(name))
    assert adapter.info.global_feature == "average"
