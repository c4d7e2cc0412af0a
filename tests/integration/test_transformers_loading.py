"""Folders written by `save_pretrained`: what is loaded of them, and what is refused in one line."""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from tiny_configs import SIZE, TEXT
from vitscope.errors import ModelUnreachableError, UnknownModelError, UnsupportedModelError
from vitscope.models.transformers import load_transformers
from vitscope.pictures.preprocessing import Preprocessing
from vitscope.testing.randomize import randomize
from vitscope.testing.tiny_transformers import TINY_TRANSFORMERS

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def dinov2(tmp_path):
    """A folder with a tiny DINOv2 and its image processor."""
    TINY_TRANSFORMERS["dinov2"]().save_pretrained(tmp_path)
    BitImageProcessor(
        size={"shortest_edge": 40},
        crop_size={"height": 32, "width": 32},
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    ).save_pretrained(tmp_path)
    return tmp_path


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def run(adapter, pixels=PIXELS):
    return adapter.trace(pixels, [adapter.last_layer], lambda _: None)


def refuse(folder, error, words):
    with pytest.raises(error, match=words) as caught:
        load_transformers(str(folder))
    assert "\n" not in str(caught.value)


# --- loaded ------------------------------------------------------------------------------------


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


def run_tiny(name):
    with torch.no_grad():
        return TINY_TRANSFORMERS[name]()(PIXELS).pooler_output


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


def test_a_classifier_gives_its_tower(tmp_path):
    module = randomize(ViTForImageClassification(ViTConfig(**SIZE)))
    module.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = module.vit(PIXELS).last_hidden_state[:, 0]
    assert torch.equal(run(load_transformers(str(tmp_path))), expected)


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


# --- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, "does not execute"),
        ({"model_type": "my_vit"}, "model type my_vit, expected one of clip, deit, dinov2"),
        ({"model_type": "vit_mae"}, "drops patches"),
        ({"model_type": "siglip2"}, "NaFlex"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantised"),
        ({"num_hidden_layers": 4}, "leave 18 tensors of Dinov2Model unset"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_act": "nothing"}, "nothing"),
    ],
)
def test_configurations_that_are_refused(dinov2, changes, words):
    change_config(dinov2, **changes)
    refuse(dinov2, UnsupportedModelError, words)


def test_a_model_that_classifies_averages_is_refused(tmp_path):
    config = CLIPConfig(vision_config=SIZE, text_config=TEXT)
    CLIPForImageClassification(config).save_pretrained(tmp_path)
    refuse(tmp_path, UnsupportedModelError, "average of the patches")


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_configuration(dinov2, content):
    (dinov2 / "config.json").write_text(content)
    refuse(dinov2, UnsupportedModelError, "damaged")


def test_a_folder_without_configuration(tmp_path):
    refuse(tmp_path, UnknownModelError, r"no config\.json")


def test_a_folder_without_weights(dinov2):
    (dinov2 / "model.safetensors").unlink()
    refuse(dinov2, ModelUnreachableError, r"model\.safetensors")


def test_truncated_weights(dinov2):
    path = dinov2 / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuse(dinov2, ModelUnreachableError, "cannot be read")


@pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"num_attention_heads": 3}])
def test_weights_of_another_width(dinov2, changes):
    change_config(dinov2, **changes)
    words = r"\S+ is of shape .*, not .*: expected .* that fits config\.json"
    refuse(dinov2, ModelUnreachableError, words)


def add_weights(folder, extra):
    path = folder / "model.safetensors"
    save_file(load_file(path) | extra, path, metadata={"format": "pt"})


def test_weights_that_the_tower_has_no_place_for(tmp_path):
    TINY_TRANSFORMERS["dinov2_registers"]().save_pretrained(tmp_path)
    change_config(tmp_path, model_type="dinov2", architectures=["Dinov2Model"])
    words = r"no place for 1 tensors .*\(embeddings\.register_tokens\): they belong"
    refuse(tmp_path, UnsupportedModelError, words)


@pytest.mark.parametrize("prefix", ["", "dinov2."])
def test_weights_without_a_place_are_named_up_to_three(dinov2, prefix):
    gates = {f"encoder.layer.{i}.attention.gate.weight": torch.ones(2) for i in range(4)}
    state = load_file(dinov2 / "model.safetensors") | gates
    named = {prefix + key: value for key, value in state.items()}
    save_file(named, dinov2 / "model.safetensors", metadata={"format": "pt"})
    words = r"4 tensors .*layer\.0\..*layer\.1\..*layer\.2\.attention\.gate\.weight, …\)"
    refuse(dinov2, UnsupportedModelError, words)


