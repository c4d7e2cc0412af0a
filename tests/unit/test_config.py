"""Settings that cannot be are refused by name."""

import pytest
import torch

from vitscope.config import AuditConfig, parse_layers, parse_size
from vitscope.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"), [("518", (518, 518)), ("224x336", (224, 336)), ("14X28", (14, 28))]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "a", "224x", "1x2x3", "-14", "2.5", "²"])
def test_bad_sizes(text):
    with pytest.raises(UsageError, match="expected pixels"):
        parse_size(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", 0),
        ("batch_size", 0),
        ("num_workers", -1),
        ("seed", -1),
        ("dtype", "int8"),
        ("features", "some"),
        ("size", "big"),
        ("layers", "first"),
        ("layers", ""),
    ],
)
def test_bad_settings(name, value):
    with pytest.raises(UsageError, match=name.replace("_", "-")):
        AuditConfig(**{name: value})


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta:x", "meta"])
def test_absent_devices(device):
    with pytest.raises(UsageError, match="not available here"):
        AuditConfig(device=device).resolve_device()


def test_device_and_dtype():
    assert AuditConfig(device="cpu").resolve_device() == torch.device("cpu")
    assert AuditConfig(dtype="bfloat16").torch_dtype is torch.bfloat16


def test_layers_and_size_are_read():
    assert parse_layers("last") == "last"
    assert parse_layers("3,7") == (3, 7)
    assert AuditConfig().input_size is None
    assert AuditConfig(size="224x336").input_size == (224, 336)
