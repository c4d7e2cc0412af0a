"""Settings that cannot be are refused by name."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from vitscope.cli.entry import app
from vitscope.cli.settings import parse_layers, parse_shard, parse_size
from vitscope.config import AuditConfig, OneShotConfig, ReproductionConfig, RunConfig, combine
from vitscope.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"), [("518", 518), ("224x336", (224, 336)), ("14X28", (14, 28))]
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
        ("size", "224x336"),
        ("size", (1, 2, 3)),
        ("layers", "first"),
        ("layers", "0,1"),
        ("layers", []),
        ("layers", 3),
        ("layers", [1.5]),
        ("shard", "1/2"),
        ("shard", (0, 2)),
        ("shard", (3, 2)),
        ("device", 0),
    ],
)
def test_bad_settings(name, value):
    with pytest.raises(UsageError, match=f"^{name} .*: expected "):
        AuditConfig(**{name: value})


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta:x", "meta"])
def test_absent_devices(device):
    with pytest.raises(UsageError, match="not available here"):
        AuditConfig(device=device).resolve_device()


def test_device_and_dtype():
    assert AuditConfig(device="cpu").resolve_device() == torch.device("cpu")
    assert AuditConfig(dtype="bfloat16").torch_dtype is torch.bfloat16


def test_settings_are_taken_as_python_has_them():
    config = AuditConfig(
        device=torch.device("cuda:1"),
        dtype=torch.float64,
        size=np.array([224, 336]),
        layers=range(2),
        shard=[np.int64(1), 3],
        masks=Path("masks"),
        limit=np.int32(4),
        batch_size=torch.tensor(8),
        verified=np.float32(0.5),
    )
    told = {name: value for name, value in asdict(config).items() if value is not None}
    assert told | {"seed": 0} == told
    assert json.loads(json.dumps(told))["layers"] == [0, 1]
    assert (config.device, config.dtype, config.masks) == ("cuda:1", "float64", "masks")
    assert (config.size, config.layers, config.shard) == ((224, 336), (0, 1), (1, 3))
    assert [type(value) for value in (config.limit, config.batch_size)] == [int, int]
    assert AuditConfig(size=224).input_size == (224, 224)
    assert AuditConfig().input_size is None
    assert AuditConfig(dtype=torch.float16).torch_dtype is torch.float16


def test_words_of_the_command_line_are_parsed():
    assert parse_layers("last") == "last"
    assert parse_layers("3,7") == (3, 7)
    assert parse_shard("3/16") == (3, 16)


@pytest.mark.parametrize(
    ("text", "layers"), [("-1", (-1,)), ("-3,-1", (-3, -1)), ("0,-1", (0, -1))]
)
def test_layers_from_the_last_are_no_options(text, layers):
    command = ["audit", "photos", "--model", "m", "--out", "results", "--layers", text]
    _, given, _ = app.parse_args(command, exit_on_error=False)
    assert given.arguments["config"].layers == layers


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/2/3", "-1/3", "", "²/3"])
def test_bad_shards(text):
    with pytest.raises(UsageError, match="expected one of 1/N to N/N"):
        parse_shard(text)


@pytest.mark.parametrize("text", ["", "first", "1,", "1.5"])
def test_bad_layers(text):
    with pytest.raises(UsageError, match="expected last, all, or block numbers"):
        parse_layers(text)


def test_keywords_go_beside_a_config_or_instead_of_it():
    assert combine(AuditConfig, None, {"limit": 4}) == AuditConfig(limit=4)
    both = combine(AuditConfig, AuditConfig(seed=1), {"limit": 4})
    assert both == AuditConfig(seed=1, limit=4)
    with pytest.raises(UsageError, match="limit is given twice"):
        combine(AuditConfig, AuditConfig(limit=3), {"limit": 4})
    with pytest.raises(UsageError, match=r"unknown setting limits: expected batch_size, .*, limit"):
        combine(AuditConfig, None, {"limits": 4})
    with pytest.raises(UsageError, match="config is of type OneShotConfig: expected AuditConfig"):
        combine(AuditConfig, OneShotConfig(), {})
    with pytest.raises(UsageError, match="limit 0: expected 1 or more"):
        combine(AuditConfig, None, {"limit": 0})


@pytest.mark.parametrize(
    ("kind", "config", "lost"),
    [
        (RunConfig, AuditConfig(shard=(1, 2)), "AuditConfig, and its shard has no effect"),
        (RunConfig, AuditConfig(layers=[0]), "AuditConfig, and its layers has no effect"),
        (OneShotConfig, ReproductionConfig(num_images=4), "its num_images has no effect here"),
    ],
)
def test_what_a_subclass_adds_is_not_dropped(kind, config, lost):
    with pytest.raises(UsageError, match=f"{lost}.*: expected {kind.__name__}"):
        combine(kind, config, {})
    plain = type(config)(seed=3, device="cpu")
    assert combine(kind, plain, {"batch_size": 2}).seed == 3


def test_types_are_no_settings_and_shapes_of_torch_are_sizes():
    for given in (np.float32, np.dtype("float32"), float):
        with pytest.raises(UsageError, match=r"dtype .*float.*: expected 'float32'"):
            AuditConfig(dtype=given)
    size = RunConfig(size=torch.zeros(3, 32, 48).shape[-2:]).size
    assert (size, type(size)) == ((32, 48), tuple)
