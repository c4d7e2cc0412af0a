"""What the targets of the Makefile would do."""

import shutil
import subprocess

import pytest

from page_blocks import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.mark.parametrize(("target", "extra"), [("demo", "demo"), ("lint", "dev"), ("docs", "dev")])
def test_a_target_installs_the_extra_that_it_needs_and_shows_progress(target, extra):
    arguments = ["make", "--dry-run", f"--directory={ROOT}", "VENV=not-there", target]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    (line,) = (line for line in done.stdout.splitlines() if "pip install" in line)
    assert line.endswith(f"--editable '.[{extra}]'")
    assert "--quiet" not in line
