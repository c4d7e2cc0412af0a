"""Importing one library leaves the others alone, and the package itself imports none."""

import pytest

from images import write_images
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
import torch
model = timm.create_model("test_vit")
torch.save(model.state_dict(), "test_vit.pt")
model_id = "timm:test_vit@test_vit.pt"
"""
WITH_TRANSFORMERS = """
from transformers import ViTConfig, ViTModel
size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
model = ViTModel(ViTConfig(**size))
model_id = "tiny"
model.save_pretrained(model_id)
"""
AUDIT = """
wrap_model(model)
from vitscope.cli import main
argv = ["audit", ".", "-m", model_id, "-o", "audited", "--no-report", "-q", "--size", "32"]
assert main(argv) == 0
"""
NEEDLESS = "altair av lightning matplotlib mlflow open_clip pandas ray scipy.cluster scipy.stats"
NEEDLESS += " sklearn tensorboard vl_convert wandb"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Names in sys.modules after what imports torch at least."""
    folders = {library: tmp_path_factory.mktemp(library) for library in ("timm", "transformers")}
    for folder in folders.values():
        write_images(folder, 4)
    codes = {
        "results": RESULTS,
        "training": "import vitscope.training",
        **{
            library: f"import os\nos.chdir({str(folder)!r})\n{WRAP}{make}{AUDIT}"
            for (library, folder), make in zip(
                folders.items(), (WITH_TIMM, WITH_TRANSFORMERS), strict=True
            )
        },
    }
    # It takes longest, and imports nothing that is looked for.
    first = "import torchvision"
    return dict(zip(codes, modules_after(*codes.values(), first=first), strict=True))


@pytest.mark.parametrize("code", ["import vitscope", "import vitscope.cli"])
def test_teaching_needs_neither_torch_nor_a_model_library(code):
    (found,) = modules_after(code)
    assert not found & {"torch", *LIBRARIES}
    # Half of the time to the first line.
    assert not found & {"numpy", "jaxtyping", "huggingface_hub"}


def test_names_and_sizes_that_cannot_be_right_are_refused_without_torch(tmp_path):
    """Importing it takes seconds, and a mistyped name is what most first runs fail of."""
    (tmp_path / "dinov2-small").mkdir()
    (tmp_path / "dinov2-small/image.png").touch()
    (tmp_path / "empty/below").mkdir(parents=True)
    there = str(tmp_path)
    wrong = [
        ["audit", "nowhere", "--model", "dinov2-small", "--out", f"{there}/new"],
        ["audit", f"{there}/empty", "--model", "dinov2-small", "--out", f"{there}/new"],
        ["audit", there, "--model", "dinov2-smal", "--out", f"{there}/new"],
        ["audit", there, "--model", "dinov2-small", "--out", f"{there}/new", "--size", "225"],
        ["audit", there, "--model", "dinov2-small", "--out", there],
        ["audit", there, "--model", "timm:vit@no.pth", "--out", f"{there}/new"],
        ["explain", "nowhere", "--model", "dinov2-small", "--out", f"{there}/new"],
        ["judge", f"{there}/*.jpg", "--model", "dinov2-small", "--out", f"{there}/new"],
        ["remedy", "find", "nowhere", "-m", "dinov2-small", "--remedy", "skip", "-o", f"{there}/x"],
        ["remedy", "compare", "no", "-m", "dinov2-small", "--remedy", "skip", "-o", f"{there}/x"],
        ["one-shot", "nowhere", "--model", "dinov2-small", "--out", f"{there}/new"],
        ["one-shot", there, "--model", "dinov2-smal", "--out", f"{there}/new"],
    ]
    code = f"from vitscope.cli import main\nassert [main(a) for a in {wrong}] == [2] * {len(wrong)}"
    assert "torch" not in modules_after(code)


def test_figures_need_neither_torch_nor_a_window():
    drawn, told = modules_after("import vitscope.figures.draw", "import vitscope.report")
    assert not drawn & {"torch", "matplotlib.pyplot", "tkinter", *LIBRARIES}
    assert not told & {"matplotlib.figure", *LIBRARIES}


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
def test_an_audit_imports_the_library_asked_for_and_little_else(found, library):
    assert found[library] & set(LIBRARIES) == {library}
    assert not found[library] & set(NEEDLESS.split())


def test_public_names_are_all_there():
    import vitscope

    for name in vitscope.__all__:
        assert getattr(vitscope, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vitscope.nonsense
