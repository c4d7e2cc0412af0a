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

import remembered  # noqa: E402 - vitscope is imported with its shapes checked

remembered.install()
os.fsync = os.fstat  # Tests check that a flush is requested, but need not wait for it.
gc.disable()
# On Python 3.11 hypothesis would trace every line of every example to explain failures.
settings.register_profile("untraced", phases=set(Phase) - {Phase.explain})
settings.load_profile("untraced")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than cores, as some tests wait for other processes."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish():
    """Exempt imported and collected objects from garbage collection."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def shipped_fonttype():
    """Kind of font in PDF files; tests write outlines, and fewer pixels, in a third of the time."""
    from vitscope.figures.rendering.style import _SETTINGS

    shipped = _SETTINGS["pdf.fonttype"]
    _SETTINGS.update({"pdf.fonttype": 3, "savefig.dpi": 80})
    return shipped


@pytest.fixture(scope="session", autouse=True)
def shipped_drawing():
    """Draws a chart for a page without JavaScript, in 50 ms; tests have a blank one."""
    import vl_convert

    shipped = vl_convert.vegalite_to_svg
    vl_convert.vegalite_to_svg = lambda _: "<svg></svg>"
    return shipped


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
    """One browser per process, as a process can run only one."""
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
    """Python's default SIGINT handler, as the processes of pytest-xdist ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
