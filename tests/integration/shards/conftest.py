"""Images, and the audit of them that nothing interrupted; no test changes either."""

import pytest

from audits import tiny_vit
from images import write_images
from sharded import CONFIG, NUM_IMAGES
from vitscope import audit


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), NUM_IMAGES)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    return audit(tiny_vit(), images, CONFIG, out=tmp_path_factory.mktemp("whole") / "r")
