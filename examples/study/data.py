"""Planted scenes on disk: PNG files to audit, and one tensor of pixels to train on."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vitscope.images.preprocessing import Preprocessing
from vitscope.images.scenes import Scenes, make_scenes

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
    """Write test scenes with their masks, and scenes of unseen classes in a folder each."""
    if not (folder / "test").exists():
        make_scenes(task, num_images, seed=_TEST_SEED, noise=noise).save(folder / "test")
    if not (folder / "unseen").exists():
        # With half the noise: one example tells too little of its class at the full one.
        scenes = make_scenes("needle", _NUM_UNSEEN, seed=_TEST_SEED, noise=noise / 2, unseen=True)
        with TemporaryDirectory(dir=folder) as part:
            for number, (pixels, label) in enumerate(
                zip(scenes.images, scenes.labels, strict=True)
            ):
                of_class = Path(part) / "unseen" / f"glyph{label}"
                of_class.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(of_class / f"{number:05d}.png")
            (Path(part) / "unseen").rename(folder / "unseen")


def _to_tensors(
    scenes: Scenes,
) -> tuple[Float[Tensor, "image 3 height width"], Int[Tensor, " image"]]:
    pixels = torch.from_numpy(scenes.images).permute(0, 3, 1, 2).float()
    return (pixels / 255 - 0.5) / 0.5, torch.from_numpy(scenes.labels)
