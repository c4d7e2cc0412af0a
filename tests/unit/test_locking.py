"""A folder that one run has to itself."""

import errno
import fcntl
import subprocess
import sys

import pytest

from vitscope.errors import UsageError, VitscopeError
from vitscope.files.locking import held_alone

HOLD = """
import sys, time
from pathlib import Path
from vitscope.files.locking import held_alone
with held_alone(Path(sys.argv[1]), ".lock"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_process_lets_go(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match="another run is using"), held_alone(tmp_path, ".lock"):
        pass
    other.kill()
    other.communicate()
    with held_alone(tmp_path, ".lock"):
        pass


def test_a_lock_of_a_removed_folder_is_none(tmp_path, monkeypatch):
    lock = fcntl.flock

    def remove(*given):
        lock(*given)
        (tmp_path / ".lock").unlink()

    monkeypatch.setattr(fcntl, "flock", remove)
    with pytest.raises(UsageError, match="another run is using"), held_alone(tmp_path, ".lock"):
        pass


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.ENOSYS, "without locks"), (errno.ENOLCK, "without locks"), (errno.EIO, "written to")],
)
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, number, told):
    def fail(*_):
        raise OSError(number, "not here")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(VitscopeError, match=told), held_alone(tmp_path, ".lock"):
        pass
