"""A model is the same model whenever, wherever and for whatever size it is built."""

import pickle
import subprocess
import sys
from functools import partial

import pytest
import timm
import torch

from page_blocks import ROOT
from support_table import TINY_MODELS, tiny_pixels
from vitscope import decompose, load_model, wrap_model
from vitscope.models.identity import describe_behaviour
from vitscope.testing.tiny_transformers import TINY_TRANSFORMERS


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_model_is_the_same_whenever_it_is_built_sent_or_run(name):
    build = TINY_MODELS[name]
    vit, expected = wrap_model(build()), wrap_model(build()).describe_behaviour()
    assert vit.describe_behaviour() == expected
    assert expected.unknown == ()
    for dtype in (torch.float64, torch.bfloat16):
        with vit.placed("cpu", dtype):
            decompose(vit, tiny_pixels(vit))
    assert vit.describe_behaviour() == expected
    assert pickle.loads(pickle.dumps(vit)).describe_behaviour() == expected
    assert pickle.loads(pickle.dumps(vit)).hashed().weights_hash == vit.hashed().weights_hash


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from support_table import TINY_MODELS
from vitscope import wrap_model
for name in {names!r}:
    print(name, wrap_model(TINY_MODELS[name]()).describe_behaviour().digest)
"""


def test_it_is_the_same_in_another_process_with_other_hashes():
    names = ["timm/dinov2_reg", "transformers/dinov3", "open_clip/timm", "transformers/clip"]
    script = SCRIPT.format(tests=str(ROOT / "tests"), names=names)
    run = partial(subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True)
    found = run(env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT / "src")}, check=True).stdout
    expected = {n: wrap_model(TINY_MODELS[n]()).describe_behaviour().digest for n in names}
    assert dict(line.split() for line in found.splitlines()) == expected


@pytest.mark.parametrize("name", ["dinov2_registers", "dinov2_swiglu", "clip_tower", "dinov3"])
def test_what_is_loaded_is_what_was_wrapped(name, tmp_path):
    module = TINY_TRANSFORMERS[name]()
    expected = wrap_model(module)
    module.save_pretrained(tmp_path)
    for found in (load_model(str(tmp_path)), wrap_model(type(module).from_pretrained(tmp_path))):
        assert found.describe_behaviour() == expected.describe_behaviour()
        assert found.hashed().weights_hash == expected.hashed().weights_hash


def test_a_timm_model_built_for_any_size_is_the_same():
    name = "test_vit.r160_in1k"
    plain, dynamic, training = (
        timm.create_model(name, pretrained=False, **settings)
        for settings in ({}, {"dynamic_img_size": True}, {"drop_path_rate": 0.1, "drop_rate": 0.2})
    )
    expected = describe_behaviour(plain)
    assert describe_behaviour(dynamic) == expected
    assert describe_behaviour(training) == expected
