"""What killed processes leave beside their place goes or comes back; nothing else is touched."""

import os
import pathlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vitscope.files.locking import new_beside, remove_leftovers
from vitscope.files.storage import staged_file, staged_folder

_HEX = "0123456789abcdef"
_FOLDER = """
import os, signal, sys
from pathlib import Path
from vitscope.files.storage import staged_folder

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

target, point = Path(sys.argv[1]), sys.argv[2]
if point == "second rename":
    rename = Path.rename
    Path.rename = lambda self, to: die() if "partial" in self.name else rename(self, to)
with staged_folder(target, replaces=lambda _: True) as staging:
    (staging / "new").write_text("new")
    if point == "writing":
        die()
"""
_FILE = """
import os, signal, sys
from pathlib import Path
from vitscope.files.storage import staged_file
with staged_file(Path(sys.argv[1]), replaces=lambda _: True) as staging:
    staging.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def _killed(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=False)
    assert done.returncode == -signal.SIGKILL


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _write_old(target):
    target.mkdir()
    (target / "old").write_text("old")


def test_a_run_removes_what_a_killed_one_was_writing(tmp_path):
    target = tmp_path / "result"
    for _ in range(2):
        _killed(_FOLDER, target, "writing")
    assert len(_names(tmp_path)) == 1  # the second removed what the first left
    with staged_folder(target) as staging:
        (staging / "new").write_text("new")
    assert _names(tmp_path) == ["result"]


def test_what_a_killed_run_had_moved_out_of_the_way_comes_back(tmp_path):
    target = tmp_path / "result"
    _write_old(target)
    _killed(_FOLDER, target, "second rename")
    assert not target.exists()
    remove_leftovers(target)
    assert _names(tmp_path) == ["result"]
    assert _names(target) == ["old"]
    _killed(_FOLDER, target, "second rename")
    with staged_folder(target, replaces=lambda _: True) as staging:
        assert _names(target) == ["old"]  # until the new one is whole
        (staging / "new").write_text("new")
    assert _names(tmp_path) == ["result"]
    assert _names(target) == ["new"]


def test_a_file_that_a_killed_process_was_writing_goes(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("old")
    _killed(_FILE, target)
    assert len(_names(tmp_path)) == 2
    assert target.read_text() == "old"
    with staged_file(target, replaces=lambda _: True) as staging:
        staging.write_text("new")
    assert _names(tmp_path) == ["report.html"]


def test_what_another_process_is_writing_stays(tmp_path):
    target = tmp_path / "result"
    with staged_folder(target) as ours:
        (ours / "a").write_text("a")
        with staged_folder(target) as theirs:
            (theirs / "b").write_text("b")
        assert _names(target) == ["b"]
        assert _names(ours) == ["a"]
        remove_leftovers(target)
        assert _names(ours) == ["a"]
        (target / "b").unlink()
    assert _names(tmp_path) == ["result"]
    assert _names(target) == ["a"]


def test_what_is_not_of_vitscope_stays(tmp_path):
    target = tmp_path / "a"
    kept = [".a.partial-mine", ".a.old-x1", f".ab.partial-{_HEX}", f".a.partial-{_HEX}.bak"]
    for name in kept:
        (tmp_path / name / "maps").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f".a.partial-{_HEX}").symlink_to(tmp_path / "elsewhere")
    (tmp_path / f".a.partial-{_HEX[::-1]}").write_text("left")
    remove_leftovers(target)
    assert _names(tmp_path) == sorted([*kept, "elsewhere", f".a.partial-{_HEX}"])
    remove_leftovers(tmp_path / "nowhere" / "a")


@pytest.mark.parametrize("folder", [True, False])
def test_what_is_new_is_private_until_it_is_in_its_place(tmp_path, folder):
    with new_beside(tmp_path / "a", "partial", folder=folder) as path:
        assert path.is_dir() == folder
        assert path.stat().st_mode & 0o077 == 0


def test_folders_are_on_the_disk_before_the_old_one_goes(tmp_path, monkeypatch):
    target = tmp_path / "result"
    _write_old(target)
    flushed = []
    fsync = os.fsync

    def note(descriptor):
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    if not pathlib.Path("/proc/self/fd").exists():
        pytest.skip("which files are flushed cannot be told without /proc")
    with staged_folder(target, replaces=lambda _: True) as staging:
        (staging / "new").write_text("new")
        here = str(staging)
    assert {f"{here}/new", here, str(tmp_path)} <= set(flushed)
    assert (target / "new").exists()
