"""A real browser, and reports of tiny models whose names and images' names are hostile."""

import os
from contextlib import ExitStack
from functools import cache

import pytest

from audits import tiny_vit
from browser_pages import DESKTOP, opened
from images import write_images
from vitscope import AuditConfig, audit, explain, write_report
from vitscope.adapters.timm import make_timm_adapter
from vitscope.testing.tiny_timm import TINY_TIMM

HOSTILE_MODEL = "</script><script>window.pwned = 'model'</script><b>bold</b>"
MAPS = ("attention", "contribution_norm", "share", "rollout", "chefer", "traced", "cdam", "centre")
HOSTILE_NAMES = (
    b"<img src=x onerror=\"window.pwned='name'\">.png",
    b"\"><svg onload=window.pwned='attribute'>.png",
    b"<!--<script>window.pwned='comment'.png",
    b"\xff\xfe not utf-8 \xe2\x80\xa8.png",
    b"'; window.pwned='quote'; '${window.pwned=1}`.png",
)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    folder = write_images(tmp_path_factory.mktemp("images"), 24)
    for number, name in enumerate(HOSTILE_NAMES):
        (folder / f"{number:04d}.png").rename(folder / os.fsdecode(name))
    return folder


@pytest.fixture(scope="session")
def results(images, tmp_path_factory):
    """Two audits, of a model with registers and of a hostile one without, and an explanation."""
    folder = tmp_path_factory.mktemp("results")
    vit = tiny_vit()
    with_registers = audit(vit, images, AuditConfig(gallery=16, trace=8), out=folder / "registers")
    hostile = make_timm_adapter(TINY_TIMM["dinov2"](), model_id=HOSTILE_MODEL)
    audit(hostile, images, AuditConfig(gallery=24, maps=MAPS), out=folder / "hostile")
    some = sorted(images.iterdir())[:2]
    explain(vit, some, reference=with_registers, heads=True, out=folder / "explained")
    return folder


@pytest.fixture(scope="session")
def report(results, tmp_path_factory):
    return write_report([results], tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def visit(chromium):
    """Opens a file for one test."""
    with ExitStack() as pages:
        yield lambda path, **how: pages.enter_context(opened(chromium, path, **how))


@pytest.fixture(scope="session")
def revisit(chromium, report):
    """The report, opened once in each size and colours; its controls are set back every time."""
    with ExitStack() as pages:

        @cache
        def open_once(size, colours):
            return pages.enter_context(opened(chromium, report, size=size, colours=colours))

        def set_back(size=DESKTOP, colours="light"):
            watched = open_once(size, colours)
            page = watched.page
            page.emulate_media(media="screen", color_scheme=colours)
            page.keyboard.press("Escape")  # closes the large view
            page.locator("#gallery-model").select_option(index=0)
            page.get_by_role("button", name="Clear").click()
            return watched

        yield set_back
