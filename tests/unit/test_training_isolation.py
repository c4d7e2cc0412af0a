"""Audits during training import the library that trains, and no other."""

import pytest
from test_isolation import modules_after

TRAINERS = {"lightning", "pytorch_lightning", "transformers", "accelerate", "wandb"}


@pytest.mark.parametrize(
    ("module", "library"),
    [
        ("vitscope.training", "import torch"),
        ("vitscope.training.lightning_callback", "import lightning.pytorch"),
        ("vitscope.training.trainer_callback", "from transformers import Trainer"),
    ],
)
def test_a_callback_imports_its_own_library_alone(module, library):
    # A library may bring others: Lightning brings metrics, which bring transformers.
    program = f"""
{library}
import sys
known = set(sys.modules)
import {module}
others = {TRAINERS!r} & (set(sys.modules) - known)
assert not others, others
"""
    assert module in modules_after(program)


def test_lightning_under_its_older_name_is_enough():
    hide = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "lightning" else find(name, *rest)
import vitscope.training.lightning_callback as used
assert used.Callback.__module__.startswith("pytorch_lightning.")
"""
    found = modules_after(hide)
    assert "pytorch_lightning" in found
    assert "lightning" not in found
