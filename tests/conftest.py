"""Shared set-up: tests may import their helpers by name, run on one thread, and check shapes."""

import sys
from importlib.util import find_spec
from pathlib import Path

import jaxtyping
import torch

TESTS = Path(__file__).parent
for _folder in (".", "unit"):
    sys.path.insert(0, str(TESTS / _folder))
torch.set_num_threads(1)

SOURCE = Path(find_spec("vitscope").origin).parent
SHAPED = [
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
    for path in sorted(SOURCE.rglob("*.py"))
    if "from jaxtyping import" in path.read_text(encoding="utf-8")
    and not {"figures", "files"} & set(path.relative_to(SOURCE).parts)
]
"""Modules with shapes in their annotations, which are checked; mypy checks all other types. Left
out are figures, where an int passes for a float, and files, whose `Self` beartype does not take."""
jaxtyping.install_import_hook(SHAPED, "beartype.beartype")
