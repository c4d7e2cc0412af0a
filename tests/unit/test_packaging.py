"""A wheel holds every file that the package reads."""

import subprocess
import tomllib
from fnmatch import fnmatch

import pytest

from page_blocks import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")


def test_a_wheel_holds_every_file_that_is_no_module():
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = content["tool"]["setuptools"]["package-data"]["vitscope"]
    command = ["git", "-C", str(ROOT / "src" / "vitscope"), "ls-files"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    data = [name for name in done.stdout.splitlines() if not name.endswith(".py")]
    assert "figures/captions.toml" in data
    assert [name for name in data if not any(fnmatch(name, one) for one in patterns)] == []
