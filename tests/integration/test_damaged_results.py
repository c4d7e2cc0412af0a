"""A result may be damaged, or made to do harm: each case ends in one sentence, in bounded time."""

import csv
import io
import json
import os
import random
import shutil
import sys
import tracemalloc
import zipfile
import zlib
from copy import deepcopy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console

from forks import Fork
from vitscope import AuditConfig, AuditResult, Explanation, OneShotResult, audit, explain, one_shot
from vitscope.cli import main
from vitscope.config import OneShotConfig, RunConfig
from vitscope.errors import ResultError, VitscopeError
from vitscope.figures.saved import load_results
from vitscope.files.tensor_files import read_tensors, write_tensors
from vitscope.report.page import render_report
from vitscope.results import image_maps
from vitscope.terminal import (
    make_comparison,
    make_explanation_report,
    make_report,
)

_KINDS = {
    "audit": (AuditResult, make_report),
    "one-shot": (OneShotResult, make_report),
    "explanation": (Explanation, make_explanation_report),
}
_WRONG = ["text", None, -1, 1e300, 10**400, [], {}, True, [1, 2, 3], 0.5, 2**63, "\x1b[31m"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0, dynamic_img_size=True
    )
    home = tmp_path_factory.mktemp("saved")
    for i in range(24):
        folder = home / ("set" if i < 12 else "other") / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    config = AuditConfig(size=32, gallery=4, layers="all")
    audit(module, home / "set", config, out=home / "audit")
    audit(module, home / "other", config, out=home / "another")
    one_shot(module, home / "set", OneShotConfig(size=32, draws=3), out=home / "one-shot")
    explain(module, home / "set/a/0.png", RunConfig(size=32), out=home / "explanation")
    return home


@pytest.fixture
def damaged(saved, tmp_path):
    shutil.copytree(saved / "audit", tmp_path / "audit")
    return tmp_path / "audit"


def _paths(tree, *path):
    yield path
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _paths(value, *path, key)
    elif isinstance(tree, list):
        for index, value in enumerate(tree[:2]):
            yield from _paths(value, *path, index)


def _find(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def _changed(tree, path, value):
    changed = deepcopy(tree)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if value is _WRONG:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


def _show(kind, folder):
    cls, describe = _KINDS[kind]
    result = cls.load(folder)
    console = Console(file=io.StringIO(), width=120)
    console.print(describe(result.summary))
    if kind == "audit":
        console.print(make_comparison([result.summary]))
    result._repr_html_()
    return console.file.getvalue()


def _attempt(show):
    try:
        show()
    except VitscopeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", _KINDS)
def test_any_part_of_a_summary_may_be_anything(kind, saved, tmp_path):
    summary = json.loads((saved / kind / "summary.json").read_text())
    shutil.copytree(saved / kind, tmp_path / kind)
    draw = random.Random(0)
    refused = 0
    for number in range(80):
        top = draw.choice(list(summary))  # or most would be of the longest parts
        path = draw.choice(list(_paths(summary[top], top)))
        value = draw.choice([*_WRONG, _WRONG])
        (tmp_path / kind / "summary.json").write_text(json.dumps(_changed(summary, path, value)))
        told = _attempt(lambda: _show(kind, tmp_path / kind))
        refused += bool(told)
        if number % 20 == 0:
            told += _attempt(lambda: render_report(load_results([tmp_path / kind])))
        assert "\n" not in told
    assert refused >= 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"schema_version": 5, "kind": "audit", "layer": NaN}', "NaN is not a number of JSON"),
        ('{"schema_version": ' + "9" * 5000 + "}", "cannot be read"),
        ("[]", "written with schema None"),
        ('{"schema_version": 5, "kind": "audit"}', "model is missing"),
        ("\x00", "cannot be read"),
    ],
)
def test_what_is_no_summary_is_refused(damaged, text, expected):
    (damaged / "summary.json").write_text(text)
    with pytest.raises(ResultError, match=expected):
        AuditResult.load(damaged)
    assert "\n" not in _attempt(lambda: render_report(load_results([damaged])))


def _read_everything(folder):
    render_report(load_results([folder]))
    AuditResult.load(folder).read_sums()


_with_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")


@_with_pipes
@pytest.mark.parametrize("name", ["summary.json", "images.parquet", "sums.safetensors"])
def test_a_pipe_does_not_wait(damaged, name):
    (damaged / name).unlink()
    os.mkfifo(damaged / name)
    with pytest.raises(ResultError, match=r"not a regular file|no file"):
        _read_everything(damaged)


def _write_array(path, changes):
    with np.load(path) as file:
        arrays = dict(file)
    np.savez_compressed(path, **arrays | changes)


