"""Images of the web: what servers may do, how long it may take, what is said of it."""

import gzip
import http.server
import re
import threading

import pytest

from containers import make_tar
from encoded import NOISE, encode
from serving import serving
from vitscope.cli import main
from vitscope.errors import ImageReadError, UsageError
from vitscope.images import stores, web
from vitscope.images.addresses import printable_address
from vitscope.images.image_set import ImageSet, iter_batches
from vitscope.images.preprocessing import Preprocessing
from vitscope.images.search import find_images
from vitscope.images.stores import StoredObject
from vitscope.images.urls import is_url, resembles_url, show_name, show_url

pytest.importorskip("aiohttp", reason="fsspec reads the web through aiohttp")

PNG = encode(NOISE, "PNG")
PREPROCESSING = Preprocessing(size=(8, 12), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
BOMB_BYTES = 2**26


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers as its path says, and keeps what it was asked for."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append((self.command, self.path))
        name = self.path.partition("?")[0].strip("/").partition(".")[0]
        answer = getattr(self, f"answer_{name}", None)
        if answer is not None:
            answer()
        elif name.isdigit():
            self.send_error(int(name), "secret")
        else:
            self.send({"good": PNG, "empty": b""}[name])

    def send(self, content, **headers):
        self.send_response(200)
        for key, value in {"Content_Length": len(content), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def answer_silent(self):
        self.server.closing.wait(20)

    def answer_trickle(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(200):
            if self.command == "HEAD" or self.server.closing.wait(0.1):
                return
            self.wfile.write(b"x")

    def answer_bomb(self):
        self.send(gzip.compress(bytes(BOMB_BYTES)), Content_Encoding="gzip")

    def answer_circle(self):
        self.redirect(f"http://{self.headers['Host']}/circle.png")

    def answer_away(self):
        self.redirect("file:///etc/passwd")

    def redirect(self, to):
        self.send_response(302)
        self.send_header("Location", to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer_endless(self):
        # A part was asked for, and more than that comes.
        self.send_response(206)
        self.end_headers()
        for _ in range(1000):
            self.wfile.write(bytes(2**16))

    def answer_liar(self):
        self.send_response(206)
        self.send_header("Content-Range", "bytes 0-9/100")
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"0123456789")

    def answer_short(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x")

    def answer_shards(self):
        content = make_tar({f"{k}.png": PNG for k in range(50)})
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2]) + 1, len(content)))
        if "most=" in self.path:  # as some servers limit what they answer at once
            last = min(last, first + int(self.path.partition("most=")[2]))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last - 1}/{len(content)}")
        self.send_header("Content-Length", str(last - first))
        self.end_headers()
        self.wfile.write(content[first:last])

    def log_message(self, *_):
        pass

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True


@pytest.fixture
def server():
    with serving(_Handler) as server:
        server.asked, server.closing = [], threading.Event()
        yield server
        server.closing.set()


@pytest.fixture
def short_limits(monkeypatch):
    monkeypatch.setattr(web, "SILENCE_S", 0.5)
    monkeypatch.setattr(web, "REQUEST_S", 1.5)


def failure(url) -> str:
    with pytest.raises(ImageReadError) as caught:
        StoredObject(url).read()
    return str(caught.value)


def refusal(source) -> str:
    with pytest.raises(UsageError) as caught:
        find_images(source)
    assert str(caught.value).isprintable()
    return str(caught.value)


# Time and memory


@pytest.mark.parametrize("path", ["silent.png", "trickle.png"])
def test_a_server_without_an_end_is_given_up_on(server, short_limits, path):
    assert failure(f"{server.url}/{path}") == "cannot be read: its server did not answer in time"
    assert len(server.asked) == 1


def test_looking_up_has_the_same_limit(server, short_limits):
    assert "did not answer in time" in refusal(f"{server.url}/silent.tar")


def test_what_is_compressed_on_the_way_is_refused_before_it_is_unpacked(server):
    assert failure(f"{server.url}/bomb.png") == (
        "cannot be read: its server compresses it, unasked: download it"
    )


def test_no_more_is_taken_than_was_asked_for(server):
    data = stores.read_range(StoredObject(f"{server.url}/endless.png"), 7, 1000)
    assert data == bytes(1000)


def test_another_part_than_the_one_asked_for_is_no_answer(server):
    with pytest.raises(ImageReadError, match="its server does not support range requests"):
        stores.read_range(StoredObject(f"{server.url}/liar.png"), 5, 10)


def test_an_object_too_large_is_not_read_to_its_end(server, monkeypatch):
    monkeypatch.setattr(stores, "MAX_FILE_BYTES", 2**17)
    assert failure(f"{server.url}/endless.png").startswith("too large: 131073 bytes")


