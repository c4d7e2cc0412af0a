"""What a reader of the pages has at hand, in little, so that every block can be run in seconds.

Nothing of vitscope itself is replaced but four things: weights are those of tiny random models (a
name with "reg" in it has registers), the demo's photographs are small images made on the spot,
files of figures are empty, and servers stop at once. Ids are checked as ever, and everything behind
the weights is real.
"""

import shutil

import pytest
from PIL import Image

import vitscope.adapters.registry as registry
import vitscope.images.photographs as photographs
from blank_figures import blank_figures
from images import write_classes, write_images
from vitscope import AuditConfig, OneShotConfig, audit, explain, one_shot
from vitscope.adapters.timm import make_timm_adapter
from vitscope.serving import app
from vitscope.testing.tiny_timm import TINY_TIMM

DEMO_IMAGES = ("chelsea_whole", "coffee_whole")


def load_tiny(model_id, *_):
    name = "dinov2_reg" if "reg" in model_id else "dinov2"
    # Patches of 14 pixels, as those of the models that pages name: smaller ones would be many more.
    return make_timm_adapter(TINY_TIMM[name](img_size=56, patch_size=14), model_id=f"tiny/{name}")


def write_few_photographs(folder):
    shutil.rmtree(folder, ignore_errors=True)
    write_images(folder, 24)
    for number, name in enumerate(DEMO_IMAGES):
        (folder / f"{number:04d}.png").rename(folder / f"{name}.jpg")
    credit = photographs.Credit(title="made on the spot", package="none", licence="CC0")
    return photographs.DemoPhotographs(credits=(credit,) * 24, crops_per_photograph=1)


@pytest.fixture(autouse=True)
def tiny_weights(monkeypatch):
    monkeypatch.setattr(registry, "_load_entry", load_tiny)
    monkeypatch.setattr(registry, "_load_by_address", load_tiny)
    monkeypatch.setattr("vitscope.cli.each_model.check_weights", lambda _: None)
    monkeypatch.setattr(photographs, "write_demo_photographs", write_few_photographs)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture(autouse=True)
def quick_figures():
    with blank_figures():
        yield


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    listen = app.listen
    monkeypatch.setattr(app, "listen", lambda host, _: listen(host, 0))
    monkeypatch.setattr(app.uvicorn.Server, "run", lambda *_, **__: None)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """The folder that a reader is in: images, and results that pages speak of.

    photos/, photos-a/ and photos-b/ (disjoint), flowers/ (a folder a class), dog.jpg, the images of
    the demo; of the same model results-a/ and results-b/ (audits of the two parts),
    flowers-results/, dog-results/.
    """
    folder = tmp_path_factory.mktemp("home")
    write_images(folder / "photos", 24)
    write_few_photographs(folder / "vitscope-demo" / "images")
    classes = write_classes(folder / "flowers", 6)
    dog = folder / "dog.jpg"
    Image.open(folder / "photos" / "0003.png").save(dog)
    vit = (
        load_tiny("dinov2-small").named("dinov2-small", "made on the spot").labelled("DINOv2", "S")
    )
    for start, part in enumerate("ab"):
        photos = write_images(folder / f"photos-{part}", 12, start=100 * (start + 1))
        audit(vit, photos, AuditConfig(), out=folder / f"results-{part}" / "dinov2-small")
    draws = OneShotConfig(draws=4)
    one_shot(vit, classes, draws, out=folder / "flowers-results" / "dinov2-small")
    explain(vit, [dog], out=folder / "dog-results" / "dinov2-small")
    return folder


@pytest.fixture
def reader(home, tmp_path, monkeypatch):
    """A copy of the home, as the working folder."""
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"
