"""The page's server: it explains as `explain` does, in turn, and refuses what is hostile."""

import json
import socket
import struct
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from types import SimpleNamespace as Namespace
from typing import ClassVar
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

import pytest
import torch
from PIL import Image

import vitscope
from audits import tiny_vit
from images import write_images
from serving import explaining
from vitscope import audit, explain
from vitscope.cli import main
from vitscope.errors import UsageError
from vitscope.figures.saved import load_results
from vitscope.report.embedded_images import collect_images
from vitscope.results.verdict import MOODS
from vitscope.serving import app
from vitscope.serving.explainer import Explainer

MODELS = ("dinov2_reg", "dinov2")
MAPS = ["attention", "contribution_norm", "share", "rollout", "legrad"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return sorted(write_images(tmp_path_factory.mktemp("images"), 24).iterdir())


@pytest.fixture(scope="module")
def explainer():
    return Explainer({name: tiny_vit(name) for name in MODELS}, [], "cpu")


@pytest.fixture(scope="module")
def url(explainer):
    with explaining(explainer) as address:
        yield address


def ask(url, path="/", body=None, **headers):
    """Status, headers and text of an answer."""
    request = Request(url + path, body, headers)
    try:
        with urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except HTTPError as error:
        return error.code, error.headers, error.read().decode()


def send(url, image, **chosen):
    query = urlencode({"model": "dinov2_reg", "layer": 1} | chosen)
    return ask(url, f"/explain?{query}", image)


def test_an_image_is_explained_as_explain_does(url, images):
    for name, layer in zip(MODELS, (1, 0), strict=True):
        found = explain(tiny_vit(name), images[:1], layer=layer, maps=MAPS)
        expected = collect_images(load_results([found.folder]))
        status, _, text = send(url, images[0].read_bytes(), model=name, layer=layer)
        answer = json.loads(text)
        assert status == 200
        assert answer["mood"] == "unknown"
        assert answer["thumbnails"] == expected["thumbnails"]
        (image,), (wanted,) = (one["galleries"][0]["images"] for one in (answer, expected))
        assert image["path"] == "the image"
        assert image | {"path": "", "name": ""} == wanted | {"path": "", "name": ""}
        assert len(image["maps"]) > 3


def test_requests_at_once_are_answered_as_one_after_another(url, images):
    wanted = [(image.read_bytes(), layer) for image in images[:2] for layer in (0, 1)]

    def answer(one):
        return send(url, one[0], layer=one[1])[2]

    alone = [answer(one) for one in wanted]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, wanted)) == alone
    assert len(set(alone)) == 4


class Slow:
    """Explains when it is let go, and counts."""

    layers: ClassVar = {"any": [0]}

    def __init__(self):
        self.go = threading.Event()
        self.running = self.most = self.total = 0

    def explain(self, *_):
        self.running += 1
        self.total += 1
        self.most = max(self.most, self.running)
        self.go.wait(20)
        self.running -= 1
        return {}


def test_one_image_at_a_time_is_decoded_and_run():
    slow = Slow()
    with explaining(slow) as url, ThreadPoolExecutor(4) as pool:
        found = [pool.submit(send, url, b"image") for _ in range(4)]
        time.sleep(0.05)
        slow.go.set()
        assert [one.result()[0] for one in found] == [200] * 4
    assert (slow.total, slow.most) == (4, 1)


def test_an_image_whose_sender_left_is_not_explained():
    slow = Slow()
    with explaining(slow) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(send, url, b"image")
        while not slow.running:
            time.sleep(0.001)
        with connect(url) as client:
            client.sendall(b"Content-Length: 1\r\n\r\nx")
            time.sleep(0.05)
        slow.go.set()
        assert first.result()[0] == send(url, b"image")[0] == 200
    assert slow.total == 2


