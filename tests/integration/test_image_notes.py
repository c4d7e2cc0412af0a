"""What a result says of images that are probably not what they should be."""

import json

import numpy as np
import pytest
from PIL import Image

from audits import tiny_vit
from containers import make_tar
from images import write_classes, write_images
from sharded import stop_after
from vitscope import AuditConfig, OneShotConfig, audit, explain, one_shot
from vitscope.cli import main
from vitscope.report import write_report
from vitscope.results.schema import DataSummary

DARK = "images use less than 1/8 of the range from black to white"


def write_dark(folder, count, *, white=4095, start=0):
    """12-bit greyscale in 16-bit files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        levels = np.random.default_rng(number).integers(0, white + 1, (48, 40))
        Image.fromarray(levels.astype(np.uint16)).save(folder / f"dark{number}.png")
    return folder


@pytest.fixture
def vit():
    return tiny_vit()


@pytest.fixture
def mixed(tmp_path):
    write_dark(tmp_path / "mixed", 3)
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(tmp_path / "mixed" / "labels.png")
    return write_images(tmp_path / "mixed", 5)


def test_an_audit_counts_them_and_says_so_everywhere(tmp_path, vit, mixed, monkeypatch, capsys):
    result = audit(vit, mixed, AuditConfig(batch_size=3), out=tmp_path / "out")
    (note,) = result.summary.data.notes
    assert note.startswith(f"4 of 9 {DARK}")
    assert note.endswith("(dark0.png, dark1.png, dark2.png and 1 more)")
    paths, parts = (result.images[name].to_pylist() for name in ("path", "level_range"))
    ranges = dict(zip(paths, parts, strict=True))
    # Of 12 in 16 bits 4095 / 65535 x 255 = 15.9 levels are left, 16 of 255 at most.
    narrow = [ranges[path] for path in ranges if "dark" in path]
    assert narrow == pytest.approx([16 / 255] * 3, abs=2 / 255)
    assert min(value for path, value in ranges.items() if "/00" in path) > 0.5
    assert note in result._repr_html_()
    write_report([tmp_path / "out"], tmp_path / "report.html")
    assert DARK in (tmp_path / "report.html").read_text()
    monkeypatch.setattr("vitscope.load_model", lambda _: vit)
    command = ["audit", str(mixed), "--model", "dinov2-small", "--out", str(tmp_path / "again")]
    assert main(command) == 0
    assert f"note: 4 of 9 {DARK}" in " ".join(capsys.readouterr().out.split())


def test_ordinary_images_are_not_noted(tmp_path, vit):
    # 13 bits reach 1/8, which is enough; so is a photograph.
    write_dark(write_images(tmp_path / "set", 4), 3, white=8500)
    assert audit(vit, tmp_path / "set").summary.data == DataSummary(
        num_images=7, num_failed=0, num_repeated=0, notes=()
    )


def test_merged_results_count_over_all_images(tmp_path, vit, mixed):
    write_dark(tmp_path / "more", 2, start=50)
    (tmp_path / "x.tar").write_bytes(
        make_tar({name: (mixed / "0000.png").read_bytes() for name in ("k.png", "k.seg.png")})
    )
    (mixed / "0000.png").unlink()
    parts = [audit(vit, source) for source in (mixed, tmp_path / "more", tmp_path / "x.tar")]
    left_out, dark = parts[0].merge(*parts[1:]).summary.data.notes
    assert left_out.startswith("1 members of the archives")
    assert dark.startswith(f"6 of 11 {DARK}")


def test_the_other_kinds_of_results_say_so_too(tmp_path, vit, mixed, monkeypatch):
    classes = write_classes(tmp_path / "classes", 2)
    write_dark(classes / "class 0", 2)
    summary = one_shot(vit, classes, OneShotConfig(draws=2)).summary
    (note,) = summary.data.notes
    assert note.startswith(f"2 of {summary.data.num_images} {DARK}")
    assert note.endswith("(dark0.png, dark1.png)")
    # The first dark image is in the part of the run that was stopped; no maps are read again.
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("a file of maps was read"))
    with pytest.raises(KeyboardInterrupt):
        explain(
            vit, mixed, out=tmp_path / "explained", on_progress=stop_after(6, KeyboardInterrupt())
        )
    explained = explain(vit, mixed, out=tmp_path / "explained", resume=True)
    (note,) = explained.summary.data.notes
    assert note.startswith(f"4 of 9 {DARK}")
    assert note.endswith("(dark0.png, dark1.png, dark2.png and 1 more)")
    saved = json.loads((tmp_path / "explained" / "summary.json").read_text())
    assert saved["data"]["notes"] == [note]
