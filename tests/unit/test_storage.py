"""Files are written whole or not at all."""

import errno
import json
import os

import pytest

from vitscope.errors import ResultError, UsageError, VitscopeError
from vitscope.storage import printable_path, read_json, staged_folder, write_json


def write_result(folder, text="new"):
    (folder / "summary.json").write_text(text)


def test_folder_appears_whole(tmp_path):
    target = tmp_path / "a" / "result"
    with staged_folder(target) as staging:
        write_result(staging)
        assert not target.exists()
    assert (target / "summary.json").read_text() == "new"
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
        with staged_folder(tmp_path / "result"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(VitscopeError, match=r"cannot write .*No space left on device"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_result_stays_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "result"
    with staged_folder(target) as staging:
        write_result(staging, "old")

    def fail():
        with staged_folder(target, overwrite=True) as staging:
            write_result(staging, "new")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert (target / "summary.json").read_text() == "old"
    with staged_folder(target, overwrite=True) as staging:
        write_result(staging, "new")
    assert (target / "summary.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["result"]


def test_what_is_not_a_result_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with (
            pytest.raises(UsageError, match="was not written by vitscope"),
            staged_folder(tmp_path, overwrite=overwrite),
        ):
            pass
    with pytest.raises(UsageError, match="is a file"), staged_folder(tmp_path / "thesis.tex"):
        pass


def test_a_result_is_replaced_only_on_request(tmp_path):
    write_result(tmp_path)
    with pytest.raises(UsageError, match="--overwrite"), staged_folder(tmp_path):
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


def test_missing_and_damaged_json_say_so(tmp_path):
    with pytest.raises(ResultError, match="is not a vitscope result"):
        read_json(tmp_path / "summary.json")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ResultError, match="cannot be read"):
        read_json(tmp_path / "summary.json")


def test_any_file_name_can_be_printed(tmp_path):
    name = os.fsdecode(b"caf\xe9\n<b>.jpg")
    assert printable_path(tmp_path / name).endswith("caf\\xe9\n<b>.jpg")