def make_bomb(side=60_000):
    """A PNG of a few bytes that says it has 3.6 thousand million pixels."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9))


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (b"", "the image cannot be read: the file is empty"),
        (b"<svg onload='alert(1)'/>", "not an image, or damaged at its beginning"),
        (make_bomb(), "the image cannot be read: too large"),
    ],
    ids=["empty", "no image", "bomb"],
)
def test_what_is_no_image_is_refused_in_one_line(url, image, told):
    status, headers, text = send(url, image)
    assert (status, headers["Content-Type"]) == (422, "text/plain; charset=utf-8")
    assert told in text
    assert "\n" not in text


def test_an_image_that_is_cut_short_is_refused(url, images):
    assert "damaged or cut short" in send(url, images[0].read_bytes()[:-40])[2]


@pytest.mark.parametrize(("width", "status"), [(96, 200), (97, 422)])
def test_an_image_that_is_too_long_is_refused(url, width, status):
    file = BytesIO()
    Image.new("RGB", (width, 32), "red").save(file, "PNG")
    found, _, text = send(url, file.getvalue())
    assert found == status
    assert (text == "97 x 32 px has an aspect ratio above 3: crop it to the part to explain") == (
        status == 422
    )


def test_a_model_is_moved_to_its_device_once(monkeypatch):
    vit, moved = tiny_vit(), []
    monkeypatch.setattr(vit.module, "to", moved.append)
    Explainer({"any": vit}, [], "cpu")
    assert moved == [torch.device("cpu")]


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"model": "../../etc/passwd"}, "model ../../etc/passwd is not served: choose from"),
        ({"model": "\x1b]0;x" + 999 * "y"}, r"model \x1b]0;xyyy"),
        ({"layer": "-1"}, "layer '-1': expected a block's number"),
        ({"layer": 5000 * "1"}, "expected a block's number"),
        ({"layer": "7"}, "has no layer 7 to analyse: choose from 0 to 1"),
    ],
)
def test_models_and_layers_that_are_not_there_are_refused(url, images, chosen, told):
    status, _, text = send(url, images[0].read_bytes(), **chosen)
    assert status == 422
    assert told in text
    assert len(text) < 300


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example:8000"},
        {"Host": "127.0.0.1.example"},
        {"Host": "[::1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
    ],
    ids=str,
)
def test_requests_of_other_sites_and_rebound_names_are_refused(url, images, headers):
    for path, body in (("/", None), ("/explain?model=dinov2&layer=1", images[0].read_bytes())):
        status, _, text = ask(url, path, body, **headers)
        assert status == 403
        assert text.startswith("refused: ")


def test_the_page_itself_may_ask(url, images):
    for host in (urlsplit(url).netloc, "localhost:1", "[::1]:1", "192.0.2.1"):
        status, _, _ = ask(url, Host=host, Origin=f"http://{host}")
        assert status == 200


def test_pages_cannot_be_framed_sniffed_or_kept(url):
    _, headers, page = ask(url)
    assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"
    assert "default-src &#39;none&#39;; script-src &#39;sha256-" in page
    assert "connect-src &#39;self&#39;" in page


def connect(url):
    parts = urlsplit(url)
    client = socket.create_connection((parts.hostname, parts.port), timeout=20)
    client.sendall(b"POST /explain?model=dinov2&layer=1 HTTP/1.1\r\nHost: localhost\r\n")
    return client


def test_a_body_that_is_too_large_is_refused(url):
    with connect(url) as client:  # before any of it is read
        client.sendall(b"Content-Length: 99999999999\r\n\r\n")
        assert client.recv(99).startswith(b"HTTP/1.1 413 ")
    with connect(url) as client:  # its size is not said
        client.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
        for _ in range(app._MOST_BYTES // 2**20):
            client.sendall(chunk)
        client.sendall(b"1\r\nx\r\n")
        assert client.recv(99).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_not_waited_for(url, monkeypatch):
    monkeypatch.setattr(app, "_MOST_SECONDS", 0.05)
    with connect(url) as client:
        client.sendall(b"Content-Length: 9\r\n\r\nhalf")
        assert client.recv(99).startswith(b"HTTP/1.1 408 ")


def test_a_sender_that_leaves_does_no_harm(explainer, images, capfd):
    with explaining(explainer) as url:
        with connect(url) as client:
            client.sendall(b"Content-Length: 9\r\n\r\nhalf")
        assert send(url, images[0].read_bytes())[0] == 200
    assert capfd.readouterr().err == ""


def test_verdicts_refer_to_an_audit_that_fits(images, tmp_path):
    audited = audit(tiny_vit(), images[:20], out=tmp_path / "a", gallery=0, features="drop")
    served = Explainer({name: tiny_vit(name) for name in MODELS}, [audited], "cpu")
    found = served.explain("dinov2_reg", 1, images[0].read_bytes())
    (image,) = found["galleries"][0]["images"]
    expected = explain(tiny_vit(), images[:1], reference=audited).summary.images[0].verdict
    assert expected.text[1:] in image["told"]
    assert "means over 20 images of the audit" in image["why"]
    assert found["mood"] == MOODS[expected.status] != "unknown"
    for other in (("dinov2_reg", 0), ("dinov2", 1)):
        assert served.explain(*other, images[0].read_bytes())["mood"] == "unknown"


def test_the_largest_audit_is_tried_first(monkeypatch, images):
    tried = []

    def refuse(one, wanted):
        tried.append(one.summary.data.num_images)
        raise UsageError("it does not fit")

    monkeypatch.setattr("vitscope.serving.explainer.read_reference", refuse)
    audits = [Namespace(summary=Namespace(data=Namespace(num_images=n))) for n in (20, 99, 21)]
    Explainer({"any": tiny_vit()}, audits, "cpu").explain("any", 1, images[0].read_bytes())
    assert tried == [99, 21, 20]


def test_saved_results_are_shown_as_their_report(explainer, images, tmp_path, url, monkeypatch):
    assert ask(url, "/report")[::2] == (404, "no saved results were given to vitscope serve")
    assert "/report" not in ask(url)[2]
    explain(tiny_vit(), images[:1], out=tmp_path / "explained")
    results = load_results([tmp_path])
    monkeypatch.setattr(app, "render_report", lambda given: given[0].label)
    with explaining(explainer, results) as both:
        assert 'href="/report"' in ask(both)[2]
        assert ask(both, "/report")[2] == "tiny/dinov2_reg"
    with explaining(Explainer({}, [], "cpu"), results) as alone:
        assert ask(alone)[2] == "tiny/dinov2_reg"


class TestCommand:
    @pytest.fixture(autouse=True)
    def started(self, monkeypatch):
        """Sockets that were served on, though no server runs."""
        started = []
        monkeypatch.setattr(vitscope, "load_model", lambda _: tiny_vit())
        monkeypatch.setattr("vitscope.cli.each_model.check_weights", lambda _: None)
        run = staticmethod(lambda sockets: started.extend(sockets))
        monkeypatch.setattr(app.uvicorn.Server, "run", run)
        return started

    def test_it_says_where_the_page_is(self, capsys, started):
        assert main(["serve", "-m", "dinov2-small", "--port", "0"]) == 0
        out, err = capsys.readouterr()
        assert out.startswith("open http://127.0.0.1:")
        assert err == "loading dinov2-small\n"
        assert len(started) == 1

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            ([], "neither a result nor a model was given"),
            (["-m", "dinov2-smal"], "dinov2-smal"),
            (["nowhere"], "nowhere does not exist: expected a result of vitscope"),
            (["-m", "dinov2-small", "--port", "99999"], "port 99999: expected 0 to 65535"),
            (["-m", "dinov2-small", "--host", "192.0.2.1"], "host 192.0.2.1, port 8000: "),
        ],
        ids=lambda given: " ".join(given) if isinstance(given, list) else "",
    )
    def test_what_cannot_be_served_is_refused_in_one_line(self, capsys, arguments, told, started):
        assert main(["serve", *arguments]) == 2
        assert told in capsys.readouterr().err
        assert started == []

    def test_weights_of_all_models_are_looked_for_before_one_is_loaded(self, capsys, monkeypatch):
        def refuse(model_id):
            if model_id == "dinov2-base":
                raise UsageError(f"no weights of {model_id}")

        monkeypatch.setattr("vitscope.cli.each_model.check_weights", refuse)
        assert main(["serve", "-m", "dinov2-small", "-m", "dinov2-base"]) == 2
        assert capsys.readouterr().err == "vitscope: no weights of dinov2-base\n"

    def test_a_port_in_use_is_refused(self, capsys):
        with app.listen("127.0.0.1", 0) as taken:
            port = str(taken.getsockname()[1])
            assert main(["serve", "-m", "dinov2-small", "--port", port]) == 2
        assert "choose another host or port" in capsys.readouterr().err

    @pytest.mark.parametrize("package", ["anyio", "starlette", "uvicorn"])
    def test_a_missing_package_is_named(self, capsys, monkeypatch, package):
        monkeypatch.setitem(sys.modules, package, None)
        assert main(["serve", "-m", "dinov2-small"]) == 2
        err = capsys.readouterr().err
        assert f"vitscope serve needs the package {package}, which is not installed" in err
        assert "pip install 'vitscope[serve]'" in err
