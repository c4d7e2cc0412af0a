"""Errors of vitscope's own writes are called so, and no others; what was computed is not lost."""

import csv
import gc
import os
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from audits import tiny_vit
from images import write_classes, write_images
from vitscope import AuditConfig, OneShotConfig, audit, explain, load_model, one_shot
from vitscope.cli import main
from vitscope.errors import (
    DiskError,
    ModelUnreachableError,
    ResultError,
    UsageError,
    VitscopeError,
)
from vitscope.files.csv_files import escape_cell
from vitscope.models.base import ViTAdapter
from vitscope.results.explanation import Explanation
from vitscope.results.one_shot_result import OneShotResult
from vitscope.results.saved_result import read_failures, write_failures

OURS = OSError(5, "the camera is gone")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("photos"), 4)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("classes"), 3)


@pytest.fixture(scope="module")
def vit():
    return tiny_vit()


@pytest.fixture(params=["audit", "explain", "one-shot"])
def run(request, vit, photos, classes):
    return {
        "audit": partial(audit, vit, photos, AuditConfig(gallery=0)),
        "explain": partial(explain, vit, photos),
        "one-shot": partial(one_shot, vit, classes, OneShotConfig(draws=2)),
    }[request.param]


@pytest.mark.parametrize("saved", [True, False])
def test_an_error_of_a_callback_comes_as_it_is(run, tmp_path, saved):
    def fail(*_):
        raise OURS

    with pytest.raises(OSError, match="the camera is gone") as caught:
        run(out=tmp_path / "out" if saved else None, on_progress=fail)
    assert caught.value is OURS
    # Explained images, which take seconds each, are kept one by one.
    kept = [".out.run"] if saved and run.func is explain else []
    assert [path.name for path in tmp_path.iterdir()] == kept


def test_an_error_of_the_model_comes_as_it_is(run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OURS

    monkeypatch.setattr(ViTAdapter, "trace", fail)
    with pytest.raises(OSError, match="the camera is gone") as caught:
        run(out=tmp_path / "out")
    assert caught.value is OURS


def test_an_error_of_a_write_is_called_one(run, tmp_path, monkeypatch):
    writes = Path.write_text

    def fail(path, *arguments, **options):
        if path.name == "summary.json":
            raise OSError(28, "No space left on device")
        return writes(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(DiskError, match=r"cannot write .*out: No space left on device; no partial"):
        run(out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_where_nothing_can_be_made_is_found_before_the_work(run, monkeypatch):
    def fail(*_, **__):
        pytest.fail("the model ran")

    monkeypatch.setattr(ViTAdapter, "trace", fail)
    with pytest.raises(VitscopeError, match="cannot write /proc/nothing/here/out: "):
        run(out="/proc/nothing/here/out")


def test_the_command_line_finds_it_before_a_model_is_loaded(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    monkeypatch.setattr("vitscope.load_model", lambda _: pytest.fail("a model was loaded"))
    out = str(tmp_path / "deep" / "out")
    assert main(["audit", str(photos), "--model", "dinov2-small", "--out", out]) == 2
    told = f"{out} cannot be written to: no permission for {tmp_path}"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["explain", "one-shot"])
def test_a_finished_result_that_finds_its_place_taken_is_kept_elsewhere(
    kind, vit, photos, classes, tmp_path
):
    out = tmp_path / "out"

    def occupy(*_):
        out.mkdir(exist_ok=True)
        (out / "thesis.tex").write_text("mine")

    if kind == "explain":
        run, opened = partial(explain, vit, photos), Explanation
    else:
        run, opened = partial(one_shot, vit, classes, OneShotConfig(draws=2)), OneShotResult
    with pytest.raises(UsageError, match="was not written by vitscope") as caught:
        run(out=out, on_progress=occupy)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    kept = Path(re.search(r"the finished result is kept in (.*)", caught.value.__notes__[0])[1])
    expected = run().summary
    assert opened.load(kept).summary == expected
    assert {path.name for path in tmp_path.iterdir()} - {".out.run"} == {"out"}
    shutil.rmtree(kept.parent)


def test_a_temporary_result_that_cannot_be_saved_is_kept(vit, photos, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError) as caught:
        explain(vit, photos).save(tmp_path)
    note = caught.value.__notes__[0]
    del caught
    gc.collect()
    kept = Path(re.search("the result is kept in (.*)", note)[1])
    assert len(Explanation.load(kept)) == 4
    shutil.rmtree(kept)
    saved = explain(vit, photos).save(tmp_path / "new")
    assert len(saved) == 4
    assert np.isfinite(saved.read_image(3)["attention"]).all()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_whatever_stops_its_saving_a_temporary_result_is_kept(tmp_path, monkeypatch, error):
    made, copied = tmp_path / "made", []
    made.mkdir()
    for name in ("a", "b"):
        (made / name).write_text(name)

    def stop(source, target):
        if copied:
            assert [path.name for path in target.parent.iterdir()] == ["a"]
            raise error
        shutil.copy(source, target)
        copied.append(target)

    monkeypatch.setattr("vitscope.results.saved_result._copy_file", stop)
    with pytest.raises(error) as caught:
        Explanation.own(made).save(tmp_path / "new")
    assert caught.value.__notes__ == [f"the result is kept in {made}"]
    del caught
    gc.collect()
    assert copied
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert sorted(path.read_text() for path in made.iterdir()) == ["a", "b"]


def test_a_result_whose_file_cannot_be_read_is_no_error_of_writing(vit, photos, tmp_path):
    result = explain(vit, photos, out=tmp_path / "a")
    (tmp_path / "a" / "maps" / "0002.npz").unlink()
    (tmp_path / "a" / "maps" / "0002.npz").symlink_to(tmp_path / "gone")
    with pytest.raises(ResultError, match=r"0002\.npz is damaged: not a regular file"):
        result.save(tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_part_without_its_failures_cannot_be_read(vit, photos, tmp_path):
    images = sorted(photos.iterdir())
    parts = [
        audit(vit, images[k : k + 2], AuditConfig(gallery=0), out=tmp_path / str(k)) for k in (0, 2)
    ]
    (tmp_path / "2" / "failures.csv").unlink()
    with pytest.raises(ResultError, match=r"2/failures\.csv cannot be read"):
        parts[0].merge(parts[1], out=tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2"]


@pytest.mark.parametrize("content", [b"", b"path\nx\n", b"\xff\xfe"])
def test_a_list_of_failures_that_is_damaged_cannot_be_read(tmp_path, content):
    (tmp_path / "failures.csv").write_bytes(content)
    if content == b"":
        assert read_failures(tmp_path) == []
        return
    with pytest.raises(ResultError, match=r"failures\.csv is damaged"):
        read_failures(tmp_path)


def test_no_cell_of_the_failures_is_a_formula(tmp_path):
    failures = [
        (f"{quotes}{sign}cmd|'/c calc'!A1.png", f"{sign}1+1")
        for quotes in ("", "'", "''", "x", " ")
        for sign in ("=", "+", "-", "@", "")
    ]
    write_failures(tmp_path, failures)
    assert read_failures(tmp_path) == failures
    with (tmp_path / "failures.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in set("=+-@\t\r") and cell]
    assert [escape_cell(number) for number in ("-1", "-2.5e-3")] == ["-1", "-2.5e-3"]


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_file_of_a_model_that_cannot_be_read_is_named(tmp_path, name):
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("/proc/self/mem")  # it is there, and nobody can read its start
    with pytest.raises(ModelUnreachableError, match=rf"{name} cannot be read \(Input/output error"):
        load_model(str(tmp_path))
