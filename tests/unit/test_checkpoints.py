"""Reading checkpoints: every layout that training code leaves, and files that are none."""

import argparse
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vitscope.errors import UsageError
from vitscope.models.checkpoints import load_weights, read_checkpoint

WEIGHTS = {"cls_token": torch.ones(1, 1, 4), "blocks.0.norm1.weight": torch.arange(4.0)}
OTHERS = {name: torch.zeros_like(value) for name, value in WEIGHTS.items()}
HEADS = {
    "head.mlp.0.weight": torch.zeros(2, 2),
    "head.mlp2.0.weight": torch.zeros(2, 2),
    "head.last_layer.weight_g": torch.zeros(2, 1),
    "head.last_layer2.weight_v": torch.zeros(2, 2),
    "head2.mlp.0.bias": torch.zeros(2),
}


def prefixed(prefix, weights=WEIGHTS):
    return {f"{prefix}{name}": value for name, value in weights.items()}


LAYOUTS = {
    "plain": WEIGHTS,
    "state_dict": {"state_dict": WEIGHTS, "epoch": 3},
    "model": {"model": WEIGHTS, "optimizer": {"state": {}, "param_groups": []}},
    "model_state_dict": {"model_state_dict": WEIGHTS},
    "nested": {"state_dict": {"model": WEIGHTS}},
    "data parallel": {"model": prefixed("module.")},
    "student alone": {"student": prefixed("module.backbone.")},
    "DINO in full": {
        "student": prefixed("module.backbone.", OTHERS) | prefixed("module.", HEADS),
        "teacher": prefixed("backbone.") | HEADS,
        "dino_loss": {"center": torch.zeros(1, 2)},
        "args": argparse.Namespace(arch="vit_small", lr=1e-3),
        "epoch": 100,
    },
    "iBOT's teacher": {"state_dict": WEIGHTS | HEADS | {"masked_embed": torch.zeros(1, 4)}},
    "DINOv2's teacher": {
        "teacher": prefixed("backbone.") | {"dino_head.mlp.0.bias": torch.ones(1)}
    },
}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("content", list(LAYOUTS.values()), ids=list(LAYOUTS))
def test_layouts_of_training_code(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    assert_same(read_checkpoint(path).weights, WEIGHTS)


def test_legacy_format(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    assert_same(read_checkpoint(path).weights, WEIGHTS)


def test_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(prefixed("backbone.") | HEADS, path)
    assert_same(read_checkpoint(path).weights, WEIGHTS)


def test_a_classifier_is_kept_for_the_caller_to_judge(tmp_path):
    path = tmp_path / "model.safetensors"
    classifier = {"head.weight": torch.ones(3, 4)}
    save_file(WEIGHTS | classifier, path)
    assert_same(read_checkpoint(path).weights, WEIGHTS | classifier)


class Payload:
    """What a hostile file would hold: reading it must not call this."""

    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


def test_code_is_not_executed(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": WEIGHTS, "extra": Payload()}, path)
    with pytest.raises(UsageError, match="more than weights"):
        read_checkpoint(path)
    plain = tmp_path / "plain.bin"
    plain.write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(UsageError, match="more than weights"):
        read_checkpoint(plain)
    assert not Payload.ran


def write_nothing(path):
    path.write_bytes(b"")


def write_truncated(path):
    if path.suffix == ".safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def write_text(path):
    path.write_text("<html>not found</html>")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("write", [write_nothing, write_truncated, write_text])
def test_damaged_files(tmp_path, write, suffix):
    path = tmp_path / f"checkpoint{suffix}"
    write(path)
    with pytest.raises(UsageError, match=re.escape(str(path))) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(UsageError, match="is not a file"):
            read_checkpoint(path)


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(2)], {"teacher": {}}])
def test_files_without_weights(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    with pytest.raises(UsageError, match="no weights in"):
        read_checkpoint(path)


# --- filling a model ------------------------------------------------------------------------------


def make_model():
    return nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))


def test_weights_are_copied(tmp_path):
    source, target = make_model(), make_model()
    load_weights(target, source.state_dict(), tmp_path / "a.pth")
    assert_same(target.state_dict(), source.state_dict())


def test_optional_weights_are_left_alone(tmp_path):
    target = make_model()
    before = target.state_dict()["1.weight"].clone()
    given = make_model().state_dict() | {"1.weight": torch.zeros(9)}
    del given["1.bias"]
    load_weights(target, given, tmp_path / "a.pth", optional=("1.",))
    assert torch.equal(target.state_dict()["1.weight"], before)
    assert torch.equal(target.state_dict()["0.weight"], given["0.weight"])


def test_misfits_are_named_up_to_three(tmp_path):
    given = {f"extra{i}": torch.ones(1) for i in range(5)} | {"0.weight": torch.ones(2, 4)}
    with pytest.raises(UsageError) as caught:
        load_weights(make_model(), given, tmp_path / "a.pth")
    message = str(caught.value)
    assert "it lacks 0.bias, 1.bias, 1.weight" in message
    assert "the model has no extra0, extra1, extra2 and 2 more" in message
    assert "of another shape are 0.weight" in message
    assert "\n" not in message
