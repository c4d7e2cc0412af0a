"""Images of the same bytes count once, whoever comes upon them; how many were left out is said."""

import csv
import http.server
from dataclasses import replace
from io import StringIO

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from audits import assert_same_numbers, numbers, tiny_vit
from containers import make_image_column, make_tar, write_parquet
from serving import serving
from sharded import (
    CONFIG,
    ROUNDING,
    VERIFIED,
    ElsewhereEngine,
    assert_identical,
    stop_after,
)
from vitscope import AuditConfig, AuditResult, audit
from vitscope.errors import ResultError
from vitscope.files.workspace import Workspace, place_of
from vitscope.images.image_set import ImageSet
from vitscope.results.schema import DataSummary
from vitscope.terminal import make_report

NUM_DIFFERENT = 22
NUM_COPIES = 7


@pytest.fixture(scope="module")
def with_copies(images, tmp_path_factory):
    """The images, and copies of some in their own shard of 4, in the next, and at the end."""
    folder = tmp_path_factory.mktemp("copies") / "with-copies"
    folder.mkdir()
    for path in images.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for name, original in [
        ("0000a", 0),
        ("0000b", 0),
        ("0007a", 3),
        ("9999a", 0),
        ("9999b", 21),
        ("9999c", 12),
        ("9999d", 12),
    ]:
        (folder / f"{name}.png").write_bytes((images / f"{original:04d}.png").read_bytes())
    return folder


def as_folder(folder):
    return folder


def as_tar(folder):
    path = folder.parent / "set.tar"
    path.write_bytes(make_tar({p.name: p.read_bytes() for p in sorted(folder.iterdir())}))
    return path


def as_table(folder):
    path = folder.parent / "set.parquet"
    contents = [p.read_bytes() for p in sorted(folder.iterdir())]
    write_parquet(path, {"image": make_image_column(contents)})
    return path


