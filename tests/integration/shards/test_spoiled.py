"""What is done to a run from outside: its images exchanged, its files changed, its place taken."""

import http.server
import os
import shutil
import signal
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest

from audits import tiny_vit
from containers import make_image_column, make_tar, write_parquet
from serving import serving
from sharded import CONFIG, NUM_IMAGES, assert_identical, stop_after
from vitscope import AuditResult, audit
from vitscope.errors import DiskError, UsageError
from vitscope.files import workspace as workspace_module
from vitscope.files.workspace import Workspace, place_of
from vitscope.results import audit_result


@pytest.fixture
def contents(images):
    """Of one length, so that nothing but the bytes tells one from another."""
    found = [path.read_bytes() for path in sorted(images.iterdir())]
    return [content.ljust(max(map(len, found)), b"\0") for content in found]


def write_table(path, contents):
    write_parquet(path, {"image": make_image_column(contents)})


def write_archive(path, contents):
    path.write_bytes(make_tar({f"{k:02d}.png": content for k, content in enumerate(contents)}))


WRITERS = {"set.parquet": write_table, "set.tar": write_archive}


def interrupt(source, out):
    with pytest.raises(KeyboardInterrupt):
        audit(tiny_vit(), source, CONFIG, out=out, on_progress=stop_after(9, KeyboardInterrupt()))


# Other images under the same address


@pytest.mark.parametrize("name", WRITERS)
def test_an_archive_that_was_replaced_is_noticed(contents, tmp_path, name):
    path, out = tmp_path / name, tmp_path / "r"
    WRITERS[name](path, contents[:10])
    before = path.stat()
    interrupt(path, out)
    WRITERS[name](tmp_path / "other", contents[10:20])
    os.utime(tmp_path / "other", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "other").replace(path)
    with pytest.raises(UsageError, match="the images differ or have changed"):
        audit(tiny_vit(), path, CONFIG, out=out, resume=True)
    audit(tiny_vit(), path, CONFIG, out=out, resume=True, overwrite=True)
    WRITERS[name](tmp_path / "other", contents[:10])
    (tmp_path / "other").replace(path)
    with pytest.raises(UsageError, match="holds a different result"):
        audit(tiny_vit(), path, CONFIG, out=out, resume=True)


@pytest.mark.parametrize("name", WRITERS)
def test_a_relative_name_is_of_the_folder_that_one_is_in(contents, tmp_path, monkeypatch, name):
    for folder, some in (("1", contents[:5]), ("2", contents[5:10])):
        (tmp_path / folder).mkdir()
        WRITERS[name](tmp_path / folder / name, some)
    status = (tmp_path / "1" / name).stat()
    os.utime(tmp_path / "2" / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    monkeypatch.chdir(tmp_path / "1")
    audit(tiny_vit(), name, CONFIG, out=tmp_path / "r")
    audit(tiny_vit(), name, CONFIG, out=tmp_path / "r", resume=True)
    monkeypatch.chdir(tmp_path / "2")
    with pytest.raises(UsageError, match="holds a different result"):
        audit(tiny_vit(), name, CONFIG, out=tmp_path / "r", resume=True)


@pytest.mark.parametrize("name", WRITERS)
def test_an_archive_of_a_store_that_was_replaced_is_noticed(contents, tmp_path, name):
    store = fsspec.filesystem("memory")
    url, out = f"memory://spoiled/{name}", tmp_path / "r"
    try:
        for number, some in enumerate((contents[:10], contents[10:20])):
            WRITERS[name](tmp_path / name, some)
            store.pipe_file(f"/spoiled/{name}", (tmp_path / name).read_bytes())
            if number == 0:
                interrupt(url, out)
        with pytest.raises(UsageError, match="the images differ or have changed"):
            audit(tiny_vit(), url, CONFIG, out=out, resume=True)
    finally:
        store.rm("/spoiled", recursive=True)


@pytest.fixture
def site(contents):
    """Gives out the image that a query asks for."""

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            number = int(parse_qs(urlsplit(self.path).query)["id"][0])
            self.send_response(200)
            self.send_header("Content-Length", str(len(contents[number])))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(contents[number])

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with serving(Site) as server:
        yield f"{server.url}/img"


def test_images_of_another_query_are_others(site, tmp_path):
    first = [f"{site}?id={k}" for k in range(10)]
    interrupt(first, tmp_path / "r")
    with pytest.raises(UsageError, match="the images differ or have changed"):
        audit(
            tiny_vit(),
            [f"{site}?id={k}" for k in range(10, 20)],
            CONFIG,
            out=tmp_path / "r",
            resume=True,
        )
    result = audit(tiny_vit(), first, CONFIG, out=tmp_path / "r", resume=True)
    paths = result.images["path"].to_pylist()
    assert paths == [f"{site} ({k})" for k in range(1, 11)]


def test_users_and_passwords_tell_no_images_apart(site, tmp_path):
    with_user = site.replace("http://", "http://user:secret@")
    audit(tiny_vit(), [f"{with_user}?id={k}" for k in range(4)], CONFIG, out=tmp_path / "r")
    again = [f"{site}?id={k}" for k in range(4)]
    audit(tiny_vit(), again, CONFIG, out=tmp_path / "r", resume=True)


# Damage


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name",
    [
        "features/*/*.safetensors",
        "sums/*/*.safetensors",
        "sums.safetensors",
        "images.parquet",
        "machine.json",
    ],
)
def test_a_part_with_a_flipped_bit_is_made_again(images, whole, tmp_path, name):
    interrupt(images, tmp_path / "r")
    (path,) = Workspace(place_of(tmp_path / "r")).part(1).glob(name)
    flip(path)
    assert_identical(audit(tiny_vit(), images, CONFIG, out=tmp_path / "r", resume=True), whole)


