"""Importing one library leaves the others alone, and the package itself imports none."""

import pytest

from interpreters import modules_after

LIBRARIES = ("timm", "transformers", "open_clip")
RESULTS = """
import vitscope.adapters.torch_hub, vitscope.terminal
import vitscope.cli, vitscope.runs.audit_loop, vitscope.decomposition
# Such imports must not turn the function `vitscope.x` into a module either.
import vitscope
assert callable(vitscope.audit) and callable(vitscope.decompose)
from vitscope import AuditResult
"""
WRAP = f"""
import sys
from vitscope.adapters.registry import wrap_model
assert not {{*{LIBRARIES}}} & {{*sys.modules}}
"""
WITH_TIMM = """
import timm
wrap_model(timm.create_model("test_vit"))
"""
WITH_TRANSFORMERS = """
from transformers import ViTConfig, ViTModel
size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
wrap_model(ViTModel(ViTConfig(**size)))
"""


@pytest.fixture(scope="module")
def found():
    """Names in sys.modules after what imports torch at least."""
    codes = {
        "results": RESULTS,
        "training": "import vitscope.training",
        "timm": WRAP + WITH_TIMM,
        "transformers": WRAP + WITH_TRANSFORMERS,
    }
    # It takes longest, and imports nothing that is looked for.
    first = "import torchvision"
    return dict(zip(codes, modules_after(*codes.values(), first=first), strict=True))


@pytest.mark.parametrize("code", ["import vitscope", "import vitscope.cli"])
def test_teaching_needs_neither_torch_nor_a_model_library(code):
    (found,) = modules_after(code)
    assert not found & {"torch", *LIBRARIES}


def test_names_and_sizes_that_cannot_be_right_are_refused_without_torch(tmp_path):
    """Importing it takes seconds, and a mistyped name is what most first runs fail of."""
    (tmp_path / "dinov2-small").mkdir()
    (tmp_path / "dinov2-small/image.png").touch()
    there = str(tmp_path)
    wrong = [
        ["audit", "nowhere", "--model", "dinov2-small", "--out", f"{there}/new"],
        ["audit", there, "--model", "dinov2-smal", "--out", f"{there}/new"],
        ["audit", there, "--model", "dinov2-small", "--out", f"{there}/new", "--size", "225"],
        ["audit", there, "--model", "dinov2-small", "--out", there],
        ["explain", "nowhere", "--model", "dinov2-small", "--out", f"{there}/new"],
        ["judge", f"{there}/*.jpg", "--model", "dinov2-small", "--out", f"{there}/new"],
        ["remedy", "find", "nowhere", "-m", "dinov2-small", "--remedy", "skip", "-o", f"{there}/x"],
        ["remedy", "compare", "no", "-m", "dinov2-small", "--remedy", "skip", "-o", f"{there}/x"],
        ["one-shot", there, "--model", "dinov2-smal", "--out", f"{there}/new"],
    ]
    code = f"from vitscope.cli import main\nassert [main(a) for a in {wrong}] == [2] * {len(wrong)}"
    assert "torch" not in modules_after(code)


def test_figures_need_neither_torch_nor_a_window():
    (found,) = modules_after("import vitscope.figures")
    assert not found & {"torch", "matplotlib.pyplot", "tkinter", *LIBRARIES}


def test_results_runs_and_torch_hub_need_no_model_library(found):
    assert "torch" in found["results"]
    assert not found["results"] & set(LIBRARIES)
    # They take seconds, and few numbers need them.
    assert not found["results"] & {
        *("sklearn", "scipy.stats", "scipy.cluster", "scipy.sparse.linalg")
    }


def test_numbers_during_training_import_no_library(found):
    assert "vitscope.training" in found["training"]
    trainers = {"lightning", "pytorch_lightning", "transformers", "accelerate", "wandb"}
    assert not found["training"] & trainers


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_only_the_library_asked_for_is_imported(found, library):
    assert found[library] & set(LIBRARIES) == {library}


def test_public_names_are_all_there():
    import vitscope

    for name in vitscope.__all__:
        assert getattr(vitscope, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vitscope.nonsense
