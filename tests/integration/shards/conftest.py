"""Pictures, and the audit of them that nothing interrupted; no test changes either."""

import pytest

from audits import tiny_vit
from pictures import write_pictures
from sharded import CONFIG, NUM_PICTURES
from vitscope import audit


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), NUM_PICTURES)


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    return audit(tiny_vit(), pictures, CONFIG, out=tmp_path_factory.mktemp("whole") / "r")
