"""Folders written by `save_pretrained`: what is loaded of them."""

import json
import re

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import (
    Aimv2Config,
    Aimv2Model,
    BeitConfig,
    BeitForImageClassification,
    BeitModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
)

from saved_models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PIXELS,
    change_config,
    run,
    run_tiny,
    save_dinov2,
)
from tiny_configs import SIZE, TEXT
from vitscope.adapters.transformers import load_transformers, make_transformers_adapter
from vitscope.images.preprocessing import Preprocessing
from vitscope.testing.randomize import randomize
from vitscope.testing.tiny_transformers import AVERAGED_TRANSFORMERS, TINY_TRANSFORMERS

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture
def dinov2(tmp_path):
    return save_dinov2(tmp_path)


def test_a_saved_model_comes_back_with_its_preprocessing(dinov2):
    adapter = load_transformers(str(dinov2))
    assert torch.equal(run(adapter), run_tiny("dinov2"))
    assert adapter.preprocessing == Preprocessing(
        size=(32, 32),
        resize="cover",
        crop_fraction=0.8,
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        pipeline="transformers",
    )
    assert (adapter.info.id, adapter.info.source) == (str(dinov2), "a local folder")
    assert adapter.info.notes == ()
    assert adapter.parameter.dtype == torch.float32


def test_a_cached_repository_is_loaded_and_named_with_its_revision(dinov2, tmp_path, monkeypatch):
    revision, cache = "0123456789ab" + 28 * "c", tmp_path / "cache"
    folder = cache / "models--someone--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / revision).symlink_to(dinov2, target_is_directory=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    adapter = load_transformers("someone/model")
    assert torch.equal(run(adapter), run_tiny("dinov2"))
    assert adapter.info.id == "someone/model"
    assert adapter.info.source == "Hugging Face someone/model, revision 0123456789ab"


def test_weights_are_loaded_in_float32_whatever_they_were_saved_in(dinov2):
    TINY_TRANSFORMERS["dinov2"]().to(torch.bfloat16).save_pretrained(dinov2)
    assert load_transformers(str(dinov2)).parameter.dtype == torch.float32


def test_a_folder_without_image_processor_gets_the_customary_one_and_a_note(dinov2):
    (dinov2 / "preprocessor_config.json").unlink()
    adapter = load_transformers(str(dinov2))
    assert adapter.preprocessing.size == (224, 224)
    assert adapter.preprocessing.crop_fraction == 224 / 256
    assert "preprocessing" in adapter.info.notes[0]


def test_a_pytorch_file_is_read_as_data(dinov2):
    state = TINY_TRANSFORMERS["dinov2"]().state_dict()
    (dinov2 / "model.safetensors").unlink()
    torch.save(state, dinov2 / "pytorch_model.bin")
    assert torch.equal(run(load_transformers(str(dinov2))), run_tiny("dinov2"))


def test_a_whole_clip_model_gives_its_image_tower_with_projection(tmp_path, capfd):
    vision = SIZE | {"projection_dim": 12}
    config = CLIPConfig(vision_config=vision, text_config=TEXT, projection_dim=12)
    module = randomize(CLIPModel(config))
    module.save_pretrained(tmp_path)
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path)
    capfd.readouterr()
    adapter = load_transformers(str(tmp_path))
    assert capfd.readouterr() == ("", "")
    with torch.no_grad():
        assert torch.equal(run(adapter), module.get_image_features(PIXELS).pooler_output)
    assert (adapter.preprocessing.mean, adapter.preprocessing.std) == (CLIP_MEAN, CLIP_STD)
    assert adapter.preprocessing.crop_fraction == 1


def test_a_clip_tower_without_projection_stays_without(tmp_path):
    module = randomize(CLIPVisionModel(CLIPVisionConfig(**SIZE)))
    module.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = module(PIXELS).pooler_output
    assert torch.equal(run(load_transformers(str(tmp_path))), expected)


