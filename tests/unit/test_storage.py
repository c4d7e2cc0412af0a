"""Files are written whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from vitscope.errors import ResultError, UsageError, VitscopeError
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.json_files import read_json, write_json
from vitscope.files.printable import printable_path
from vitscope.files.storage import (
    is_result,
    open_to_readers,
    replace_json,
    scratch_folder,
    staged_folder,
)


def write_result(folder, text="new"):
    write_json(folder / "summary.json", {"schema_version": 1, "text": text})


def read_result(folder):
    return read_json(folder / "summary.json")["text"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o027])
def test_permissions_are_those_of_new_files_and_the_mask_is_not_touched(
    tmp_path, monkeypatch, mask
):
    before = os.umask(mask)
    try:
        monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the mask is the whole process's"))
        file, folder = tmp_path / "file", tmp_path / "folder"
        file.touch(mode=0o600)
        folder.mkdir(mode=0o700)
        for path in (file, folder):
            open_to_readers(path)
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_folder_appears_whole(tmp_path):
    target = tmp_path / "a" / "result"
    with staged_folder(target) as staging:
        write_result(staging)
        assert not target.exists()
    assert read_result(target) == "new"
    assert [p.name for p in target.parent.iterdir()] == ["result"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_when_the_body_fails(tmp_path, error):
    def interrupted():
        with staged_folder(tmp_path / "result") as staging:
            (staging / "half").write_text("x")
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_one_clear_line(tmp_path):
    def fill():
        with staged_folder(tmp_path / "result") as staging, plain_disk_errors(staging):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(VitscopeError, match=r"cannot write .*No space left on device"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_result_stays_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "result"
    with staged_folder(target) as staging:
        write_result(staging, "old")

    def fail():
        with staged_folder(target, replaces=is_result) as staging:
            write_result(staging, "new")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert read_result(target) == "old"
    with staged_folder(target, replaces=is_result) as staging:
        write_result(staging, "new")
    assert read_result(target) == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["result"]


def foreign_folders():
    """Folders that look a little like a result, and hold something of the user's."""
    yield "no summary", {"thesis.tex": "x"}
    yield "another program's summary", {"summary.json": "{}"}
    yield "a list", {"summary.json": "[1]"}
    yield "a result and a thesis", {"summary.json": '{"schema_version": 1}', "thesis.tex": "x"}
    yield "a thesis inside", {"summary.json": '{"schema_version": 1}', "features/thesis.tex": "x"}


@pytest.mark.parametrize(("kind", "files"), list(foreign_folders()))
def test_what_is_not_a_result_is_never_replaced(tmp_path, kind, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert not is_result(tmp_path)
    foreign = [name for name in files if name.endswith(".tex") and "summary.json" in files]
    told = f"also holds {foreign[0]}, which" if foreign else "is not empty and"
    with (
        pytest.raises(UsageError, match=f"{told} was not written by vitscope"),
        staged_folder(tmp_path, replaces=is_result),
    ):
        pass
    assert all((tmp_path / name).read_text() == text for name, text in files.items())


@pytest.mark.parametrize("rescued", [False, True])
def test_what_comes_into_the_target_meanwhile_stays(tmp_path, monkeypatch, rescued):
    target = tmp_path / "result"

    def fill_up(**_):  # the disk, where the result would be kept
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", fill_up)

    def race():
        with staged_folder(target, replaces=is_result, rescued=rescued) as staging:
            write_result(staging)
            target.mkdir()
            (target / "thesis.tex").write_text("x")

    with pytest.raises(UsageError, match="was not written by vitscope"):
        race()
    assert [path.name for path in target.iterdir()] == ["thesis.tex"]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


@pytest.mark.parametrize("make", ["file", "dangling link", "long name", "not UTF-8"])
def test_targets_that_cannot_be_are_refused_before_anything_is_written(tmp_path, make):
    target = tmp_path / "target"
    if make == "file":
        target.write_text("x")
    elif make == "dangling link":
        target.symlink_to(tmp_path / "nowhere")
    elif make == "long name":
        target = tmp_path / ("x" * 300)
    else:
        target = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(UsageError), staged_folder(target):
        pytest.fail("the body was entered")


def test_the_old_result_comes_back_when_the_move_fails(tmp_path, monkeypatch):
    target = tmp_path / "result"
    with staged_folder(target) as staging:
        write_result(staging, "old")
    rename = Path.rename

    def fail_on_staging(self, new):
        if ".partial-" in self.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, new)

    monkeypatch.setattr(Path, "rename", fail_on_staging)

    def replace():
        with staged_folder(target, replaces=is_result) as staging:
            write_result(staging, "new")

    with pytest.raises(VitscopeError, match="cannot write"):
        replace()
    assert read_result(target) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_result_is_replaced_only_on_request(tmp_path):
    write_result(tmp_path)
    with pytest.raises(UsageError, match="give overwrite=True"), staged_folder(tmp_path):
        pass


def test_json_holds_no_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": (1, None)}, 3: "é"})
    assert json.loads(path.read_text()) == {
        "a": None,
        "b": [None, 1.5],
        "c": {"d": [1, None]},
        "3": "é",
    }


def test_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    replace_json(path, {"text": "old"})

    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(VitscopeError, match="No space left on device"):
            replace_json(path, {"text": "new"})
    assert read_json(path) == {"text": "old"}
    replace_json(path, {"text": "new"})
    assert read_json(path) == {"text": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_missing_and_damaged_json_say_so(tmp_path):
    with pytest.raises(ResultError, match="is not a vitscope result"):
        read_json(tmp_path / "summary.json")
    with pytest.raises(ResultError, match=r"there is no folder \S+absent: expected a result"):
        read_json(tmp_path / "absent" / "summary.json")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ResultError, match="cannot be read"):
        read_json(tmp_path / "summary.json")


def test_any_file_name_can_be_printed(tmp_path):
    name = os.fsdecode(b"caf\xe9\n<b>.jpg")
    assert printable_path(tmp_path / name).endswith("caf\\xe9\\n<b>.jpg")


@pytest.mark.parametrize("kind", ["link to an empty folder", "here"])
def test_an_empty_folder_is_written_into_however_it_is_named(tmp_path, monkeypatch, kind):
    empty = tmp_path / "empty"
    empty.mkdir()
    if kind == "here":
        monkeypatch.chdir(empty)
        target = Path()
    else:
        target = tmp_path / "link"
        target.symlink_to(empty)
    with staged_folder(target) as staging:
        write_result(staging)
    assert read_result(empty) == "new"


def test_folders_made_on_the_way_go_with_a_failure(tmp_path):
    def fail():
        with staged_folder(tmp_path / "a" / "b" / "result"):
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_in_a_temporary_folder_too():
    def fill():
        with scratch_folder() as folder, plain_disk_errors(folder):
            made.append(folder)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made = []
    with pytest.raises(VitscopeError, match="No space left"):
        fill()
    assert not made[0].exists()


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\x9b31m", "\x07", "\r", "\u202e", "\n"])
def test_names_cannot_steer_a_terminal(tmp_path, hostile):
    shown = printable_path(tmp_path / f"a{hostile}b.jpg")
    assert shown.isprintable()
    assert hostile not in shown
