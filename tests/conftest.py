"""Shared set-up: tests may import their helpers by name, run on one thread, and check shapes."""

import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

TESTS = Path(__file__).parent
for _folder in (".", "unit"):
    sys.path.insert(0, str(TESTS / _folder))
torch.set_num_threads(1)

UNCHECKED = {
    "browser",
    "docs",
    "integration/references",
    "integration/reproduction",
    "integration/shards",
}
"""Folders whose tests run whole jobs over and over: checks of shapes make an audit 2.4 times as
slow, and all that these jobs call is called with the checks on by the tests of the parts."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    folder = item.path.relative_to(TESTS).parent.as_posix()
    jaxtyping.config.update("jaxtyping_disable", folder in UNCHECKED)
