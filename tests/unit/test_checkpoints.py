"""Reading checkpoints: every layout that training code leaves, and files that are none."""

import argparse
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.weights.checkpoints import load_weights, read_checkpoint

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
    with pytest.raises(UsageError, match="not a plain file of weights"):
        read_checkpoint(path)
    plain = tmp_path / "plain.bin"
    plain.write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(UsageError, match="not a plain file of weights"):
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
    assert "missing: 0.bias, 1.bias, 1.weight" in message
    assert "unexpected: extra0, extra1, extra2 and 2 more" in message
    assert "of another shape: 0.weight" in message
    assert "\n" not in message


# --- several models in one file, and other wrappings ----------------------------------------------

VIT = WEIGHTS | {"patch_embed.proj.weight": torch.ones(4, 3, 2, 2), "head.weight": torch.ones(2, 4)}
OTHER_VIT = {name: torch.zeros_like(value) for name, value in VIT.items()}
BLOCKS = {f"blocks.{i}.norm1.weight": torch.full((4,), float(i)) for i in range(12)}


def read(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    return read_checkpoint(path)


@pytest.mark.parametrize(
    "prefix",
    [
        "model.",
        "net.",
        "encoder.",
        "vit.",
        "_orig_mod.",
        "module._orig_mod.",
        "model.backbone.",
        "module.",
        "module.model.",
        "module.backbone.",
        "model.vit.encoder.",
        "teacher.backbone.",
        "student.backbone.",
        "module.base_encoder.",
        "momentum_encoder.",
        "_fsdp_wrapped_module.model.",
    ],
)
def test_any_prefix_of_the_whole_model_is_dropped(tmp_path, prefix):
    found = read(tmp_path, {"state_dict": prefixed(prefix, VIT)})
    assert_same(found.weights, VIT)
    assert found.notes == ()


def test_what_stands_beside_the_model_is_left(tmp_path):
    others = {"criterion.weight": torch.ones(2), "model_2.fc.weight": torch.ones(2)}
    assert_same(read(tmp_path, prefixed("model.", VIT) | others).weights, VIT)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module"])
def test_wrappers_of_single_blocks_are_dropped(tmp_path, wrapper):
    wrapped = {key.replace("blocks.0.", f"blocks.0.{wrapper}."): v for key, v in VIT.items()}
    assert_same(read(tmp_path, wrapped).weights, VIT)


@pytest.mark.parametrize(
    ("content", "taken", "left"),
    [
        ({"state_dict": OTHER_VIT, "state_dict_ema": VIT}, "state_dict_ema", "state_dict"),
        ({"model": OTHER_VIT, "model_ema": VIT}, "model_ema", "model"),
        ({"model": OTHER_VIT, "ema": VIT}, "ema", "model"),
        ({"model": OTHER_VIT, "ema_state_dict": VIT}, "ema_state_dict", "model"),
        ({"student": OTHER_VIT, "teacher": prefixed("backbone.", VIT)}, "teacher", "student"),
        ({"encoder": OTHER_VIT, "target_encoder": VIT}, "target_encoder", "encoder"),
        (
            {
                "model": prefixed("student.backbone.", OTHER_VIT)
                | prefixed("teacher.backbone.", VIT)
            },
            "teacher.backbone.",
            "student.backbone.",
        ),
        (
            prefixed("module.base_encoder.", VIT) | prefixed("module.momentum_encoder.", OTHER_VIT),
            "module.base_encoder.",
            "module.momentum_encoder.",
        ),
        (
            prefixed("encoder_q.", VIT) | prefixed("encoder_k.", OTHER_VIT),
            "encoder_q.",
            "encoder_k.",
        ),
        (prefixed("ema_model.", VIT) | prefixed("model.", OTHER_VIT), "ema_model.", "model."),
        (OTHER_VIT | prefixed("model_ema.", VIT), "model_ema.", "no prefix"),
        ({"params": OTHER_VIT, "params_ema": VIT}, "params_ema.", "params."),
        (
            prefixed("swa_model.module.", VIT) | prefixed("model.", OTHER_VIT),
            "swa_model.module.",
            "model.",
        ),
        (
            prefixed("teacher.backbone.", VIT) | prefixed("gram_teacher.backbone.", OTHER_VIT),
            "teacher.backbone.",
            "gram_teacher.backbone.",
        ),
    ],
)
def test_of_several_models_one_is_taken_and_the_choice_is_noted(tmp_path, content, taken, left):
    found = read(tmp_path, content)
    assert_same(found.weights, VIT)
    assert len(found.notes) == 1
    named = left if left == "no prefix" else repr(left)
    assert found.notes[0].endswith(f"used {taken!r}, not {named}")


def test_an_empty_average_is_not_taken(tmp_path):
    found = read(tmp_path, {"state_dict": VIT, "state_dict_ema": None, "model_ema": {}})
    assert_same(found.weights, VIT)
    assert found.notes == ()


def test_one_teacher_under_two_names_is_one(tmp_path):
    teachers = prefixed("teacher.backbone.", VIT) | prefixed("model_ema.backbone.", VIT)
    found = read(tmp_path, {"model": prefixed("student.backbone.", OTHER_VIT) | teachers})
    assert_same(found.weights, VIT)
    with pytest.raises(UsageError, match="several models"):
        read(tmp_path, teachers | prefixed("teacher.backbone.", OTHER_VIT))


@pytest.mark.parametrize("key", ["net", "network", "weights", "net_state_dict"])
def test_a_model_under_any_key_is_taken(tmp_path, key):
    found = read(tmp_path, {key: VIT, "optimizer": {"state": {}}, "epoch": 3})
    assert_same(found.weights, VIT)
    assert found.notes == ()


def test_several_models_of_which_none_is_to_be_preferred_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"several models \(left\., right\.\)") as caught:
        read(tmp_path, prefixed("left.", VIT) | prefixed("right.", OTHER_VIT))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        lambda i: f"blocks.0.{i}.",  # one chunk
        lambda i: f"blocks.{i // 4}.{i}.",  # DINOv2: indices of the whole stack
        lambda i: f"blocks.{i // 4}.{i % 4}.",  # indices within the chunk
    ],
)
def test_chunks_of_blocks_are_joined(tmp_path, place):
    chunked = {place(int(key.split(".")[1])) + "norm1.weight": v for key, v in BLOCKS.items()}
    whole = {"patch_embed.proj.weight": VIT["patch_embed.proj.weight"]}
    found = read(tmp_path, {"teacher": prefixed("backbone.", whole | chunked)})
    assert_same(found.weights, whole | BLOCKS)


