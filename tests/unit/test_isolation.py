"""Importing one library leaves the others alone, and the package itself imports none."""

import pytest

from interpreters import modules_after

LIBRARIES = ("timm", "transformers", "open_clip")


@pytest.mark.parametrize("code", ["import vitscope", "import vitscope.cli"])
def test_teaching_needs_neither_torch_nor_a_model_library(code):
    (found,) = modules_after(code)
    assert not found & {"torch", *LIBRARIES}


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
