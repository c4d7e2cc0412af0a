"""Versions of what numbers come out of."""

import platform
from importlib import metadata

import torch

_LIBRARIES = (
    "vitscope",
    "torchvision",
    "timm",
    "transformers",
    "open-clip-torch",
    "numpy",
    "pillow",
)


def list_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that are installed here."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions | {"torch": str(torch.__version__)}
