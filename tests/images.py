"""Small generated images, varied enough that their features differ."""

import numpy as np
from PIL import Image

from vitscope.images.decoding import prepare_image

IMAGE_COVARIATES = (
    "entropy",
    "edge_density",
    "colourfulness",
    "spatial_frequency",
    "saliency_concentration",
)
"""Covariates that every image has, in their order."""


def write_images(folder, count, *, start=0, size=(40, 48)):
    """Write `count` random smooth colour images; equal numbers give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        generator = np.random.default_rng(number)
        coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        image.save(folder / f"{number:04d}.png")
    return folder


def write_classes(folder, count):
    """Write class folders with three to five images each; every seventh class is nested deeper."""
    for number in range(count):
        below = "deep/er" if number % 7 == 3 else "."
        write_images(folder / f"class {number}" / below, 3 + number % 3, start=10 * number)
    return folder


def touch(folder, *names):
    """Create empty files with these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def preprocess_image(image, preprocessing):
    """The pixels that a model gets of an image."""
    return prepare_image(image, preprocessing)[1]
