"""Planted scenes: the answer is where the mask says, and nowhere else."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vitscope.errors import UsageError
from vitscope.images.scenes import (
    CELL_PX,
    MOST_COPIES,
    NUM_GLYPHS,
    NUM_TEXTURES,
    NUM_UNSEEN_GLYPHS,
    count_classes,
    make_scenes,
)

TASKS = ("needle", "count", "global", "shortcut")


def cut(image):
    """Brightness of each cell's pixels, without mean and scale, so that tints do not count."""
    rows, columns = image.shape[0] // CELL_PX, image.shape[1] // CELL_PX
    cells = image.mean(-1).reshape(rows, CELL_PX, columns, CELL_PX).swapaxes(1, 2)
    flat = cells.reshape(rows, columns, -1)
    centred = flat - flat.mean(-1, keepdims=True)
    return centred / np.linalg.norm(centred, axis=-1, keepdims=True)


def learn(cells, labels, count):
    """Mean look of a cell by label."""
    means = np.stack([cells[labels == label].mean(0) for label in range(count)])
    return means / np.linalg.norm(means, axis=-1, keepdims=True)


@pytest.mark.parametrize("task", ["needle", "shortcut"])
def test_masked_cells_say_which_glyph_it_is_and_no_other_cell_does(task):
    scenes = make_scenes(task, 300, seed=1)
    looks = np.stack([cut(image) for image in scenes.images])
    shown = scenes.labels[:, None, None] + 0 * scenes.masks
    glyphs = learn(looks[scenes.masks], shown[scenes.masks], NUM_GLYPHS)
    likeness = looks @ glyphs.T
    assert (likeness.argmax(-1) == shown)[scenes.masks].all()
    assert likeness[scenes.masks].max(-1).min() > 0.9
    # No other cell looks like the glyph.
    own = np.take_along_axis(likeness, shown[..., None], axis=-1)[..., 0]
    assert own[~scenes.masks].max() < 0.9


def test_as_many_cells_are_masked_as_there_are_copies():
    counted = make_scenes("count", 200, seed=2)
    assert (counted.masks.sum((1, 2)) == counted.labels + 1).all()
    copies = Counter(make_scenes("needle", 400, seed=2).masks.sum((1, 2)).tolist())
    assert sorted(copies) == list(range(1, MOST_COPIES + 1))
    assert min(copies.values()) > 60  # a quarter each


def test_the_texture_of_most_cells_is_the_answer_of_global():
    scenes = make_scenes("global", 100, seed=3)
    for textures, label, mask in zip(scenes.textures, scenes.labels, scenes.masks, strict=True):
        counts = Counter(textures.ravel().tolist())
        assert len(counts) == 2
        assert counts.most_common(1)[0][0] == label
        assert 0.5 < counts[label] / textures.size < 0.8
        assert (textures[mask] == label).all()
        assert 0 <= counts[label] - mask.sum() <= MOST_COPIES  # but for cells under glyphs


def test_backgrounds_give_the_class_away_in_nine_of_ten_shortcuts_and_by_chance_in_needles():
    for task, rate in (("shortcut", 0.9 + 0.1 / NUM_TEXTURES), ("needle", 1 / NUM_TEXTURES)):
        scenes = make_scenes(task, 1000, seed=4)
        given_away = (scenes.textures[:, 0, 0] == scenes.labels).mean()
        assert given_away == pytest.approx(rate, abs=0.04)  # 4 standard errors of a rate at most


@pytest.mark.parametrize("task", TASKS)
def test_classes_are_equally_likely_and_scenes_follow_from_their_seed(task):
    few, many = make_scenes(task, 5, seed=7), make_scenes(task, 800, seed=7)
    for name in ("images", "labels", "masks", "textures"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:5])
    assert not np.array_equal(few.images, make_scenes(task, 5, seed=8).images)
    counts = np.bincount(many.labels, minlength=count_classes(task))
    expected = 800 / count_classes(task)
    assert (abs(counts - expected) < 4 * np.sqrt(expected)).all()
    assert many.images.shape == (800, 32, 32, 3)
    assert many.images.dtype == np.uint8


def test_wrong_settings_are_refused():
    with pytest.raises(UsageError, match="expected one of needle, count, global, shortcut"):
        make_scenes("nedle", 3)
    with pytest.raises(UsageError, match="1 scene or more"):
        make_scenes("needle", 0)
    with pytest.raises(UsageError, match="8 cells or more"):
        make_scenes("needle", 3, grid=(2, 2))
    assert make_scenes("needle", 2, grid=(2, 6)).masks.shape == (2, 2, 6)


def test_unseen_glyphs_are_others_and_made_from_the_usual_ones():
    usual, unseen = (
        make_scenes("needle", 300, seed=5),
        make_scenes("needle", 300, seed=5, unseen=True),
    )
    assert set(unseen.labels) == set(range(NUM_UNSEEN_GLYPHS))
    looks = []
    for scenes, count in ((usual, NUM_GLYPHS), (unseen, NUM_UNSEEN_GLYPHS)):
        cells = np.stack([cut(image) for image in scenes.images])[scenes.masks]
        shown = (scenes.labels[:, None, None] + 0 * scenes.masks)[scenes.masks]
        looks.append(learn(cells, shown, count))
    # The means of 80 cells and more, so within a few hundredths.
    likeness = np.abs(looks[0] @ looks[1].T)
    assert likeness.max() == pytest.approx(0.5, abs=0.1)
    assert (likeness**2).sum(0) == pytest.approx(1, abs=0.1)  # nothing is left over
    among = looks[1] @ looks[1].T - np.eye(NUM_UNSEEN_GLYPHS)
    assert among.max() < 0.6


def test_saved_scenes_are_images_with_masks_of_the_same_names(tmp_path):
    scenes = make_scenes("needle", 3, seed=6)
    scenes.save(tmp_path / "scenes")
    files = sorted((tmp_path / "scenes" / "images").iterdir())
    assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png"]
    for file, pixels, mask in zip(files, scenes.images, scenes.masks, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), pixels)
        drawn = np.asarray(Image.open(tmp_path / "scenes" / "masks" / file.name))
        np.testing.assert_array_equal(drawn[::CELL_PX, ::CELL_PX], mask)
        np.testing.assert_array_equal(drawn[CELL_PX - 1 :: CELL_PX, CELL_PX - 1 :: CELL_PX], mask)
    with pytest.raises(UsageError, match="not empty"):
        scenes.save(tmp_path / "scenes")