def test_a_whole_siglip_model_gives_its_image_tower(tmp_path):
    module = randomize(SiglipModel(SiglipConfig(vision_config=SIZE, text_config=TEXT)))
    module.save_pretrained(tmp_path)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    adapter = load_transformers(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(run(adapter), module.get_image_features(PIXELS).pooler_output)
    assert (adapter.preprocessing.size, adapter.preprocessing.resize) == ((32, 32), "stretch")


@pytest.mark.parametrize("head", ["its own", "none", "another"])
def test_a_classifier_gives_its_tower_and_its_trained_head(tmp_path, head):
    module = randomize(ViTForImageClassification(ViTConfig(**SIZE, num_labels=5)))
    module.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if head == "none":
        weights = {k: v for k, v in weights.items() if not k.startswith("classifier.")}
    if head == "another":
        weights["classifier.weight"] = torch.ones(7, 16)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad():
        expected = module.vit(PIXELS).last_hidden_state[:, 0]
    adapter = load_transformers(str(tmp_path))
    assert torch.equal(run(adapter), expected)
    if head == "its own":
        with torch.no_grad():
            assert torch.equal(adapter.classifier.run(PIXELS), module(PIXELS).logits)
    else:
        assert adapter.classifier is None


def test_both_heads_of_a_distilled_classifier_are_loaded(tmp_path):
    config = DeiTConfig(**SIZE, num_labels=5)
    module = randomize(DeiTForImageClassificationWithTeacher(config))
    module.save_pretrained(tmp_path)
    found = load_transformers(str(tmp_path)).classifier
    with torch.no_grad():
        assert torch.equal(found.run(PIXELS), module(PIXELS).logits)


def test_the_weights_of_a_tower_are_the_same_with_and_without_its_head(tmp_path):
    module = randomize(ViTForImageClassification(ViTConfig(**SIZE)))
    module.save_pretrained(tmp_path / "whole")
    module.vit.save_pretrained(tmp_path / "bare")
    whole, bare = (load_transformers(str(tmp_path / name)) for name in ("whole", "bare"))
    assert whole.hashed().weights_hash == bare.hashed().weights_hash
    assert whole.describe_behaviour() == bare.describe_behaviour()
    assert whole.info.num_params == bare.info.num_params


def name_as_before_version_5(key):
    key = re.sub(
        r"attention\.([qkv])_proj",
        lambda found: {
            "q": "attention.attention.query",
            "k": "attention.attention.key",
            "v": "attention.attention.value",
        }[found[1]],
        key,
    )
    return key.replace("attention.o_proj", "attention.output.dense")


@pytest.mark.parametrize("prefix", ["", "dinov2."])
def test_checkpoints_as_they_lie_on_the_hub_are_understood(dinov2, prefix):
    state = TINY_TRANSFORMERS["dinov2"]().state_dict()
    older = {prefix + name_as_before_version_5(key): value for key, value in state.items()}
    save_file(older, dinov2 / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(run(load_transformers(str(dinov2))), run_tiny("dinov2"))


def test_a_kernel_that_a_configuration_asks_for_is_not_fetched(dinov2):
    change_config(dinov2, _attn_implementation="somebody/kernel", attn_implementation="x/y")
    assert load_transformers(str(dinov2)).module.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("inner", [None, 512])
def test_the_projection_width_at_the_top_of_a_clip_is_the_models(tmp_path, inner):
    """As in LAION's repositories; transformers' own CLIPModel reads no other."""
    config = CLIPConfig(vision_config=SIZE, text_config=TEXT, projection_dim=12)
    module = randomize(CLIPModel(config))
    module.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["vision_config"].pop("projection_dim", None)
    if inner is not None:
        content["vision_config"]["projection_dim"] = inner
    (tmp_path / "config.json").write_text(json.dumps(content))
    with torch.no_grad():
        expected = module.get_image_features(PIXELS).pooler_output
    assert torch.equal(run(load_transformers(str(tmp_path))), expected)


def test_an_old_image_processor_is_read(dinov2):
    path = dinov2 / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    before = load_transformers(str(dinov2)).preprocessing
    path.write_text(json.dumps(settings | {"image_processor_type": "BitFeatureExtractor"}))
    assert load_transformers(str(dinov2)).preprocessing == before


NEWER = {
    name: build
    for name, build in (TINY_TRANSFORMERS | AVERAGED_TRANSFORMERS).items()
    if name.startswith(("msn", "metaclip", "beit", "data2vec", "internvl", "aimv2", "ijepa"))
}


@pytest.mark.parametrize("name", [*NEWER, "siglip_headless"])
def test_every_family_comes_back(tmp_path, name):
    module = (TINY_TRANSFORMERS | AVERAGED_TRANSFORMERS)[name]()
    module.save_pretrained(tmp_path)
    loaded, given = load_transformers(str(tmp_path)), make_transformers_adapter(module)
    with torch.no_grad():
        assert torch.equal(loaded.run(PIXELS), given.run(PIXELS))
    assert loaded.info.global_feature == given.info.global_feature


@pytest.mark.parametrize("kind", [BeitModel, BeitForImageClassification])
def test_beits_mean_has_its_norm_if_the_weights_do(tmp_path, kind):
    module = randomize(kind(BeitConfig(**SIZE)))
    module.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = getattr(module, "beit", module)(PIXELS).pooler_output
        assert torch.equal(load_transformers(str(tmp_path)).run(PIXELS), expected)


def test_beits_mean_without_a_norm_of_its_own(tmp_path):
    module = randomize(BeitModel(BeitConfig(**SIZE), add_pooling_layer=False))
    module.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = module(PIXELS).last_hidden_state[:, 1:].mean(dim=1)
        assert torch.equal(load_transformers(str(tmp_path)).run(PIXELS), expected)


def test_a_whole_aimv2_model_gives_its_image_tower_with_projection(tmp_path):
    module = randomize(Aimv2Model(Aimv2Config(vision_config=SIZE, text_config=TEXT)))
    module.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = module.get_image_features(PIXELS).pooler_output
        assert torch.equal(load_transformers(str(tmp_path)).run(PIXELS), expected)