# What went wrong


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("404.png", "not found (HTTP 404)"),
        ("410.png", "not found (HTTP 410)"),
        ("401.png", "its server answers HTTP 401 Unauthorized"),
        ("403.png", "its server answers HTTP 403 Forbidden"),
        ("429.png", "its server answers HTTP 429 Too Many Requests"),
        ("500.png", "its server answers HTTP 500 Internal Server Error"),
        ("599.png", "its server answers HTTP 599"),
        ("circle.png", "its server redirects in circles"),
        ("away.png", "its server redirects to what is no address of the web"),
        ("short.png", "its server hung up in the middle"),
    ],
)
def test_every_failure_says_what_it_was(server, path, reason):
    url = f"{server.url}/{path}?token=secret"
    assert failure(url) == f"cannot be read: {reason}"
    if path != "short.png":  # which is told when it is read alone
        assert refusal(url).startswith(f"{server.url}/{path} cannot be read: {reason}; give")


def test_a_server_that_is_not_there():
    # Port 9 of this machine discards nothing here: no server listens.
    assert failure("http://127.0.0.1:9/x.png") == "cannot be read: its server cannot be reached"


def test_an_archive_is_read_by_few_requests(server):
    found = find_images(f"{server.url}/shards.tar")
    assert len(found) == 50
    # A look, a part, the size, and the headers in one buffer's worth or two.
    assert len(server.asked) <= 6
    assert found[49].read() == PNG


def test_a_server_that_sends_less_than_was_asked_for_is_asked_again(server):
    found = find_images(f"{server.url}/shards.tar?most=9999")
    assert [address.read() for address in found[::49]] == [PNG, PNG]
    few = StoredObject(f"{server.url}/shards.tar?most=99")
    assert stores.read_range(few, 512, len(PNG)) == PNG


# One rule for every URL of an image


def test_an_image_that_cannot_be_reached_fails_alone(server):
    urls = [f"{server.url}/{name}.png" for name in ("500", "good", "404")]
    found = find_images([*urls, urls[0]])
    assert [printable_address(address) for address in found] == urls
    (batch,) = iter_batches(ImageSet(found, PREPROCESSING), batch_size=9)
    assert batch.indices == [1]
    reasons = [failed.reason for failed in batch.failures]
    assert [reason.partition("HTTP")[2] for reason in reasons] == [
        " 500 Internal Server Error",
        " 404)",
    ]


def test_where_none_can_be_reached_nothing_is_computed(server):
    urls = [f"{server.url}/{name}.png" for name in ("500", "404")]
    assert "HTTP 500" in refusal(urls)


@pytest.mark.parametrize("name", ["404.tar", "404.parquet"])
def test_an_archive_that_cannot_be_reached_is_refused(server, name):
    # It may hold a thousand images: one failure would not say so.
    assert "HTTP 404" in refusal([f"{server.url}/good.png", f"{server.url}/{name}"])


def test_a_text_file_reaches_no_server(server, tmp_path):
    (tmp_path / "list.txt").write_text(f"x.png\n{server.url}/good.png?token=secret\n")
    message = refusal(tmp_path / "list.txt")
    assert f"line 2 of '{tmp_path}/list.txt' is a URL ({server.url}/good.png)" in message
    assert server.asked == []


# Secrets


@pytest.mark.parametrize(
    "name",
    [
        "simplecache::http://user:hunter2@127.0.0.1:9/x",
        "filecache::simplecache::http://user:hunter2@h/x?t=hunter2",
        "zip://x.png::http://user:hunter2@h/y?token=hunter2",
        "http:/user:hunter2@h/x",
        "http//user:hunter2@h/x",
        "http:user:hunter2@h/x",
        "http:///user:hunter2@h/x",
        "http;//user:hunter2@h/x",
        "http:\\\\user:hunter2@h\\x",
        " http://user:hunter2@h/x",
        "<http://user:hunter2@h/x>",
        "user:hunter2@h/x",
        "http:/h/x?token=hunter2",
        "https//h/x#hunter2",
        "simplecache::http:/user:hunter2@h",
        "HTTP://h/x?token=hunter2",
    ],
)
def test_no_secret_of_a_url_is_shown_however_it_is_mistyped(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert resembles_url(name)
    assert "hunter2" not in show_name(name)
    assert not is_url(name) or "hunter2" not in show_url(name)
    (tmp_path / "good.png").write_bytes(PNG)
    (tmp_path / "list.txt").write_text(f"good.png\n{name}\n")
    for source in (name, "list.txt"):
        command = ["audit", source, "--model", "dinov2-small", "--out", "out"]
        assert main(command) in (1, 2)
        told = capsys.readouterr()
        assert "hunter2" not in told.out + told.err
        assert told.err.startswith("vitscope: ")


@pytest.mark.parametrize(
    "name", ["photos/a@2x.png", "12:30.png", "C:/x.png", "C:\\x.png", "a#b?c.png", "-x@y"]
)
def test_paths_are_shown_as_they_are(name):
    assert not resembles_url(name)
    assert show_name(name) == repr(name)