@pytest.fixture
def serve(with_copies):
    """Serves the files of that folder, without telling their sizes beforehand."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=with_copies)

        def log_message(self, *_):
            pass

    with serving(Quiet) as server:
        yield server.url


def assert_counted_once(result, whole):
    counts = DataSummary(num_images=NUM_DIFFERENT, num_failed=0, num_repeated=NUM_COPIES)
    assert result.summary.data == counts
    ids = result.images["image_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert ids == whole.images["image_id"].to_pylist()
    assert_same_numbers(numbers(result), numbers(whole), ROUNDING)


@pytest.fixture(scope="module")
def once(images):
    return audit(tiny_vit(), images, VERIFIED)


@pytest.mark.parametrize("make", [as_folder, as_tar, as_table])
@pytest.mark.parametrize("shard_size", [4, 64])
def test_copies_count_once_wherever_they_lie(with_copies, once, tmp_path, make, shard_size):
    config = replace(VERIFIED, shard_size=shard_size)
    result = audit(tiny_vit(), make(with_copies), config, out=tmp_path / "r")
    assert_counted_once(result, once)
    assert list(tmp_path.glob(".r*")) == []


def test_copies_of_a_list_of_urls_count_once(with_copies, once, tmp_path, serve):
    urls = [f"{serve}/{path.name}" for path in sorted(with_copies.iterdir())]
    assert_counted_once(audit(tiny_vit(), urls, VERIFIED, out=tmp_path / "r"), once)


def test_copies_are_found_where_workers_share_no_files(with_copies, once, tmp_path):
    result = audit(
        tiny_vit(), as_table(with_copies), VERIFIED, out=tmp_path / "r", engine=ElsewhereEngine()
    )
    assert_counted_once(result, once)


def test_a_prepared_set_and_a_result_without_a_folder_leave_copies_out(with_copies, once):
    vit = tiny_vit()
    images = ImageSet.from_sources(with_copies, vit.preprocessing)
    assert_counted_once(audit(vit, images, VERIFIED), once)


@pytest.fixture(scope="module")
def uncut(with_copies, tmp_path_factory):
    """What audits of the folder, and of the table, come to if nothing stops them."""
    out = tmp_path_factory.mktemp("uncut")
    return {
        make: audit(tiny_vit(), make(with_copies), CONFIG, out=out / make.__name__)
        for make in (as_folder, as_table)
    }


@pytest.mark.parametrize("make", [as_folder, as_table])
@pytest.mark.parametrize("after", [5, 13, 27])
def test_a_run_over_copies_goes_on_to_the_same_bits(with_copies, uncut, tmp_path, make, after):
    source = make(with_copies)
    out = tmp_path / "r"
    try:
        audit(
            tiny_vit(), source, CONFIG, out=out, on_progress=stop_after(after, KeyboardInterrupt())
        )
    except KeyboardInterrupt:
        assert Workspace(place_of(out)).find_done()
    else:
        assert after > NUM_DIFFERENT
    assert_identical(audit(tiny_vit(), source, CONFIG, out=out, resume=True), uncut[make])


def test_a_run_that_was_stopped_as_it_left_copies_out_goes_on_to_the_same_bits(
    with_copies, uncut, tmp_path, monkeypatch
):
    source, out = as_table(with_copies), tmp_path / "r"
    removed = []

    def stop(self, number):
        if removed:
            raise KeyboardInterrupt
        removed.append(number)
        remove(self, number)

    remove = Workspace.remove_part
    with monkeypatch.context() as patched:
        patched.setattr(Workspace, "remove_part", stop)
        with pytest.raises(KeyboardInterrupt):
            audit(tiny_vit(), source, CONFIG, out=out)
    assert removed == [2]
    assert_identical(audit(tiny_vit(), source, CONFIG, out=out, resume=True), uncut[as_table])


def test_jobs_of_an_array_share_the_copies_out_and_merge_to_the_whole(with_copies, once, tmp_path):
    first, *others = (
        audit(tiny_vit(), with_copies, replace(VERIFIED, shard=(k, 3)), out=tmp_path / f"{k}")
        for k in (1, 2, 3)
    )
    merged = first.merge(*others, out=tmp_path / "merged")
    assert merged.missing_shards == []
    assert_counted_once(merged, once)


def test_jobs_whose_copies_nobody_could_tell_are_not_merged(with_copies, tmp_path):
    source = as_table(with_copies)
    first, second = (
        audit(tiny_vit(), source, replace(CONFIG, shard=(k, 2)), out=tmp_path / f"{k}")
        for k in (1, 2)
    )
    with pytest.raises(ResultError, match="1 of its images are repeated or also in another result"):
        first.merge(second)


def test_a_folder_that_was_reordered_between_two_jobs_is_not_merged(images, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    contents = [path.read_bytes() for path in sorted(images.iterdir())][:6]
    for k, content in enumerate(contents):
        (folder / f"{k}.png").write_bytes(content)
    first = audit(tiny_vit(), folder, replace(CONFIG, shard=(1, 2)), out=tmp_path / "1")
    for k, content in enumerate(reversed(contents)):
        (folder / f"{k}.png").write_bytes(content)
    second = audit(tiny_vit(), folder, replace(CONFIG, shard=(2, 2)), out=tmp_path / "2")
    with pytest.raises(ResultError, match="3 of its images are repeated or also in another result"):
        first.merge(second)


def test_jobs_over_lists_of_the_same_names_and_other_sizes_are_of_different_lists(images, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    contents = [path.read_bytes() for path in sorted(images.iterdir())]
    for k in range(4):
        (folder / f"{k}.png").write_bytes(contents[k])
    first = audit(tiny_vit(), folder, replace(CONFIG, shard=(1, 2)), out=tmp_path / "1")
    for k in range(4):
        (folder / f"{k}.png").write_bytes(contents[k + 10] + b"more")
    second = audit(tiny_vit(), folder, replace(CONFIG, shard=(2, 2)), out=tmp_path / "2")
    assert first.merge(second).missing_shards is None


def test_files_that_are_no_images_are_all_named(images, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for k, path in enumerate(sorted(images.iterdir())[:4]):
        (folder / f"{k}.png").write_bytes(path.read_bytes())
        (folder / f"{k}-broken.png").write_bytes(b"<html>not found</html>")
        (folder / f"{k}-empty.png").write_bytes(b"")
    result = audit(tiny_vit(), folder, CONFIG, out=tmp_path / "r")
    assert result.summary.data == DataSummary(num_images=4, num_failed=8)
    with (tmp_path / "r" / "failures.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8


def test_files_are_told_apart_by_all_their_bytes(tmp_path):
    from vitscope.images.addresses import find_copies

    shared, ends = bytes(9000), bytes(5000)
    contents = [b"a" + shared, b"b" + shared, b"a" + shared, ends, shared + b"c", b"", b""]
    paths = [tmp_path / f"{k}" for k in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert find_copies([*paths, tmp_path / "missing", tmp_path]) == [[0, 2]]


def test_copies_are_said_where_the_result_is_read(with_copies, tmp_path):
    result = audit(tiny_vit(), with_copies, AuditConfig(gallery=0), out=tmp_path / "r")
    shown = AuditResult.load(result.folder)
    told = f"{NUM_COPIES} the same again and left out"
    assert told in shown._repr_html_()
    console = Console(width=200, file=StringIO())
    console.print(make_report(result.summary))
    assert told in " ".join(console.file.getvalue().split())


def test_four_copies_of_few_images_are_few_images(images, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    few = [path.read_bytes() for path in sorted(images.iterdir())[:12]]
    for k in range(48):
        (folder / f"{k:02d}.png").write_bytes(few[k % 12])
    result = audit(tiny_vit(), folder, CONFIG, out=tmp_path / "r")
    alone = audit(tiny_vit(), sorted(images.iterdir())[:12], CONFIG)
    assert result.summary.data.num_images == 12
    assert result.summary.data.num_repeated == 36
    assert result.summary.last.verdict.status == alone.summary.last.verdict.status
    assert pq.read_table(result.folder / "images.parquet").num_rows == 12