def _claim_size(path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**15,)}
    )
    with np.load(path) as file:
        arrays = dict(file)
    with zipfile.ZipFile(path, "w") as archive:
        for name in arrays:
            archive.writestr(f"{name}.npy", header.getvalue())


def _hide_size(prefix, packing):
    # 16 MiB, said to be 10,000 bytes.
    def pack(path):
        with np.load(path) as file:
            others = set(file) - {"image"}
        with zipfile.ZipFile(path, "w", packing) as archive:
            with archive.open("image.npy", "w") as member:
                for block in (prefix, *[bytes(2**20)] * 16):
                    member.write(block)
            for name in others:
                archive.writestr(f"{name}.npy", b"")
            claimed = archive.getinfo("image.npy")
            claimed.file_size = 10_000
            claimed.CRC = zlib.crc32((prefix + bytes(10_000))[:10_000])

    return pack


@pytest.mark.parametrize(
    "damage",
    [
        _hide_size(b"", zipfile.ZIP_DEFLATED),
        _hide_size(np.lib.format.magic(1, 0), zipfile.ZIP_BZIP2),
    ],
    ids=["no array", "bzip2"],
)
def test_maps_that_hide_their_size_are_not_unpacked(damaged, monkeypatch, damage):
    monkeypatch.setattr(image_maps, "_MAX_BYTES", 2**20)  # also read at once from the disk
    damage(damaged / "gallery/0000.npz")
    gallery = AuditResult.load(damaged).gallery
    tracemalloc.start()
    with pytest.raises(
        ResultError, match=r"0000\.npz cannot be read as maps: (the magic|expected)"
    ):
        gallery.read_maps(0)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**23


@pytest.mark.parametrize(
    "damage",
    [
        _claim_size,
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
        lambda path: _write_array(path, {"image": np.zeros((0, 5, 3), np.uint8)}),
        lambda path: _write_array(path, {"image": np.zeros((33, 32, 3), np.uint8)}),
        lambda path: _write_array(path, {"maps/attention": np.zeros((0, 0), np.float32)}),
        lambda path: _write_array(path, {"maps/attention": np.zeros((6000, 6000), np.float32)}),
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
    ],
    ids=["header", "device", "no image", "parts of patches", "no maps", "huge maps", "cut"],
)
def test_maps_that_are_none_are_refused(damaged, damage):
    damage(damaged / "gallery/0000.npz")
    with pytest.raises(ResultError, match=r"0000\.npz cannot be read"):
        AuditResult.load(damaged).gallery.read_maps(0)


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        pytest.param(lambda path: (path.unlink(), os.mkfifo(path)), marks=_with_pipes),
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
    ],
    ids=["missing", "pipe", "device", "cut"],
)
def test_maps_that_are_none_are_not_merged(saved, damaged, tmp_path, damage):
    for path in sorted((damaged / "gallery").iterdir()):
        damage(path)
    with pytest.raises(ResultError, match=r"audit/gallery/\d+\.npz cannot be read"):
        AuditResult.load(saved / "another").merge(AuditResult.load(damaged), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_to_maps_are_followed_when_results_are_merged(saved, damaged, tmp_path):
    for path in sorted((damaged / "gallery").iterdir()):
        path.symlink_to(path.rename(path.with_suffix(".moved")))
    merged = AuditResult.load(saved / "another").merge(
        AuditResult.load(damaged), out=tmp_path / "out"
    )
    assert not any(path.is_symlink() for path in (tmp_path / "out/gallery").iterdir())
    assert merged.gallery.read_maps(0).maps


def test_more_rows_than_a_file_can_hold_are_refused(damaged):
    rows = pa.table({"image_id": pa.array(["a"] * 500_000).dictionary_encode()})
    pq.write_table(rows, damaged / "images.parquet")
    for read in (
        lambda: AuditResult.load(damaged).images,
        lambda: render_report(load_results([damaged])),
    ):
        with pytest.raises(ResultError, match=r"images\.parquet is damaged: 500000 rows"):
            read()


def _rewrite(path, change):
    tensors, metadata = read_tensors(path)
    change(tensors, metadata)
    write_tensors(path, tensors, metadata)


def _set_manifest(**values):
    def change(_, metadata):
        metadata["manifest"] = json.dumps(json.loads(metadata["manifest"]) | values)

    return change


def _fill(name, value):
    def change(tensors, _):
        first = min(key for key in tensors if key.endswith(name))
        tensors[first] = torch.full_like(tensors[first], value)

    return change


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("sums.safetensors", _set_manifest(dtype="nosuch")),
        ("sums.safetensors", _set_manifest(layers=[-1])),
        ("sums.safetensors", _set_manifest(layers="all")),
        ("sums.safetensors", _set_manifest(groups=[[]])),
        ("sums.safetensors", _fill("total/term/patches", float("nan"))),
        ("sums.safetensors", _fill("counts", -1)),
        ("sums.safetensors", _fill("image_squares", -1)),
        ("sums.safetensors", _fill("image_squares", 2**60)),
        ("sums.safetensors", _fill("hidden/square", -1.0)),
        ("sums/001/000000.safetensors", _fill("blocks", -1)),
        ("sums/001/000000.safetensors", _fill("blocks", 10**9)),
    ],
)
def test_sums_that_cannot_be_are_refused(saved, damaged, file, change):
    _rewrite(damaged / file, change)
    with pytest.raises(ResultError) as caught:
        AuditResult.load(damaged).read_sums()
    assert "\n" not in str(caught.value)
    with pytest.raises(ResultError):
        AuditResult.load(saved / "another").merge(AuditResult.load(damaged))


