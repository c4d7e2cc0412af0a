"""The page of `vitscope serve` in a real browser: an image is dropped and its verdict read."""

import base64
from functools import cache
from importlib.resources import files

import pytest

from audits import tiny_vit
from browser_pages import DESKTOP, Watched
from images import write_images
from serving import explaining
from vitscope import explain
from vitscope.serving.explainer import Explainer

PHONE = (390, 844)
HOSTILE_MODEL = "</script><script>window.pwned = 'model'</script>"
HOSTILE_NAME = "<img src=x onerror=\"window.pwned='name'\">.png"
DROP = """([name, content]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name));
  for (const kind of ["dragover", "drop"]) {
    document.querySelector("h1").dispatchEvent(
      new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }
}"""
CHOOSE = """layers => {
  const select = document.getElementById("serve-layer");
  for (const layer of layers) {
    select.value = layer;
    select.dispatchEvent(new Event("change"));
  }
}"""
LEVELS = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return Array.from({ length: data.length / 4 }, (_, k) => data[4 * k] + data[4 * k + 1]);
}"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return sorted(write_images(tmp_path_factory.mktemp("images"), 2).iterdir())


@pytest.fixture(scope="module")
def url():
    models = {"tiny": tiny_vit(), HOSTILE_MODEL: tiny_vit("dinov2")}
    with explaining(Explainer(models, [], "cpu")) as address:
        yield address


@pytest.fixture(scope="module")
def visit(chromium, url):
    """Opens the page, and sees at the end that it neither complained nor asked anyone else."""

    @cache
    def open_once(size, colours):
        viewport = dict(zip(("width", "height"), size, strict=True))
        context = chromium.new_context(viewport=viewport, color_scheme=colours)
        seen.append(Watched(context.new_page()))
        return seen[-1].page

    def visit(size=DESKTOP, colours="light"):
        page = open_once(size, colours)
        page.goto(url)
        return page

    seen = []
    yield visit
    for watched in seen:
        assert watched.page.evaluate("window.pwned") is None
        assert [asked for asked in watched.requests if not asked.startswith(url)] == []
        # Of an image that is refused, the browser itself says so.
        assert [told for told in watched.complaints if "422" not in told] == []
        watched.page.context.close()


def drop(page, image, name):
    page.evaluate(DROP, [name, base64.b64encode(image).decode()])
    wait_for(page, f"{name} is explained below.")


def wait_for(page, words, at="serve-status"):
    page.wait_for_function(
        "([at, words]) => document.getElementById(at).textContent.includes(words)", arg=[at, words]
    )


def brightest(page):
    painted = page.locator("#view-stage canvas").evaluate(LEVELS)
    return max(range(len(painted)), key=painted.__getitem__)


def test_an_image_is_dropped_and_its_verdict_read_beside_its_maps(visit, images):
    page = visit()
    drop(page, images[0].read_bytes(), HOSTILE_NAME)
    found = explain(tiny_vit(), images[:1]).read_image(0)
    assert page.locator("#view-name").inner_text() == HOSTILE_NAME
    assert found.verdict.text[1:] in page.locator("#view-told").inner_text()
    assert brightest(page) == found["attention"].argmax()
    page.locator("#view-map").select_option(label="Value-weighted attention")
    assert brightest(page) == found["contribution_norm"].argmax()
    heads = found.maps["attention"].heads
    page.locator("#view-map").select_option(label="Attention of head 1")
    assert brightest(page) == heads[1].argmax() != heads[0].argmax()
    page.get_by_role("button", name="Attention of head 0").click()
    assert brightest(page) == heads[0].argmax()


def test_another_layer_and_model_are_asked_for(visit, images):
    page = visit()
    drop(page, images[0].read_bytes(), "a.png")
    page.get_by_role("combobox", name="Layer").select_option("0")
    wait_for(page, "tiny, layer 0", at="view-path")
    first = explain(tiny_vit(), images[:1], layer=0).read_image(0)
    assert brightest(page) == first["attention"].argmax()
    page.get_by_label("Model").select_option(HOSTILE_MODEL)
    wait_for(page, "</script>", at="view-path")
    assert page.locator("#view-path").inner_text() == f"{HOSTILE_MODEL}, layer 1"
    other = explain(tiny_vit("dinov2"), images[:1]).read_image(0)
    assert brightest(page) == other["attention"].argmax()


def test_of_many_choices_at_once_the_last_is_asked_for(visit, images):
    page = visit()
    drop(page, images[0].read_bytes(), "a.png")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate(CHOOSE, ["1", "0", "1", "0"])
    wait_for(page, "tiny, layer 0", at="view-path")
    assert [url.rpartition("=")[2] for url in asked] == ["1", "0"]


def test_what_is_no_image_is_told_in_one_line_and_the_next_is_explained(visit, images):
    page = visit()
    page.evaluate(DROP, ["a.html", base64.b64encode(b"<b>no image</b>").decode()])
    wait_for(page, "the image cannot be read: not an image")
    assert not page.locator("#view").is_visible()
    page.evaluate("document.getElementById('serve').dataset.mostBytes = 2 ** 20")
    page.evaluate(DROP, ["large.png", base64.b64encode(bytes(2**20 + 1)).decode()])
    wait_for(page, "large.png has 2 MiB: expected 1 or less")
    drop(page, images[1].read_bytes(), "b.png")
    assert page.locator("#view-name").inner_text() == "b.png"


def test_it_is_used_from_the_keyboard(visit, images):
    page = visit()
    page.locator("#serve-image").focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.locator("#serve-image").set_input_files(images[0])
    wait_for(page, "0000.png is explained below.")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "serve-layer"
    page.keyboard.press("ArrowUp")
    wait_for(page, "tiny, layer 0", at="view-path")
    assert page.evaluate("document.activeElement.id") == "serve-layer"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "view-stage"
    page.keyboard.press("ArrowDown")
    assert page.locator("#view-token").inner_text().startswith("Patch in row")


@pytest.mark.parametrize(
    ("size", "colours"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"]
)
def test_axe_finds_nothing_serious_and_nothing_sticks_out(visit, images, size, colours):
    package = pytest.importorskip("axe_playwright_python")
    page = visit(size, colours)
    drop(page, images[0].read_bytes(), "a.png")
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    page.evaluate(files(package.__name__).joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({ resultTypes: ['violations'] })")
    serious = [
        (one["id"], one["help"], [node["target"] for node in one["nodes"]][:3])
        for one in found["violations"]
        if one["impact"] in {"serious", "critical"}
    ]
    assert serious == []
