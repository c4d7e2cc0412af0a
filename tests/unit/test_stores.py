"""Images in object stores: fsspec's own store in memory stands for them all."""

import contextlib
import http.server
import pickle
import re
import sys
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from containers import make_tar, write_parquet
from encoded import NOISE, encode
from serving import serving
from vitscope.errors import ImageReadError, UsageError
from vitscope.images import stores
from vitscope.images.addresses import printable_address, read_image
from vitscope.images.image_set import ImageSet, iter_batches
from vitscope.images.preprocessing import Preprocessing
from vitscope.images.search import find_files, find_images
from vitscope.images.stores import StoredObject
from vitscope.images.urls import is_url, show_url

PNG = encode(NOISE, "PNG")
PREPROCESSING = Preprocessing(size=(8, 12), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture
def store():
    """Writes objects of a store that is empty before and after."""
    files = fsspec.filesystem("memory")

    def write(objects: dict[str, bytes]) -> None:
        for path, content in objects.items():
            files.pipe_file(f"/{path}", content)

    yield write
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def refusal(source) -> str:
    with pytest.raises(UsageError) as caught:
        find_images(source)
    assert str(caught.value).isprintable()
    return str(caught.value)


def names(found) -> list[str]:
    return [printable_address(address) for address in found]


# What a URL names


def test_a_folder_is_listed_with_what_is_below_it(store):
    paths = ["b.jpg", "a/z.PNG", "a/b/c.webp", "a.txt", ".h.jpg", "a/.git/x.jpg"]
    store({f"set/{path}": path.encode() for path in paths} | {"setting/x.jpg": b"", "y.jpg": b""})
    for source in ("memory://set", "memory://set/"):
        found = find_images(source)
        assert names(found) == [f"memory://set/{p}" for p in ("a/b/c.webp", "a/z.PNG", "b.jpg")]
        assert [read_image(address) for address in found] == [b"a/b/c.webp", b"a/z.PNG", b"b.jpg"]


def test_single_objects_archives_and_tables(store, tmp_path):
    table = write_parquet(tmp_path / "x.parquet", {"image": [b"5", b"6"]}).read_bytes()
    shards = {f"s/{k}.tar": make_tar({"k.png": b"%d" % k, "k.txt": b""}) for k in range(1, 5)}
    store(shards | {"s/x.parquet": table, "any name": b"0"})
    sources = ["memory://any name", "memory://s/{1..2}.tar", "memory://s", "memory://s/x.parquet"]
    found = find_images(sources)
    assert [read_image(address) for address in found] == [b"%d" % k for k in range(7)]
    assert names(found)[1] == "memory://s/1.tar::k.png"
    assert names(found)[-1] == "memory://s/x.parquet::1"
    assert pickle.loads(pickle.dumps(found)) == found


def test_a_table_that_was_written_again_is_read_again(store, tmp_path):
    for byte in (b"a", b"b"):
        table = write_parquet(tmp_path / "x.parquet", {"image": [byte * 9, byte * 8]})
        store({"set/x.parquet": table.read_bytes()})
        found = find_images("memory://set")
        assert [read_image(address) for address in found] == [byte * 9, byte * 8]


def test_objects_come_once(store):
    store({"set/a.png": b"", "set/b.png": b""})
    found = find_images(["memory://set/b.png", "memory://set", "memory://set/"])
    assert names(found) == ["memory://set/b.png", "memory://set/a.png"]
    assert find_images(found) == found


def test_processes_that_read_ahead_reach_the_store(store):
    store({f"set/{k}.png": PNG for k in range(4)} | {"set/4.png": PNG[:40]})
    images = ImageSet.from_sources("memory://set", PREPROCESSING, limit=5)
    (batch,) = iter_batches(images, batch_size=9, num_workers=1)
    assert batch.indices == [0, 1, 2, 3]
    assert [failure.index for failure in batch.failures] == [4]


def test_names_are_urls_only_where_they_look_like_it(tmp_path, monkeypatch):
    assert all(map(is_url, ["s3://b/x", "HTTPS://h", "hf://datasets/a/b", "file:///x"]))
    assert not any(map(is_url, ["s3:/b", "a b://x", "://x", "1://x", "./s3://b", "C:\\x", ""]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    (tmp_path / "s3:" / "x.png").touch()
    assert find_images(Path("s3://x.png")) == (Path("s3:/x.png"),)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("memory://me:secret@set/a.png", "memory://set/a.png"),
        ("file:///etc/x.png", "file:///etc/x.png"),
        ("ftp://me:secret@host/x.png", "ftp://host/x.png"),
        ("simplecache::http://me:secret@127.0.0.1:9/x", "simplecache::http://127.0.0.1:9/x"),
        ("a::b://c.png", "'a::b://c.png'"),
        ("  http://host/x.png?secret", "'http...'"),
        ("http:/me:secret@host/x", "'http...'"),
        ("http//me:secret@host/x", "'http...'"),
        ("me:secret@host/x.png", "'...'"),
    ],
)
def test_a_text_file_names_no_urls(store, tmp_path, monkeypatch, line, shown):
    store({"set/a.png": b"1"})
    monkeypatch.setattr(stores, "url_to_fs", lambda url: pytest.fail(f"opened {url}"))
    (tmp_path / "list.txt").write_text(f"here.png\r\n{line}\r\n")
    message = refusal(tmp_path / "list.txt")
    assert message == (
        f"line 2 of '{tmp_path}/list.txt' is a URL ({shown}): text files may hold paths "
        "only; give URLs on the command line or in Python"
    )


def test_a_text_file_may_name_files_that_are_called_like_urls(tmp_path):
    (tmp_path / "http:").mkdir()
    for name in ("http:/x@2x.png", "12:30@home.png"):
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "list.txt").write_text("http://x@2x.png\n12:30@home.png\n")
    found = find_images(tmp_path / "list.txt")
    assert [read_image(address) for address in found] == [PNG, PNG]


