"""Shared set-up: tests may import their helpers by name, run on one thread, and check shapes."""

import shutil
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import jaxtyping
import pytest
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

_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
)


@pytest.fixture(scope="session")
def chromium():
    """One browser per process, for a process has room for one."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def ctrl_c_is_heard():
    """The usual answer to Ctrl-C, which the processes of pytest-xdist ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
