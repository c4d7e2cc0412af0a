"""Planted scenes on disk: PNG files to audit, and one tensor of pixels to train on."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vitscope.images.preprocessing import Preprocessing
from vitscope.testing.scenes import CELL_PX, Scenes, make_scenes

SIZE = 32
PREPROCESSING = Preprocessing(size=(SIZE, SIZE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

# Far from the seeds of training sets, which are those of the cells.
_TEST_SEED = 10_000
_NUM_UNSEEN = 420  # about 60 of each of 7 classes


def make_training_set(
    task: str, num_images: int, seed: int, noise: float
) -> tuple[Float[Tensor, "image 3 height width"], Int[Tensor, " image"]]:
    """Scenes to train on, preprocessed as `PREPROCESSING` does, and their classes."""
    return _to_tensors(make_scenes(task, num_images, seed=seed, noise=noise))


def make_test_set(
    task: str, num_images: int, noise: float
) -> tuple[Float[Tensor, "image 3 height width"], Int[Tensor, " image"]]:
    """Scenes to test on, the same for all cells."""
    return _to_tensors(make_scenes(task, num_images, seed=_TEST_SEED, noise=noise))


def write_test_images(folder: Path, task: str, num_images: int, noise: float) -> None:
    """Write test scenes, their masks, and scenes of unseen classes in a folder each."""
    if (folder / "done").exists():
        return
    scenes = make_scenes(task, num_images, seed=_TEST_SEED, noise=noise)
    for number, (pixels, mask) in enumerate(zip(scenes.images, scenes.masks, strict=True)):
        _write(folder / "images" / f"{number:05d}.png", pixels)
        _write(folder / "masks" / f"{number:05d}.png", mask.repeat(CELL_PX, 0).repeat(CELL_PX, 1))
    unseen = make_scenes("needle", _NUM_UNSEEN, seed=_TEST_SEED, noise=noise, unseen=True)
    for number, (pixels, label) in enumerate(zip(unseen.images, unseen.labels, strict=True)):
        _write(folder / "unseen" / f"glyph{label}" / f"{number:05d}.png", pixels)
    (folder / "done").touch()


def _to_tensors(
    scenes: Scenes,
) -> tuple[Float[Tensor, "image 3 height width"], Int[Tensor, " image"]]:
    pixels = torch.from_numpy(scenes.images).permute(0, 3, 1, 2).float()
    return (pixels / 255 - 0.5) / 0.5, torch.from_numpy(scenes.labels)


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