def test_any_sign_may_stand_in_the_name_of_an_object(store):
    below = [
        "#.png",
        "?.png",
        "a#b.png",
        "a://b.png",
        "b::c.png",
        "d?e.tar",
        "f?g/h#i.png",
        "x@y.png",
    ]
    store({f"set/{path}": path.encode() for path in below})
    found = find_images("memory://set")
    images = [path for path in below if path.endswith("png")]
    assert names(found) == [f"memory://set/{path}" for path in images]
    assert [read_image(address) for address in found] == [path.encode() for path in images]
    assert find_images([*found, "memory://set"]) == found


def test_a_name_like_a_chain_of_urls_does_not_end_a_run(store):
    store({"set/a.png": PNG, "set/b::c.png": PNG})
    images = ImageSet.from_sources("memory://set", PREPROCESSING)
    (batch,) = iter_batches(images, batch_size=9)
    assert batch.indices == [0, 1]


def test_a_store_that_another_machine_cannot_open_is_a_failure_of_its_images(store, monkeypatch):
    store({"set/a.png": PNG, "set/x.tar": make_tar({"x.png": PNG})})
    found = find_images(["memory://set/a.png", "memory://set/x.tar"])

    def refuse(url):
        raise ImportError from ModuleNotFoundError(name="nosuch")

    monkeypatch.setattr(stores, "url_to_fs", refuse)
    for address in found:
        with pytest.raises(ImageReadError, match="needs the package nosuch"):
            address.read()


def test_no_store_is_opened_for_files_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "url_to_fs", lambda url: pytest.fail(f"opened {url}"))
    (tmp_path / "x.tar").write_bytes(make_tar({"x.png": PNG}))
    write_parquet(tmp_path / "x.parquet", {"image": [PNG]})
    found = find_images([tmp_path / "x.tar", tmp_path / "x.parquet"])
    assert [read_image(address) for address in found] == [PNG, PNG]


# What goes wrong


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("memory://gone", "memory://gone cannot be read: not found; give the URL of a folder"),
        ("memory://gone/{1..2}.tar", "memory://gone/1.tar cannot be read: not found"),
        ("memory://set", "memory://set names no image: expected files ending in .apng"),
        ("memory://set/x.tar.gz", "decompress it to a .tar file"),
        ("memory://set/x.tar", "memory://set/x.tar is not a complete tar archive"),
        ("memory://set/x.parquet", "memory://set/x.parquet is not a complete Parquet file"),
        ("nosuch://b/x", "nosuch:// is not a store that fsspec knows: give s3://"),
        ("zip://x.png::memory://set", "zip://x.png begins a chain of URLs: give one URL"),
    ],
)
def test_what_cannot_be_found_is_refused_in_one_line(store, source, expected):
    store({"set/notes.txt": b"", "set/sub/x.tar.gz": b"", "set/x.tar.gz": b""})
    if source in {"memory://set/x.tar", "memory://set/x.parquet"}:
        store({"set/x.tar": PNG, "set/x.parquet": PNG})
    assert expected in refusal(source)


def test_a_missing_client_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert refusal("s3://bucket/x.png") == (
        "s3:// needs the package s3fs, which is not installed: pip install s3fs"
    )


def test_labels_need_files(store):
    store({"set/a.png": b""})
    with pytest.raises(UsageError, match="1 of the images are in archives, tables"):
        find_files("memory://set")


def test_an_object_that_is_too_large_is_not_read(store, monkeypatch):
    store({"set/x.png": bytes(100)})
    (known,) = find_images("memory://set/x.png")
    monkeypatch.setattr(stores, "MAX_FILE_BYTES", 99)
    for address in (known, StoredObject("memory://set/x.png")):
        with pytest.raises(ImageReadError, match="too large: 100 bytes, more than 99"):
            address.read()
    monkeypatch.setattr(stores, "MAX_FILE_BYTES", 100)
    assert StoredObject("memory://set/x.png").read() == known.read() == bytes(100)