@pytest.mark.parametrize(
    "name", ["classifier.weight", "decoder.0.bias", "pooler.dense.weight", "dinov2.pooler.bias"]
)
def test_what_stands_on_top_of_a_tower_is_left_out(dinov2, name):
    add_weights(dinov2, {name: torch.ones(2)})
    assert torch.equal(run(load_transformers(str(dinov2))), run_tiny("dinov2"))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (DeiTForImageClassificationWithTeacher, DeiTConfig),
        (DeiTForMaskedImageModeling, DeiTConfig),
        (ViTModel, ViTConfig),
    ],
)
def test_other_heads_mask_tokens_and_poolers_are_left_out(tmp_path, kind, config):
    randomize(kind(config(**SIZE))).save_pretrained(tmp_path)
    assert load_transformers(str(tmp_path)).info.depth == 2


def test_position_indices_of_older_versions_are_left_out(tmp_path):
    config = CLIPConfig(vision_config=SIZE, text_config=TEXT)
    CLIPModel(config).save_pretrained(tmp_path)
    indices = {
        f"{kind}_model.embeddings.position_ids": torch.arange(17) for kind in ("vision", "text")
    }
    add_weights(tmp_path, indices)
    assert load_transformers(str(tmp_path)).info.depth == 2


class Executed:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_pytorch_file_is_not_executed(dinov2, tmp_path):
    (dinov2 / "model.safetensors").unlink()
    written = tmp_path / "written"
    torch.save({"x": Executed(written)}, dinov2 / "pytorch_model.bin", pickle_module=pickle)
    refuse(dinov2, ModelUnreachableError, "not executed")
    assert not written.exists()


def test_an_image_processor_of_its_own_is_refused(dinov2):
    path = dinov2 / "preprocessor_config.json"
    path.write_text(
        json.dumps({"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "a.B"}})
    )
    refuse(dinov2, UnsupportedModelError, "image processor")


# --- what people have on their disks --------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "vit", "siglip"])
def test_greyscale_models_are_refused(tmp_path, name):
    tiny = TINY_TRANSFORMERS[name]()
    grey = type(tiny)(type(tiny.config)(**tiny.config.to_dict() | {"num_channels": 1}))
    grey.save_pretrained(tmp_path)
    refuse(tmp_path, UnsupportedModelError, r"images of 1 channels \(num_channels\)")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": 0}, "patch_size=0: expected 1 or more"),
        ({"patch_size": [8, 0]}, "patch_size="),
        ({"patch_size": "8"}, "patch_size='8'"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"num_attention_heads": -2}, "num_attention_heads=-2"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000: expected 1000 or less"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"image_size": 0}, "image_size=0"),
        ({"image_size": -32}, "image_size=-32"),
        ({"num_channels": 0}, "num_channels=0"),
        ({"dtype": "evil"}, r"config\.json \(.*evil"),
        ({"hidden_act": 7}, r"config\.json"),
        ({"layer_norm_eps": "small"}, r"config\.json"),
        ({"architectures": "Dinov2Model", "model_type": "x"}, "model type x"),
        ({"architectures": [], "model_type": None}, "model type None"),
    ],
    ids=str,
)
def test_configurations_that_no_model_has(dinov2, changes, words):
    change_config(dinov2, **changes)
    refuse(dinov2, UnsupportedModelError, words)


def test_sizes_of_a_vision_tower_inside_a_whole_model_are_looked_at(tmp_path):
    CLIPModel(CLIPConfig(vision_config=SIZE, text_config=TEXT)).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["vision_config"]["patch_size"] = 0
    (tmp_path / "config.json").write_text(json.dumps(content))
    refuse(tmp_path, UnsupportedModelError, "patch_size=0")


def deny(*_, **__):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("method", ["is_dir", "is_file", "read_text"])
def test_folders_and_files_that_may_not_be_read(dinov2, monkeypatch, method):
    monkeypatch.setattr(Path, method, deny)
    refuse(dinov2, ModelUnreachableError, r"cannot be read \(Permission denied\): check its perm")


def test_a_deeply_nested_configuration(dinov2):
    (dinov2 / "config.json").write_text("[" * 100_000)
    refuse(dinov2, UnsupportedModelError, "damaged")


def test_a_lora_folder_says_what_to_do(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    refuse(tmp_path, UnsupportedModelError, r"LoRA adapter.*merge_and_unload\(\)")


def test_a_folder_of_timm_says_what_to_type(tmp_path):
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = rf"give .* timm:vit_tiny_patch16_224@{re.escape(str(tmp_path))}/model\.safetensors$"
    refuse(tmp_path, UnsupportedModelError, words)


def test_an_old_image_processor_is_read(dinov2):
    path = dinov2 / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    before = load_transformers(str(dinov2)).preprocessing
    path.write_text(json.dumps(settings | {"image_processor_type": "BitFeatureExtractor"}))
    assert load_transformers(str(dinov2)).preprocessing == before
