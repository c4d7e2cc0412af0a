"""Sets of images, and a reproduction of them in which every stage is finished."""

import shutil
from pathlib import Path

import pytest

from reproductions import DONE, silent, start
from vitscope.reproduction.smoke import write_smoke_images


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The main set and three others with classes."""
    home = tmp_path_factory.mktemp("sets")
    main_set = write_smoke_images(home / "main")
    for name, classes in {"a": (0, 1), "b": (2, 3), "few": (4,)}.items():
        for label in classes:
            shutil.copytree(main_set / f"class-{label}", home / name / f"class-{label}")
    return home


@pytest.fixture(scope="module")
def finished(sets, tmp_path_factory):
    """A folder in which every stage is finished."""
    out = tmp_path_factory.mktemp("finished") / "paper"
    outcomes = start(out, sets).execute(silent)
    assert {o.stage: o.status for o in outcomes} == DONE
    return out


@pytest.fixture
def out(finished, tmp_path):
    """A copy of that folder, to do anything to."""
    return Path(shutil.copytree(finished, tmp_path / "paper"))