def test_an_object_that_changed_or_went_is_a_failure(store):
    store({"set/x.png": PNG})
    (address,) = find_images("memory://set")
    store({"set/x.png": PNG[:-1]})
    with pytest.raises(ImageReadError, match="bytes came where"):
        address.read()
    fsspec.filesystem("memory").rm("/set/x.png")
    with pytest.raises(ImageReadError, match="cannot be read: not found"):
        address.read()


# Secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a/b.png", "s3://bucket/a/b.png"),
        ("https://me:pw@host:8080/a.png?X-Sig=secret&a=b#c", "https://host:8080/a.png"),
        ("ftp://me:p@ss@host/a@b.png", "ftp://host/a@b.png"),
        ("https://host?token=secret", "https://host"),
        ("https://host/a\n\x1b.png", r"https://host/a\n\x1b.png"),
        ("hf://datasets/a/b@main/x.png", "hf://datasets/a/b@main/x.png"),
        ("s3://bucket/a?b#c.png", "s3://bucket/a?b#c.png"),
        ("https://host/a.png#secret", "https://host/a.png"),
        ("http://host:8080/a@2x.png", "http://host:8080/a@2x.png"),
        ("https://[::1]:80/a@b.png?secret", "https://[::1]:80/a@b.png"),
        ("ftp://me:sec?ret@host/x.png", "ftp://host/x.png"),
        ("ftp://me:sec/ret@host/x.png", "ftp://host/x.png"),
        ("ftp://me:sec/r@t@host/x.png", "ftp://host/x.png"),
        ("ftp://m?e:s#cret@host/x.png", "ftp://host/x.png"),
        ("https://me:sec/ret@host/x.png?secret", "https://host/x.png"),
        ("https://me:sec?ret@host/x.png", "https://..."),
        ("https://me@host?token=sec@ret", "https://..."),
        ("https://host:80?token=sec@ret", "https://host:80"),
    ],
)
def test_user_password_and_query_are_not_shown(url, shown):
    assert show_url(url) == shown
    address = StoredObject(url, size=3)
    assert printable_address(address) == shown
    assert "secret" not in repr(address)


def test_what_a_store_says_is_not_repeated(store, monkeypatch):
    def refuse(self, path, *_, **__):
        raise PermissionError(f"403 for {path}?sig=secret")

    store({"set/x.png": PNG, "set/x.tar": make_tar({"x.png": PNG})})
    found = find_images(["memory://set/x.png", "memory://set/x.tar"])
    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    for address in found:
        with pytest.raises(ImageReadError) as caught:
            address.read()
        assert str(caught.value) == "cannot be read: PermissionError"
    monkeypatch.setattr(MemoryFileSystem, "info", refuse)
    assert "secret" not in refusal("memory://user:secret@set/x.png")


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves objects to whoever has the token: parts of one, all of others."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, _, token = self.path.partition("?")
        archive = make_tar({"a.png": PNG})
        objects = {"/x.png": PNG, "/whole.tar": archive, "/parts.tar": archive}
        content = (objects | {"/endless": b"endless"}).get(path)
        if content is None or token != "token=secret":
            self.send_error(404 if content is None else 403)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if path == "/parts.tar" and asked:
            content = content[int(asked[1]) : int(asked[2]) + 1]
            self.send_response(206)
        else:
            self.send_response(200)
        if path != "/endless":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self._send(content, path)

    def _send(self, content, path):
        self.wfile.write(content)
        # Whoever takes all of it never comes back; whoever hangs up ends it.
        with contextlib.suppress(ConnectionError):
            while path == "/endless":
                self.wfile.write(bytes(2**16))

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    pytest.importorskip("aiohttp", reason="fsspec reads http through aiohttp")
    with serving(_Handler) as server:
        yield server.url


def test_signed_urls_are_read_and_not_shown(server):
    (address,) = find_images(f"{server}/x.png?token=secret")
    assert address.read() == PNG
    assert names([address]) == [f"{server}/x.png"]
    assert refusal(f"{server}/x.png?token=wrong").startswith(f"{server}/x.png cannot be read: ")
    assert "not found" in refusal(f"{server}/gone.png?token=secret")


def test_a_server_that_gives_out_no_parts_is_told_before_anything_is_computed(server):
    message = refusal(f"{server}/whole.tar?token=secret")
    assert message.startswith(f"{server}/whole.tar cannot be read in parts (")
    assert "use a server that supports range requests" in message


def test_no_more_is_taken_than_a_part_from_a_server_that_gives_out_everything(server):
    whole = StoredObject(f"{server}/endless?token=secret")
    assert stores.read_range(whole, 0, 5) == b"endle"
    with pytest.raises(ImageReadError, match="its server does not support range requests"):
        stores.read_range(whole, 1, 5)


def test_archives_are_read_from_a_server_that_gives_out_parts(server):
    (address,) = find_images(f"{server}/parts.tar?token=secret")
    assert address.read() == PNG
