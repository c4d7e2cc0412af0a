"""A few images in every form."""

import numpy as np
import pytest
import torch
from PIL import Image

from audits import tiny_vit
from images import preprocess_image, write_images
from input_forms import COUNT, numbers_of
from vitscope import audit


@pytest.fixture(scope="module")
def vit():
    return tiny_vit("dinov2_reg")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return sorted(write_images(tmp_path_factory.mktemp("inputs") / "photos", COUNT).iterdir())


@pytest.fixture(scope="module")
def pils(paths):
    return [Image.open(path).copy() for path in paths]


@pytest.fixture(scope="module")
def arrays(pils):
    return [np.asarray(image) for image in pils]


@pytest.fixture(scope="module")
def tensors(arrays):
    return [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]


@pytest.fixture(scope="module")
def pixels(vit, pils):
    return torch.stack([preprocess_image(image, vit.preprocessing) for image in pils])


@pytest.fixture(scope="module")
def expected(vit, paths):
    return numbers_of(audit(vit, paths, gallery=0))
