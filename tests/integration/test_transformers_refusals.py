"""Folders written by `save_pretrained`: what is refused in one line, what weights are left out."""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    ViTConfig,
    ViTModel,
)

from saved_models import (
    change_config,
    refuse,
    run,
    run_tiny,
    save_dinov2,
)
from tiny_configs import SIZE, TEXT
from vitscope.adapters.transformers import load_transformers
from vitscope.errors import ModelUnreachableError, UnknownModelError, UnsupportedModelError
from vitscope.testing.randomize import randomize
from vitscope.testing.tiny_transformers import TINY_TRANSFORMERS


@pytest.fixture
def dinov2(tmp_path):
    return save_dinov2(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, "does not execute"),
        ({"model_type": "my_vit"}, "model type my_vit, expected one of aimv2, beit, clip"),
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
    refuse(dinov2, ModelUnreachableError, r"the weights of \S+ cannot be read \(")


@pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"num_attention_heads": 3}])
def test_weights_of_another_width(dinov2, changes):
    change_config(dinov2, **changes)
    words = r"\S+ has shape .*, not .*: expected .* that fits config\.json"
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
    words = r"4 tensors .*layer\.0\..*layer\.1\..*layer\.2\.attention\.gate\.weight and 1 more\)"
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
    refuse(dinov2, ModelUnreachableError, "never executed")
    assert not written.exists()


def test_an_image_processor_of_its_own_is_refused(dinov2):
    path = dinov2 / "preprocessor_config.json"
    path.write_text(
        json.dumps({"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "a.B"}})
    )
    refuse(dinov2, UnsupportedModelError, "image processor")


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "vit", "siglip"])
def test_greyscale_models_are_refused(tmp_path, name):
    tiny = TINY_TRANSFORMERS[name]()
    grey = type(tiny)(type(tiny.config)(**tiny.config.to_dict() | {"num_channels": 1}))
    grey.save_pretrained(tmp_path)
    refuse(tmp_path, UnsupportedModelError, r"images of 1 channels \(num_channels\)")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": 0}, "patch_size=0: expected 1 to 1000000"),
        ({"patch_size": [8, 0]}, "patch_size="),
        ({"patch_size": "8"}, "patch_size='8'"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"num_attention_heads": -2}, "num_attention_heads=-2"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000: expected 1 to 1000"),
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
