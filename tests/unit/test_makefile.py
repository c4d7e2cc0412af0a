"""What the targets of the Makefile would do."""

import shutil
import subprocess
import tomllib

import pytest

from page_blocks import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def list_installs(target):
    arguments = ["make", "--dry-run", f"--directory={ROOT}", "VENV=not-there", target]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert "--quiet" not in done.stdout
    return [line for line in done.stdout.splitlines() if "pip install" in line]


@pytest.mark.parametrize("target", ["lint", "docs"])
def test_a_target_installs_what_development_needs(target):
    (line,) = list_installs(target)
    assert line.endswith("--editable '.[dev]'")


def test_the_demo_installs_vitscope_and_the_packages_of_its_extra_without_what_they_need():
    package, data = list_installs("demo")
    assert package.endswith(" --editable .")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = [name.partition("==")[0] for name in project["optional-dependencies"]["demo"]]
    assert data.endswith(f" --no-deps {' '.join(extra)}")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert set(project["optional-dependencies"]["demo"]) <= set(pinned)
