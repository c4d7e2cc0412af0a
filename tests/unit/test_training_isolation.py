"""Audits during training import the library that trains, and no other."""

import pytest

from interpreters import modules_after

TRAINERS = {"lightning", "pytorch_lightning", "transformers", "accelerate", "wandb"}
LIGHTNING, TRANSFORMERS = (
    "vitscope.training.lightning_callback",
    "vitscope.training.trainer_callback",
)
OLDER_NAME = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "lightning" else find(name, *rest)
import vitscope.training.lightning_callback as used
assert used.Callback.__module__.startswith("pytorch_lightning.")
"""


def import_after(library, module):
    # A library may bring others: Lightning brings metrics, which bring transformers.
    return f"""
{library}
import sys
known = set(sys.modules)
import {module}
others = {TRAINERS!r} & (set(sys.modules) - known)
assert not others, others
"""


@pytest.fixture(scope="module")
def found():
    """Names in sys.modules after the imports of callbacks."""
    codes = {
        LIGHTNING: import_after("import lightning.pytorch", LIGHTNING),
        TRANSFORMERS: import_after("from transformers import Trainer", TRANSFORMERS),
        "older name": OLDER_NAME,
    }
    # All of them import what takes longest, and that imports nothing else that is looked for.
    first = "import sys, torchmetrics\n"
    first += f"assert {TRAINERS!r} & {{*sys.modules}} <= {{'transformers'}}"
    return dict(zip(codes, modules_after(*codes.values(), first=first), strict=True))


@pytest.mark.parametrize("module", [LIGHTNING, TRANSFORMERS])
def test_a_callback_imports_its_own_library_alone(found, module):
    assert module in found[module]


def test_lightning_under_its_older_name_is_enough(found):
    assert "pytorch_lightning" in found["older name"]
    assert "lightning" not in found["older name"]