@pytest.mark.parametrize("name", ["features/*/*.safetensors", "images.parquet", "failures.csv"])
def test_a_part_without_one_of_its_files_is_made_again(images, whole, tmp_path, name):
    interrupt(images, tmp_path / "r")
    (path,) = Workspace(place_of(tmp_path / "r")).part(1).glob(name)
    path.unlink()
    assert_identical(audit(tiny_vit(), images, CONFIG, out=tmp_path / "r", resume=True), whole)


def test_a_disk_that_changes_every_part_is_told(images, tmp_path, monkeypatch):
    monkeypatch.setattr(Workspace, "is_whole", lambda *_: False)
    with pytest.raises(DiskError, match="change after they were written: check the disk"):
        audit(tiny_vit(), sorted(images.iterdir())[:4], CONFIG, out=tmp_path / "r")


@pytest.mark.parametrize("kills_at", [1, 2])
def test_a_run_whose_parts_were_being_removed_can_be_resumed(
    images, whole, tmp_path, monkeypatch, kills_at
):
    out = tmp_path / "r"
    interrupt(images, out)
    rmtree, calls = shutil.rmtree, []

    def die(folder, **options):
        if place_of(out) not in folder.parents or ".partial-" in folder.name:
            return rmtree(folder, **options)
        calls.append(folder)
        if len(calls) < kills_at:
            return rmtree(folder)
        next(path for path in folder.rglob("*.safetensors") if path.is_file()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(workspace_module.shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            audit(tiny_vit(), images, replace(CONFIG, batch_size=2), out=out, overwrite=True)
    assert_identical(audit(tiny_vit(), images, CONFIG, out=out, resume=True), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


# Somebody else's files in the place


@pytest.fixture
def at_most_a_minute():
    def give_up(*_):
        raise AssertionError("still waiting")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", [".lock", "plan.json", "copies.json"])
def test_no_link_is_followed_out_of_the_place(images, tmp_path, name):
    (tmp_path / "victim").write_text("mine")
    place_of(tmp_path / "r").mkdir()
    (place_of(tmp_path / "r") / name).symlink_to(tmp_path / "victim")
    with pytest.raises(UsageError, match=rf"{name} is .*: remove it"):
        audit(tiny_vit(), images, CONFIG, out=tmp_path / "r")
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "parts", "parts/000000"])
def test_nothing_is_removed_through_a_link(images, tmp_path, name):
    (tmp_path / "victim" / "parts" / "000001").mkdir(parents=True)
    (tmp_path / "victim" / "parts" / ".000001.partial-x").write_text("mine")
    link = place_of(tmp_path / "r") / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "victim" / name)
    with pytest.raises(UsageError, match="is a link, which vitscope does not create: remove it"):
        audit(tiny_vit(), images, CONFIG, out=tmp_path / "r", overwrite=True)
    assert (tmp_path / "victim" / "parts" / ".000001.partial-x").read_text() == "mine"
    assert (tmp_path / "victim" / "parts" / "000001").is_dir()


