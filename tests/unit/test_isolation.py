"""Importing one library leaves the others alone, and the package itself imports none."""

import subprocess
import sys

import pytest

LIBRARIES = ("timm", "transformers", "open_clip")


def modules_after(code):
    """Names in sys.modules after running code in a fresh interpreter."""
    program = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines())


@pytest.mark.parametrize("code", ["import vitscope", "import vitscope.cli"])
def test_teaching_needs_neither_torch_nor_a_model_library(code):
    assert not modules_after(code) & {"torch", *LIBRARIES}


def test_saved_results_are_read_without_a_model_library():
    code = "from vitscope import AuditResult\nimport vitscope.terminal"
    assert not modules_after(code) & set(LIBRARIES)


def test_figures_need_neither_torch_nor_a_window():
    found = modules_after("import vitscope.figures")
    assert not found & {"torch", "matplotlib.pyplot", "tkinter", *LIBRARIES}


@pytest.mark.parametrize(
    ("used", "module"),
    [
        ("timm", "vitscope.adapters.timm"),
        ("transformers", "vitscope.adapters.transformers"),
        ("torch", "vitscope.adapters.torch_hub"),
        ("torch", "vitscope.adapters.registry"),
    ],
)
def test_an_adapter_imports_its_own_library_alone(used, module):
    found = modules_after(f"import {module}")
    assert used in found
    assert not found & (set(LIBRARIES) - {used})


def test_public_names_are_all_there():
    import vitscope

    for name in vitscope.__all__:
        assert getattr(vitscope, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vitscope.nonsense


def test_functions_are_not_shadowed_by_their_modules():
    """`import vitscope.x` must not turn the function `vitscope.x` into a module."""
    code = "import vitscope.cli, vitscope.runs.audit_loop, vitscope.decomposition\n"
    code += "import vitscope\nassert callable(vitscope.audit) and callable(vitscope.decompose)"
    modules_after(code)
