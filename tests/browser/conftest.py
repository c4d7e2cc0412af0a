"""A real browser, and reports of tiny models whose names and images' names are hostile."""

import os

import pytest

from audits import tiny_vit
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
    explain(vit, some, reference=with_registers, out=folder / "explained")
    return folder


@pytest.fixture(scope="session")
def report(results, tmp_path_factory):
    return write_report([results], tmp_path_factory.mktemp("report") / "report.html")


class Watched:
    """A page that remembers what went wrong on it, and what it asked for."""

    def __init__(self, page):
        self.page = page
        self.complaints = []
        self.requests = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._see(request.url))

    def _hear(self, message):
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def _see(self, url):
        if not url.startswith(("file:", "data:")):
            self.requests.append(url)


@pytest.fixture
def visit(chromium):
    """Opens a file from disk with the network off."""
    contexts = []

    def open_file(path, *, width=1280, height=900, colours="light", wait=True):
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=colours, offline=True
        )
        contexts.append(context)
        watched = Watched(context.new_page())
        watched.page.goto(path.as_uri())
        if wait:
            watched.page.wait_for_selector("html[data-drawn=all]", state="attached")
        return watched

    yield open_file
    for context in contexts:
        context.close()