def test_parts_that_do_not_go_together_blame_no_single_result(saved, damaged):
    rows = pq.read_table(damaged / "images.parquet").drop_columns(["share_patches"])
    pq.write_table(rows, damaged / "images.parquet")
    with pytest.raises(ResultError, match=r"another or .*audit is damaged"):
        AuditResult.load(saved / "another").merge(AuditResult.load(damaged))


@pytest.mark.parametrize(
    "content",
    [
        b"one,two\n1,2\n",
        b"path,reason\n\xff\xfe,x\n",
        b'path,reason\nx,"' + b"y" * (csv.field_size_limit() + 1) + b'"\n',
    ],
    ids=["no header", "not UTF-8", "long field"],
)
def test_a_damaged_list_of_failures_is_refused(damaged, content):
    (damaged / "failures.csv").write_bytes(content)
    with pytest.raises(ResultError, match=r"failures\.csv is damaged"):
        _ = AuditResult.load(damaged).failures


def test_provenance_that_is_no_object_is_refused(damaged):
    (damaged / "provenance.json").write_text("[]")
    with pytest.raises(ResultError, match=r"provenance\.json is damaged"):
        _ = AuditResult.load(damaged).provenance


def test_a_device_among_the_files_is_not_copied(damaged, tmp_path):
    (damaged / "features/endless").symlink_to("/dev/zero")
    with pytest.raises(ResultError, match="not a regular file"):
        AuditResult.load(damaged).save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("kind", _KINDS)
def test_no_text_of_a_result_steers_the_terminal(kind, saved, tmp_path):
    hostile = "\x1b]0;title\x07\x1b[2J\u202egnp.exe"
    steering = {"\x1b", "\x07", "\u202e"}
    shutil.copytree(saved / kind, tmp_path / kind)
    path = tmp_path / kind / "summary.json"
    summary = json.loads(path.read_text())
    summary["model"]["notes"] = [hostile]
    places = [place for place in _paths(summary) if isinstance(_find(summary, place), str)]
    num_poisoned = 0
    for place in places:
        poisoned = _changed(summary, place, f"{_find(summary, place)}{hostile}")
        path.write_text(json.dumps(poisoned))
        if told := _attempt(lambda: _KINDS[kind][0].load(tmp_path / kind)):
            # It is one of a few words.
            assert "expected" in told
            assert not set(told) & steering
        else:
            summary = poisoned
            num_poisoned += 1
    assert num_poisoned > 5
    path.write_text(json.dumps(summary))
    shown = _show(kind, tmp_path / kind)
    assert "title" in shown
    assert not set(shown) & steering


def _merge_into(into, saved, out):
    """The program, where its standard output leads nowhere."""
    if into == "closed":
        os.close(1)
        sys.stdout = None  # as Python finds it
    elif into == "a full disk":
        sys.stdout = Path("/dev/full").open("w")  # noqa: SIM115 - to the end
    else:
        read, write = os.pipe()
        os.close(read)
        sys.stdout = os.fdopen(write, "w")
    os.chdir(saved)
    return main(["merge", "audit", "another", "--out", str(out)])


@pytest.mark.parametrize("into", ["closed", "a full disk", "a reader that left"])
def test_what_is_saved_counts_where_it_cannot_be_printed(saved, tmp_path, into):
    if into == "a full disk" and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    code, _, err = Fork(_merge_into, into, saved, tmp_path / "m").wait()
    assert (tmp_path / "m/summary.json").exists(), err
    if into == "a full disk":
        assert code == 1
        assert err == (
            "vitscope: standard output cannot be written to (No space left on device); all "
            "results are saved\n"
        )
    else:
        assert (code, err) == (0, "")
