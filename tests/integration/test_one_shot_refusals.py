"""One-shot classification where something is wrong, and the command that runs it."""

import json
import os
import re
import shutil

import pytest

from audits import tiny_vit
from images import write_classes, write_images
from vitscope import OneShotConfig, OneShotResult, one_shot
from vitscope.cli import main
from vitscope.errors import (
    ImageReadError,
    ImbalanceError,
    NonFiniteError,
    UsageError,
    VitscopeError,
)
from vitscope.files.workspace import open_workspace
from vitscope.results.schema import OneShotData


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("classes"), 7)


@pytest.fixture
def messy(tmp_path):
    """Two classes that can be used, and everything that cannot."""
    root = tmp_path / "messy"
    for number in range(2):
        write_images(root / f"good {number}", 3, start=10 * number)
    write_images(root, 2, start=90)
    write_images(root / "single", 1, start=30)
    (root / "empty").mkdir()
    twins = write_images(root / "twins", 1, start=40)
    shutil.copyfile(twins / "0040.png", twins / "again.png")
    broken = write_images(root / "broken", 2, start=50)
    (broken / "0050.png").write_bytes(b"not an image")
    shutil.copyfile(root / "good 1" / "0010.png", root / "good 1" / "copy.png")
    write_images(root / ".hidden", 2, start=60)
    return root


@pytest.mark.parametrize(
    ("places", "named"),
    [
        (["train/a", "train/b", "val/a", "val/b"], "train, val"),
        (["train/a", "train/b", "test"], "train"),
        (["a/images", "b/images"], "a, b"),
        (["Training/a", "cats", "dogs"], "Training"),
    ],
)
def test_splits_are_not_taken_for_classes(tmp_path, places, named):
    for number, place in enumerate(places):
        write_images(tmp_path / place, 2, start=10 * number)
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "__MACOSX").mkdir()
    with pytest.raises(UsageError, match="give one of them") as caught:
        one_shot(tiny_vit(), tmp_path, OneShotConfig(draws=2))
    assert str(caught.value).startswith(f"{named} in '{tmp_path}' contain folders and no images")


def test_what_cannot_be_used_is_named_and_counted(messy):
    result = one_shot(tiny_vit(), messy, OneShotConfig(draws=2))
    assert result.summary.data == OneShotData(
        num_classes=2,
        num_images=6,
        num_failed=1,
        num_repeated=1,
        num_unlabelled=2,
        dropped_classes=("broken", "empty", "single", "twins"),
    )
    ((path, reason),) = result.failures
    assert path.endswith("broken/0050.png")
    assert reason


def make_folder(root, kind):
    """A folder of a kind that cannot be classified."""
    if kind == "no subfolders":
        write_images(root, 3)
    elif kind == "one class":
        write_images(root / "only", 3)
    elif kind == "one image each":
        for number in range(3):
            write_images(root / str(number), 1, start=number)
    elif kind == "no images":
        (root / "a").mkdir(parents=True)
        (root / "b").mkdir()
    elif kind == "a file":
        write_images(root.parent, 1)
        return root.parent / "0000.png"
    return root


BAD_FOLDERS = [
    ("no subfolders", "has no subfolders, so its 3 images have no labels"),
    ("one class", "of the classes in '{}', 1 in all, 1 have two images"),
    ("one image each", "of the classes in '{}', 3 in all, 0 have two images"),
    ("no images", "names no image"),
    ("a file", "is no folder: give a folder with one subfolder per class"),
    ("nowhere", "does not exist"),
]


@pytest.mark.parametrize(("kind", "message"), BAD_FOLDERS)
def test_folders_without_classes_are_refused(tmp_path, kind, message):
    folder = make_folder(tmp_path / "in", kind)
    with pytest.raises(UsageError, match=re.escape(message.format(folder))):
        one_shot(tiny_vit(), folder)


