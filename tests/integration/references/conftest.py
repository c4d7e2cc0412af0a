"""Images, an audit of them to be held against, and a folder that it lies in."""

import shutil

import pytest

from audits import named_vit
from images import write_images
from vitscope import AuditConfig, audit


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images that are not square: an audit crops them."""
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder, 12, size=(70, 44))
    write_images(folder, 12, size=(40, 61), start=12)
    return folder


@pytest.fixture(scope="module")
def audited(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audits") / "audit"
    return audit(named_vit(), photos, AuditConfig(dtype="float64", gallery=24), out=folder)


@pytest.fixture(scope="module")
def one(photos):
    return photos / "0003.png"


@pytest.fixture
def home(audited, tmp_path):
    """A folder with an audit in it."""
    shutil.copytree(audited.folder, tmp_path / "home" / "photos-audit")
    return tmp_path / "home"