@pytest.mark.parametrize(
    "value",
    [
        np.float64(0.9),
        np.float32(0.9),
        np.int64(3),
        np.bool_(True),
        np.array([1.0, 2.0]),
        np.arange(3, dtype=np.uint8),
        np.str_("x"),
    ],
    ids=lambda value: type(value).__name__ + str(getattr(value, "dtype", "")),
)
def test_numbers_of_numpy_beside_the_weights(tmp_path, value):
    content = {"state_dict": VIT, "best": {"accuracy": value}}
    assert_same(read(tmp_path, content).weights, VIT)


def test_numbers_under_the_older_name_of_numpys_core(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": VIT, "best": np.float64(0.5)}, path)
    older = tmp_path / "older.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(older, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            # Both names are behind a newline in the pickle, not behind a length.
            target.writestr(name, data.replace(b"cnumpy._core.", b"cnumpy.core."))
    assert_same(read_checkpoint(older).weights, VIT)


def test_code_beside_numbers_of_numpy_is_not_executed(tmp_path):
    objects = np.array([Payload()], dtype=object)
    with pytest.raises(UsageError, match="not a plain file of weights"):
        read(tmp_path, {"state_dict": VIT, "best": objects})
    assert not Payload.ran


def test_an_unreadable_file_is_one_line(tmp_path, monkeypatch):
    def deny(*_, **__):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "checkpoint.pth"
    torch.save(VIT, path)
    monkeypatch.setattr(torch, "load", deny)
    with pytest.raises(UsageError, match=r"cannot be read \(Permission denied\)"):
        read_checkpoint(path)


def test_a_model_of_other_names_is_told_so(tmp_path):
    told = r"unexpected: a\.b; give the state_dict of the Vision Transformer alone"
    with pytest.raises(UsageError, match=told):
        load_weights(make_model(), {"a.b": torch.ones(1)}, tmp_path / "a.pth")


def test_images_of_other_channels_are_refused(tmp_path):
    torch.save({"patch_embed.proj.weight": torch.ones(4, 1, 2, 2)}, tmp_path / "a.pth")
    with pytest.raises(UnsupportedModelError, match="1 channels"):
        read_checkpoint(tmp_path / "a.pth")
