"""What Python users give by habit is taken, or refused in one sentence before any work is done."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from shape_checks import unchecked
from vitscope import (
    AuditConfig,
    audit,
    decompose,
    explain,
    load_model,
    map_tokens,
    one_shot,
    wrap_model,
)
from vitscope.config import OneShotConfig, RunConfig
from vitscope.errors import UsageError
from vitscope.training import TrainingAudit


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0, dynamic_img_size=True
    )


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": "64"}, "size '64': expected pixels such as 518"),
        ({"layers": "0,1"}, r"layers '0,1': expected 'last', 'all' or block numbers"),
        ({"device": 0}, r"device 0: expected 'auto', or a device of torch"),
        ({"dtype": torch.int8}, "dtype 'int8': expected 'float32'"),
        ({"limit": 2.5}, "limit 2.5: expected a whole number"),
        ({"limit": True}, "limit True: expected a whole number"),
        ({"limit": np.array([1, 2])}, "limit \\(1, 2\\): expected a whole number"),
        ({"batch_size": None}, "batch_size None: expected a whole number or 'auto'"),
        ({"renormalize": 1}, "renormalize 1: expected True or False"),
        ({"verified": "half"}, "verified 'half': expected a number"),
        ({"cls_term": ["own"]}, "cls_term"),
        ({"features": None}, "features None: expected 'keep' or 'drop'"),
    ],
)
def test_settings_of_other_types_are_refused_by_name(settings, expected):
    with pytest.raises(UsageError, match=expected):
        AuditConfig(**settings)


def test_other_configs_check_their_types_too():
    with pytest.raises(UsageError, match="size '64'"):
        RunConfig(size="64")
    with pytest.raises(UsageError, match=r"draws 2\.5"):
        OneShotConfig(draws=2.5)


def test_numbers_of_numpy_and_torch_and_paths_are_taken(module, photos, tmp_path):
    config = AuditConfig(
        limit=np.int64(3),
        batch_size=torch.tensor(2),
        renormalize=np.bool_(False),
        verified=np.float64(0.5),
        size=32,
        gallery=np.int32(0),
    )
    assert (type(config.limit), type(config.verified)) == (int, float)
    result = audit(wrap_model(module), photos, config, out=tmp_path / "out")
    assert result.summary.data.num_images == 3
    assert json.loads((tmp_path / "out/provenance.json").read_text())["config"]["limit"] == 3
    assert AuditConfig(masks=Path("masks")).masks == "masks"


def test_a_module_is_wrapped(module, photos):
    config = AuditConfig(size=32, gallery=0)
    ours = audit(module, photos, config).summary.last.variance_share
    assert ours == audit(wrap_model(module), photos, config).summary.last.variance_share
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(
        decompose(module, pixels).contributions,
        decompose(wrap_model(module), pixels).contributions,
    )


@pytest.fixture(scope="module")
def unrun():
    """A model of two blocks, which is not to be asked for anything."""
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
    module.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    return wrap_model(module)


def refuse(calls):
    """What was given to each call, of whose error the rest says what was expected."""
    given = []
    for call in calls:
        with pytest.raises(UsageError, match=r": .*expected ") as told, unchecked():
            call()
        given.append(str(told.value).partition(": ")[0])
    return given


def test_what_is_no_model_no_image_or_no_pixels_is_refused(unrun):
    vit, x, photo = unrun, torch.zeros(2, 3, 32, 32), Image.new("RGB", (4, 4))
    given = refuse(
        (
            lambda: decompose(vit, x[0]),
            lambda: decompose(vit, x.numpy()),
            lambda: map_tokens(vit, (x + 100).to(torch.uint8)),
            lambda: map_tokens(vit, x[:0]),
            lambda: decompose(vit, torch.zeros(2, 4, 32, 32)),
            lambda: decompose(vit, [x]),
            lambda: audit(vit, [None]),
            lambda: audit(vit, [photo, {"image": photo}]),
            lambda: audit(vit, [3]),
            lambda: audit(vit, 3),
            lambda: audit(vit, x),
            lambda: audit({}, "."),
            lambda: one_shot(3, [photo] * 4, labels=[0, 0, 1, 1]),
        )
    )
    assert given == [
        "pixels were given as a tensor of shape (3, 32, 32)",
        "pixels were given as ndarray",
        "pixels were given as a tensor of torch.uint8",
        "pixels were given as a tensor of shape (0, 3, 32, 32)",
        "pixels were given as a tensor of shape (2, 4, 32, 32)",
        "pixels were given as list",
        "an image was given as NoneType",
        "images were given as dict",
        "an image was given as int",
        "an image was given as int",
        "image[0]",
        "a model was given as dict",
        "a model was given as int",
    ]


def test_numbers_of_numpy_say_which_layer(images_in_memory):
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
    vit, (image, *_) = wrap_model(module), images_in_memory
    assert [explain(vit, image, layer=n).summary.layer for n in (np.int64(0), None)] == [0, 1]
    assert decompose(vit, torch.zeros(2, 3, 32, 32), layer=np.int64(0)).layer == 0


@pytest.fixture
def images_in_memory():
    return torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)


def test_arguments_of_other_types_are_refused_in_one_sentence(unrun, images_in_memory):
    vit, images, x = unrun, images_in_memory, torch.zeros(2, 3, 32, 32)
    given = refuse(
        (
            lambda: explain(vit, images, layer=True),
            lambda: explain(vit, images, layer=0.7),
            lambda: explain(vit, images, layer="last"),
            lambda: explain(vit, images, layer=[0]),
            lambda: decompose(vit, x, layer=1.0),
            lambda: map_tokens(vit, x, layer=True),
            lambda: explain(vit, images, reference="folder"),
            lambda: audit(vit, images, engine="ray"),
            lambda: audit(vit, images, engine="ray", out="out"),
            lambda: load_model(Path("model")),
            lambda: wrap_model("dinov2-small"),
            lambda: wrap_model(vit),
            lambda: audit(vit, images, dtype=np.float32),
            lambda: audit(vit, images, out=3),
            lambda: explain(vit, images, out=3),
            lambda: one_shot(vit, images, labels=[0, 0, 1, 1], out=3),
            lambda: one_shot(vit, images, labels=3),
            lambda: TrainingAudit(images, {"limit": 3}),
        )
    )
    assert given == [
        "layer was given as bool",
        "layer was given as float",
        "layer was given as str",
        "layer was given as list",
        "layer was given as float",
        "layer was given as bool",
        "reference was given as str",
        "engine was given as str",
        "engine was given as str",
        "a model's id was given as PosixPath",
        "a module was given as str",
        "a module was given as ViTAdapter",
        "dtype <class 'numpy.float32'>",
        "out was given as int",
        "out was given as int",
        "out was given as int",
        "labels was given as int",
        "config is of type dict",
    ]


def test_an_absent_group_is_named(module):
    ledger = decompose(wrap_model(module), torch.randn(1, 3, 32, 32))
    with pytest.raises(UsageError, match="group 'patch': expected one of cls, patches"):
        ledger.group_contribution("patch")


def test_what_holds_tensors_shows_their_shapes(module):
    vit, pixels = wrap_model(module), torch.randn(2, 3, 32, 32)
    for shown in (repr(vit), repr(decompose(vit, pixels)), repr(map_tokens(vit, pixels))):
        assert "\n" not in shown
        assert len(shown) < 600
    assert "contributions=(2, 2, 192)" in repr(decompose(vit, pixels))
