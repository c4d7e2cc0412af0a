"""Shared set-up: tests run on one thread, and check shapes."""

import gc
import os
import shutil
import signal

import pytest
import torch
from hypothesis import Phase, settings

import shape_checks

torch.set_num_threads(1)
shape_checks.install()
os.fsync = os.fstat  # Tests see that the disk is asked, and need not wait for it.
gc.disable()
# To explain a failure, hypothesis would trace every line of every example, on Python 3.11.
settings.register_profile("untraced", phases=set(Phase) - {Phase.explain})
settings.load_profile("untraced")


def pytest_collection_finish():
    """What is imported and collected stays: the garbage collector need not look through it."""
    gc.freeze()
    gc.enable()


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
