"""Importing one library leaves the others alone, and the package itself imports none."""

import pytest

from interpreters import modules_after

LIBRARIES = ("timm", "transformers", "open_clip")


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
    there = str(tmp_path)
    wrong = [
        ["audit", "nowhere", "--model", "dinov2-small", "--out", f"{there}/new"],
        ["audit", there, "--model", "dinov2-smal", "--out", f"{there}/new"],
        ["audit", there, "--model", "dinov2-small", "--out", f"{there}/new", "--size", "225"],
        ["audit", there, "--model", "dinov2-small", "--out", there],
        ["audit", there, "--model", "timm:vit@no.pth", "--out", f"{there}/new"],
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


def test_results_runs_and_torch_hub_need_no_model_library():
    """What wrapping a model of each library imports is tested with the registry."""
    code = "import vitscope.adapters.torch_hub, vitscope.terminal\n"
    code += "import vitscope.cli, vitscope.runs.audit_loop, vitscope.decomposition\n"
    # Such imports must not turn the function `vitscope.x` into a module either.
    code += "import vitscope\nassert callable(vitscope.audit) and callable(vitscope.decompose)\n"
    (found,) = modules_after(code + "from vitscope import AuditResult")
    assert "torch" in found
    assert not found & set(LIBRARIES)
    # They take seconds, and few numbers need them.
    assert not found & {"sklearn", "scipy.stats", "scipy.cluster", "scipy.sparse.linalg"}


def test_public_names_are_all_there():
    import vitscope

    for name in vitscope.__all__:
        assert getattr(vitscope, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vitscope.nonsense