def test_a_pipe_in_the_place_of_the_lock_keeps_nobody_waiting(images, tmp_path, at_most_a_minute):
    place_of(tmp_path / "r").mkdir()
    os.mkfifo(place_of(tmp_path / "r") / ".lock")
    with pytest.raises(UsageError, match="is not a regular file: remove it"):
        audit(tiny_vit(), images, CONFIG, out=tmp_path / "r")


@pytest.mark.parametrize("ends_well", [True, False])
def test_files_of_the_user_stay(images, tmp_path, ends_well):
    mine = [place_of(tmp_path / "r") / name for name in ("notes.txt", "parts/.notes", "parts/x/y")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    few = sorted(images.iterdir())[:5]
    if ends_well:
        audit(tiny_vit(), few, CONFIG, out=tmp_path / "r")
    else:
        stop = stop_after(1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            audit(tiny_vit(), few, CONFIG, out=tmp_path / "r", on_progress=stop)
    assert [path.read_text() for path in mine] == ["mine"] * 3
    left = {path for path in place_of(tmp_path / "r").rglob("*") if path.is_file()}
    assert left == set(mine)


def test_no_audit_begins_where_results_are_being_merged(images, tmp_path, monkeypatch):
    names = sorted(images.iterdir())
    first, second = (
        audit(tiny_vit(), some, CONFIG, out=tmp_path / folder)
        for folder, some in (("a", names[:4]), ("b", names[4:8]))
    )
    finish, refused = audit_result.finish_result, []

    def audit_beside(*given, **options):
        with pytest.raises(UsageError, match="another run is using"):
            audit(tiny_vit(), names[:4], CONFIG, out=tmp_path / "r")
        refused.append(True)
        finish(*given, **options)

    monkeypatch.setattr(audit_result, "finish_result", audit_beside)
    merged = first.merge(second, out=tmp_path / "r")
    assert refused
    assert AuditResult.load(merged.folder).summary.data.num_images == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "r"]


def test_an_unfinished_run_stays_where_results_are_merged(images, whole, tmp_path):
    names = sorted(images.iterdir())
    interrupt(images, tmp_path / "r")
    first, second = (audit(tiny_vit(), names[k : k + 4], CONFIG) for k in (0, 4))
    first.merge(second, out=tmp_path / "r")
    result = audit(tiny_vit(), images, CONFIG, out=tmp_path / "r", resume=True, overwrite=True)
    assert_identical(result, whole)


# What a run says


def test_a_disk_that_is_too_small_is_told_before_the_work(images, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    seen = []
    for out in (tmp_path / "r", None):
        with pytest.raises(DiskError, match=r"takes at least .* GB until the run is finished"):
            audit(
                tiny_vit(),
                images,
                CONFIG,
                out=out,
                on_progress=lambda *progress: seen.append(progress),
            )
    assert not seen
    assert list(tmp_path.iterdir()) == []


def test_what_is_said_to_be_needed_is_needed(images, tmp_path, monkeypatch):
    from vitscope.runs.audit_run import AuditRun

    said, finish = [], AuditRun.finish

    def weigh(run, folder, parts, *others, **named):
        files = [p for part in parts for p in part.rglob("*.safetensors") if p.parent.name == "000"]
        said.append((run.count_bytes(run.shards), sum(path.stat().st_size for path in files)))
        finish(run, folder, parts, *others, **named)

    monkeypatch.setattr(AuditRun, "finish", weigh)
    config = replace(CONFIG, shard_size=NUM_IMAGES, layers=[0, 1])
    for number, features in enumerate(("keep", "drop")):
        audit(tiny_vit(), images, replace(config, features=features), out=tmp_path / f"{number}")
    for count, there in said:
        # Headers, names of blocks and attention masses lie in these files too.
        assert 0.3 * there < count / 2 < there


class InterruptedRank:
    """A process that does not lead, stopped as it begins to work."""

    shares_files = True
    is_lead = False

    def run(self, *_):
        raise KeyboardInterrupt
        yield

    def barrier(self):
        pass


def test_a_rank_that_is_stopped_tells_what_is_kept(images, tmp_path):
    out, rank = tmp_path / "r", InterruptedRank()
    interrupt(images, out)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt) as stopped:
            audit(tiny_vit(), images, CONFIG, out=out, engine=rank, resume=resume)
        advice = "the same call resumes it" if resume else "give resume=True to resume"
        assert stopped.value.__notes__ == [f"2 of 6 shards are kept: {advice}"]
