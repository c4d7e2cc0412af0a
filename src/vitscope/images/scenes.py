"""Planted scenes: small images of which it is known where the answer is.

Each image is a grid of cells, one patch each, with a texture behind and glyphs in some of the
cells. A mask says which cells hold the answer to the task, so that maps can be judged by it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from scipy.linalg import hadamard

from vitscope.config import check_kind
from vitscope.errors import UsageError
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.storage import staged_folder

Task = Literal["needle", "count", "global", "shortcut"]
"""What is asked of a scene: which glyph is in it (`needle`), how many times (`count`), which
texture most cells have (`global`); `shortcut` is `needle` with backgrounds that often give the
glyph away."""

NUM_GLYPHS = 8
NUM_UNSEEN_GLYPHS = 7
"""Glyphs of other scenes, for classes that a model was not trained on."""

NUM_TEXTURES = 8
MOST_COPIES = 4
CELL_PX = 4
"""Side of a cell in pixels."""

_SPURIOUS = 0.9
"""Probability that the background of a `shortcut` scene is that of its class."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """Scenes of one task.

    Attributes:
        images: RGB pixels.
        labels: Classes, from 0.
        masks: Cells that hold the answer.
        textures: Texture of each cell.
    """

    images: UInt8[np.ndarray, "scene height width 3"]
    labels: Int[np.ndarray, " scene"]
    masks: Bool[np.ndarray, "scene row column"]
    textures: Int[np.ndarray, "scene row column"]

    def save(self, folder: str | Path) -> None:
        """Write PNG files: `images/`, and `masks/` of the same names, white where the answer is.

        Args:
            folder: Folder to write; made if it does not exist.

        Raises:
            VitscopeError: If it exists, or cannot be written.
        """
        with staged_folder(Path(folder)) as staging:
            for name in ("images", "masks"):
                (staging / name).mkdir()
            for number, (pixels, mask) in enumerate(zip(self.images, self.masks, strict=True)):
                large = mask.repeat(CELL_PX, axis=0).repeat(CELL_PX, axis=1)
                with plain_disk_errors(staging):
                    Image.fromarray(pixels).save(staging / "images" / f"{number:05d}.png")
                    Image.fromarray(large).save(staging / "masks" / f"{number:05d}.png")


def write_demo_scenes(folder: Path) -> Path:
    """Write scenes like those that `scenes:v1` was trained on; returns their folder."""
    if not (folder / "images").is_dir():
        make_scenes("shortcut", 500, seed=20_000, noise=130.0).save(folder)
    return folder / "images"


def count_classes(task: Task, *, unseen: bool = False) -> int:
    """Number of classes of a task."""
    num_glyphs = NUM_UNSEEN_GLYPHS if unseen else NUM_GLYPHS
    return {"count": MOST_COPIES, "global": NUM_TEXTURES}.get(task, num_glyphs)


def make_scenes(
    task: Task,
    num_scenes: int,
    *,
    seed: int = 0,
    grid: tuple[int, int] = (8, 8),
    noise: float = 12.0,
    unseen: bool = False,
) -> Scenes:
    """Generate scenes of a task.

    Glyphs are 4 x 4 patterns of bright and dark pixels, and cover a cell; textures are gratings of
    8 orientations with noise. The answer of `needle`, `count` and `shortcut` is in the cells with
    glyphs, that of `global` in the cells of the most frequent texture. Classes are equally likely.

    Args:
        task: The task.
        num_scenes: Number of scenes.
        seed: Seed of all that is random; scene i of a seed does not depend on their number.
        grid: Rows and columns of cells.
        noise: Standard deviation of the noise of each pixel and channel, in grey levels.
        unseen: Whether glyphs are 7 others than the usual 8, for classes that a model has not seen.
            Each is the majority, pixel by pixel, of three usual ones, so features of the usual
            ones can tell them apart.

    Returns:
        The scenes.

    Raises:
        UsageError: If the task is unknown, or a number is out of range.
    """
    check_kind("num_scenes", num_scenes, int, "a whole number")
    if task not in get_args(Task):
        raise UsageError(f"task was given as {task!r}: expected one of {', '.join(get_args(Task))}")
    rows, columns = grid
    if num_scenes < 1 or rows * columns < 2 * MOST_COPIES:
        raise UsageError(
            f"{num_scenes} scenes of {rows} x {columns} cells: expected 1 scene or more, and "
            f"{2 * MOST_COPIES} cells or more"
        )
    children = np.random.SeedSequence(seed).spawn(num_scenes)
    drawn = [_draw(task, np.random.default_rng(child), grid, noise, unseen) for child in children]
    images, labels, masks, textures = zip(*drawn, strict=True)
    return Scenes(np.stack(images), np.array(labels), np.stack(masks), np.stack(textures))


def _draw(
    task: Task, generator: np.random.Generator, grid: tuple[int, int], noise: float, unseen: bool
) -> tuple[UInt8[np.ndarray, "height width 3"], int, Bool[np.ndarray, "row column"], np.ndarray]:
    label = int(generator.integers(count_classes(task, unseen=unseen)))
    glyph = label
    if task in {"count", "global"}:
        glyph = int(generator.integers(NUM_UNSEEN_GLYPHS if unseen else NUM_GLYPHS))
    copies = label + 1 if task == "count" else int(generator.integers(1, MOST_COPIES + 1))
    textures = _choose_textures(task, label, generator, grid)
    places = generator.choice(textures.size, copies, replace=False)
    hidden = np.zeros(textures.size, dtype=bool)
    hidden[places] = True
    hidden = hidden.reshape(grid)
    pixels = _paint(textures, hidden, glyph + NUM_GLYPHS * unseen, noise, generator)
    answer = (textures == label) & ~hidden if task == "global" else hidden
    return pixels, label, answer, textures


def _choose_textures(
    task: Task, label: int, generator: np.random.Generator, grid: tuple[int, int]
) -> Int[np.ndarray, "row column"]:
    if task != "global":
        own = task == "shortcut" and generator.random() < _SPURIOUS
        texture = label if own else int(generator.integers(NUM_TEXTURES))
        return np.full(grid, texture)
    # Two textures, the first in 55 to 75 % of the cells.
    other = (label + int(generator.integers(1, NUM_TEXTURES))) % NUM_TEXTURES
    size = grid[0] * grid[1]
    most = round(size * generator.uniform(0.55, 0.75))
    return generator.permutation(np.where(np.arange(size) < most, label, other)).reshape(grid)


def _paint(
    textures: Int[np.ndarray, "row column"],
    hidden: Bool[np.ndarray, "row column"],
    glyph: int,
    noise: float,
    generator: np.random.Generator,
) -> UInt8[np.ndarray, "height width 3"]:
    cells = np.where(hidden[..., np.newaxis, np.newaxis], _GLYPHS[glyph], _GRATINGS[textures])
    rows, columns = textures.shape
    grey = cells.transpose(0, 2, 1, 3).reshape(rows * CELL_PX, columns * CELL_PX)
    tint = generator.uniform(0.8, 1.2, 3)
    noisy = grey[..., np.newaxis] * tint + generator.normal(0, noise, (*grey.shape, 3))
    return np.asarray(noisy.clip(0, 255).round(), dtype=np.uint8)


def _make_gratings() -> Float[np.ndarray, "texture height width"]:
    angles = np.pi * np.arange(NUM_TEXTURES) / NUM_TEXTURES
    y, x = np.mgrid[:CELL_PX, :CELL_PX]
    along = np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y
    return np.asarray(110 + 50 * np.sin(np.pi * along / 2 + np.pi / 4))


def _make_glyphs() -> Float[np.ndarray, "glyph height width"]:
    # Rows of a Hadamard matrix: any two glyphs differ in half of their pixels, and as many are
    # bright as dark, so that the mean of a cell says nothing of its glyph.
    usual = hadamard(CELL_PX**2)[1::2]
    # A majority lies in the span of usual glyphs: half of each of the three, less half of their
    # product, which is a usual one too. Any two of the seven triples share one glyph.
    triples = [(0, 1, 2), (0, 3, 4), (0, 5, 6), (1, 3, 5), (1, 4, 6), (2, 3, 6), (2, 4, 5)]
    unseen = np.sign(usual[np.array(triples)].sum(1))
    chosen = np.concatenate([usual, unseen]).reshape(-1, CELL_PX, CELL_PX)
    return np.where(chosen > 0, 235.0, 15.0)


_GRATINGS, _GLYPHS = _make_gratings(), _make_glyphs()
