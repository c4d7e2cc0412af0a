"""An audit of images in archives, tables and stores is that of the same images in files."""

import csv
import json
from dataclasses import replace

import fsspec
import pytest

from audits import tiny_vit
from containers import make_image_column, make_tar, write_parquet
from images import write_images
from vitscope import AuditConfig, ImageSet, OneShotConfig, audit, explain, one_shot
from vitscope.cli import main
from vitscope.errors import ResultError, UsageError


@pytest.fixture
def contents(tmp_path) -> dict[str, bytes]:
    folder = write_images(tmp_path / "photos", 14)
    (folder / "0009.png").write_bytes(b"no image")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def vit():
    return tiny_vit("dinov2_reg")


def read_failures(result) -> list[list[str]]:
    with (result.folder / "failures.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def test_shards_and_tables_give_the_summary_of_the_files(tmp_path, vit, contents):
    names = list(contents)
    for shard, part in enumerate((names[:6], names[6:])):
        images = {name: contents[name] for name in part}
        (tmp_path / f"{shard:03}.tar").write_bytes(make_tar(images))
        column = make_image_column(images.values())
        write_parquet(tmp_path / f"{shard}.parquet", {"image": column}, row_group_size=4)
    config = AuditConfig(batch_size=5)
    expected = audit(vit, tmp_path / "photos", config)
    shown = {
        "{000..001}.tar": f"{tmp_path}/001.tar::0009.png",
        "{0..1}.parquet": f"{tmp_path}/1.parquet::3",
    }
    for pattern, failed in shown.items():
        result = audit(vit, f"{tmp_path}/{pattern}", config)
        assert result.summary == expected.summary
        assert result.images["image_id"] == expected.images["image_id"]
        assert [path for path, _ in read_failures(result)] == [failed]


def test_secrets_of_a_url_are_in_no_file_of_a_result(tmp_path, vit, contents):
    files = fsspec.filesystem("memory")
    base = "memory://me:passphrase@host/set"
    try:
        for name, data in contents.items():
            files.pipe_file(f"/me:passphrase@host/set/{name}", data)
        other = contents["0001.png"] + b"\0"  # or it would be a copy, which counts once
        files.pipe_file("/me:passphrase@host/x.png", other)
        one = f"{base.removesuffix('/set')}/x.png"
        result = audit(vit, [base, one], out=tmp_path / "out")
        explained = explain(vit, one, out=tmp_path / "explained")
    finally:
        files.store.clear()
    assert result.images["path"].to_pylist()[-1] == "memory://host/x.png"
    assert [path for path, _ in read_failures(result)] == ["memory://host/set/0009.png"]
    assert explained.summary.images[0].path == "memory://host/x.png"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    for path in (path for path in written if "photos" not in path.parts):
        data = path.read_bytes()
        assert b"passphrase" not in data, path


def test_the_command_line_takes_archives_and_lists_what_is_missing(
    tmp_path, vit, contents, monkeypatch, capsys
):
    monkeypatch.setattr("vitscope.load_model", lambda _: vit)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "000.tar").write_bytes(make_tar(contents))
    (tmp_path / "list.txt").write_text("000.tar\ngone.png\n")
    command = ["audit", "list.txt", "--model", "dinov2-small", "--out", "out", "--no-report"]
    assert main(command) == 0
    summary = json.loads((tmp_path / "out/dinov2-small/summary.json").read_text())
    assert (summary["data"]["num_images"], summary["data"]["num_failed"]) == (13, 2)
    capsys.readouterr()
    assert main(["audit", "nosuch://b/x", *command[2:-2], "elsewhere", "--no-report"]) == 2
    assert "nosuch:// is not a store that fsspec knows" in capsys.readouterr().err


def test_one_shot_wants_folders_of_files(tmp_path, vit, contents):
    (tmp_path / "classes" / "a").mkdir(parents=True)
    (tmp_path / "classes" / "a" / "000.tar").write_bytes(make_tar(contents))
    with pytest.raises(UsageError, match="14 of the images are in archives, tables"):
        one_shot(vit, tmp_path / "classes", OneShotConfig())
    with pytest.raises(UsageError, match="does not exist"):
        one_shot(vit, "memory://classes", OneShotConfig())


def test_audits_of_drafts_and_of_whole_images_do_not_merge(tmp_path, vit):
    write_images(tmp_path / "a", 5)
    write_images(tmp_path / "b", 5, start=5)
    drafts = replace(vit.preprocessing, draft=True)
    whole, draft = (
        audit(vit, ImageSet.from_sources(tmp_path / name, preprocessing))
        for name, preprocessing in (("a", vit.preprocessing), ("b", drafts))
    )
    assert not whole.manifest.preprocessing.draft
    assert draft.manifest.preprocessing.draft
    with pytest.raises(ResultError, match="preprocessing"):
        whole.merge(draft)
