"""Maps as PNG files: what they show, what they are called, and that they are all there or none."""

import json

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image
from test_explanation import make_image, make_map, save

from vitscope.errors import ResultError, UsageError
from vitscope.files.own_files import is_figures

HOSTILE = ("../../etc/<b>n.png", "a/..", "b/wide.jpg", "c/WIDE.png", "日.png", "b/wide.png")


def make_images(*paths):
    return [make_image(path, image_id=f"{n:032x}") for n, path in enumerate(paths)]


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_map_is_painted_on_its_own_scale_and_laid_over_its_image(tmp_path):
    one = make_image()
    values = one["contribution_norm"] - 0.3
    maps = {"attention": make_map(values), "share": make_map(values)}
    object.__setattr__(maps["attention"].about, "signed", False)
    one = make_image(maps=maps)
    files = save(tmp_path / "e", one).save_overlays(tmp_path / "o")
    names = ["attention", "attention__overlay", "share", "share__overlay"]
    assert files == [tmp_path / "o" / f"dog__{name}.png" for name in names]
    ends = {"attention": (values.min(), values.max(), "cividis")}
    ends["share"] = (-np.abs(values).max(), np.abs(values).max(), "PuOr")
    entries = json.loads((tmp_path / "o" / "index.json").read_text())["maps"]
    for entry, (kind, (low, high, colours)) in zip(entries, ends.items(), strict=True):
        levels = (values - low) / (high - low)
        expected = colormaps[colours](levels, bytes=True)[..., :3]
        alone, over = (read(tmp_path / "o" / file) for file in entry["files"])
        assert np.array_equal(alone, np.kron(expected, np.ones((8, 8, 1), np.uint8)))
        assert over == pytest.approx(0.3 * one.image + 0.7 * alone, abs=0.5 + 1e-9)
        assert (entry["map"], entry["path"]) == (kind, one.path)
        assert (entry["low"], entry["high"]) == pytest.approx((low, high))


def test_hostile_and_equal_names_are_safe_and_apart(tmp_path):
    done = []
    explanation = save(tmp_path / "e", *make_images(*HOSTILE))
    files = explanation.save_overlays(
        tmp_path / "o" / "x", on_progress=lambda *counts: done.append(counts)
    )
    stems = dict.fromkeys(file.name.split("__")[0] for file in files)
    assert list(stems) == ["b-n", "image", "b-wide", "c-WIDE", "image-2", "b-wide-2"]
    assert len(set(files)) == len(files) == 2 * 4 * len(HOSTILE)
    assert {file.parent for file in files} == {tmp_path / "o" / "x"}
    assert done == [(n, 6) for n in range(1, 7)]


def test_overlays_are_all_there_or_none_and_replace_only_their_own(tmp_path):
    explanation, out = save(tmp_path / "e", *make_images("1.png", "2.png")), tmp_path / "o"
    last = tmp_path / "e" / "maps" / "0001.npz"
    last.rename(tmp_path / "gone")
    with pytest.raises(ResultError, match="cannot be read"):
        explanation.save_overlays(out)
    assert not out.exists()
    (tmp_path / "gone").rename(last)
    explanation.save_overlays(out)
    assert is_figures(out)
    with pytest.raises(UsageError, match="already holds figures"):
        explanation.save_overlays(out)
    explanation.save_overlays(out, overwrite=True)
    (out / "mine.txt").touch()
    with pytest.raises(UsageError, match=r"also holds mine\.txt"):
        explanation.save_overlays(out, overwrite=True)
