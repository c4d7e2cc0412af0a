"""Pictures and a result that several files of tests look at and none changes."""

import pytest

from audits import NUM_PICTURES, tiny_vit
from pictures import write_pictures
from vitscope import AuditConfig, audit


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), NUM_PICTURES)


@pytest.fixture(scope="session")
def result(pictures):
    return audit(tiny_vit(), pictures, AuditConfig(batch_size=8, dtype="float64", proven=1))