def test_images_that_cannot_be_read_may_leave_too_few_classes(tmp_path):
    for number in range(2):
        write_images(tmp_path / "in" / str(number), 2, start=10 * number)
    (tmp_path / "in" / "1" / "0010.png").write_bytes(b"x")
    with pytest.raises(VitscopeError, match=r"of 2 classes 1 hold .* \(1 images could not be"):
        one_shot(tiny_vit(), tmp_path / "in", out=tmp_path / "out")
    for path in (tmp_path / "in").rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(ImageReadError, match="none of the 4 images"):
        one_shot(tiny_vit(), tmp_path / "in", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_altered_model_stops_the_run(folder, tmp_path):
    vit = tiny_vit()
    vit.module.blocks[1].attn.proj.register_forward_hook(lambda _, __, out: out * 1.001)
    with pytest.raises(ImbalanceError, match="layer 1 does not balance"):
        one_shot(vit, folder, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nan_is_located_in_layer_and_image(folder):
    vit = tiny_vit()

    def poison(module, args, output):
        output = output.clone()
        output[2] = float("nan")
        return output

    vit.module.blocks[0].register_forward_hook(poison)
    with pytest.raises(NonFiniteError, match=r"layer 0, for .*class 0/0002.png"):
        one_shot(vit, folder)


def test_a_skip_output_that_overflows_is_named(folder, monkeypatch):
    vit = tiny_vit()
    finish = type(vit).finish_block

    def overflow(self, layer, rows):
        found = finish(self, layer, rows).clone()
        if len(rows) == 27:  # the skip alone; groups come several times as many
            found[1] = float("inf")
        return found

    monkeypatch.setattr(type(vit), "finish_block", overflow)
    with pytest.raises(VitscopeError, match=r"block/skip in layer 1 .*class 0/0001.png"):
        one_shot(vit, folder)


def test_a_finished_result_is_kept_if_it_is_of_the_same_run(folder, tmp_path, monkeypatch):
    settings = {"draws": 2, "num_workers": 0}
    with pytest.raises(UsageError, match="resume needs `out`"):
        one_shot(tiny_vit(), folder, resume=True)
    settings |= {"out": tmp_path / "out", "resume": True}
    first = one_shot(tiny_vit(), folder, **settings)
    monkeypatch.setattr("vitscope.runs.one_shot_loop._OneShotRun.execute", pytest.fail)
    with open_workspace(tmp_path / "out", {}, resume=False, overwrite=True):  # of an audit, say
        assert one_shot(tiny_vit(), folder, **settings).summary == first.summary
    paths = sorted(folder.rglob("*.png"))
    names = [path.relative_to(folder).parts[0] for path in paths]
    for images, changed, told in (
        (folder, {"draws": 3}, "draws was 2 and now is 3"),
        (folder, {"size": 16}, "preprocessing"),
        (paths, {"labels": [f"{name}s" for name in names]}, "the labels differ"),
        (folder, {"vit": "vit"}, "weights differ"),
    ):
        vit = tiny_vit(changed.pop("vit", "dinov2_reg"))
        with pytest.raises(UsageError, match=told):
            one_shot(vit, images, **settings | changed)


HOSTILE = os.fsdecode(b"\xff[red]<b>\x1b[2J")


def test_hostile_class_names_are_printed_harmlessly(model_folder, tmp_path, capsys):
    root = tmp_path / "in"
    for number, name in enumerate((HOSTILE, "b")):
        write_images(root / name, 2, start=10 * number)
    write_images(root / f"{HOSTILE} too", 1, start=30)
    arguments = ["--model", str(model_folder), "--size", "32", "--draws", "2"]
    code = main(["one-shot", str(root), *arguments, "--out", str(tmp_path / "out")])
    assert code == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[red]<b>" in out
    (folder,) = (tmp_path / "out").iterdir()
    text = (folder / "summary.json").read_text("utf-8")
    dropped = json.loads(text, parse_constant=pytest.fail)["data"]["dropped_classes"]
    assert dropped == ["\\xff[red]<b>\\x1b[2J too"]


def test_the_command_prints_a_table_and_what_it_means(model_folder, messy, tmp_path, capsys):
    arguments = ["--model", str(model_folder), "--size", "32", "--draws", "3", "--seed", "4"]
    arguments += ["--classifier", "both", "--out", str(tmp_path / "out")]
    assert main(["one-shot", str(messy), *arguments]) == 0
    captured = capsys.readouterr()
    out = " ".join(captured.out.split())
    for words in (
        "2 classes, 6 images, 1 not readable (see failures.csv), 1 the same again and left out",
        "2 in no class's",
        "4 classes dropped, with fewer than two different readable images: 'broken', 'empty'",
        "over 3 draws",
        "patches",
        "registers",
        "skip",
        "chance",
    ):
        assert words in out
    (folder,) = (tmp_path / "out").iterdir()
    config = OneShotResult.load(folder).provenance["config"]
    assert (config["draws"], config["seed"], config["classifier"]) == (3, 4, "both")
    assert "draws" in captured.err


@pytest.mark.parametrize(("kind", "message"), BAD_FOLDERS)
def test_the_command_refuses_in_one_line_before_a_model_is_loaded(tmp_path, capsys, kind, message):
    folder = make_folder(tmp_path / "in", kind)
    arguments = ["--model", "dinov2-giant", "--out", str(tmp_path / "out")]
    assert main(["one-shot", str(folder), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format(folder) in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--draws", "1", "draws 1: expected 2 or more"),
        ("--limit", "1", "limit 1"),
        ("--seed", "-1", "seed -1"),
    ],
)
def test_bad_settings_are_refused(folder, tmp_path, capsys, option, value, message):
    arguments = ["--model", "dinov2-small", "--out", str(tmp_path / "out"), option, value]
    assert main(["one-shot", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err
