"""Images and a result that several files of tests look at and none changes."""

import pytest

from audits import NUM_IMAGES, tiny_vit
from images import write_images
from vitscope import AuditConfig, audit
from vitscope.testing.tiny_transformers import TINY_TRANSFORMERS


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), NUM_IMAGES)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Weights of a model with registers, on disk."""
    folder = tmp_path_factory.mktemp("model")
    TINY_TRANSFORMERS["dinov2_registers"]().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def result(images):
    return audit(tiny_vit(), images, AuditConfig(batch_size=8, dtype="float64", verified=1))
