"""What runs make of images in memory: resume, shards, labels, settings, results, refusals."""

import sys
from itertools import cycle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

import vitscope
from input_forms import Items
from shape_checks import unchecked
from vitscope import ImageSet, audit, decompose, explain, judge, one_shot
from vitscope.errors import ImageReadError, UsageError
from vitscope.testing.tiny_timm import TINY_TIMM

# --- runs --------------------------------------------------------------------------------------


def test_images_in_memory_are_resumed_by_their_pixels(vit, arrays, tmp_path):
    first = audit(vit, arrays, out=tmp_path / "out")
    run = first.provenance["run"]
    again = audit(vit, [array.copy() for array in arrays], out=tmp_path / "out", resume=True)
    assert again.provenance["run"] == run
    changed = [255 - arrays[0], *arrays[1:]]
    with pytest.raises(UsageError, match=r"holds a different result \(the images differ"):
        audit(vit, changed, out=tmp_path / "out", resume=True)
    with pytest.raises(UsageError, match=r"Items\[0\] comes from a dataset"):
        audit(vit, Items(arrays), out=tmp_path / "out", resume=True)
    for images, references in ((Items(arrays), None), (arrays, Items(arrays))):
        with pytest.raises(UsageError, match=r"Items\[\d\] comes from a dataset"):
            judge(vit, images, references=references, out=tmp_path / "judged", resume=True)


def test_shards_of_images_in_memory_merge(vit, arrays, tmp_path):
    how = {"dtype": "float64"}  # batches of other sizes round otherwise
    parts = [audit(vit, arrays, shard=(k, 2), out=tmp_path / f"{k}", **how) for k in (1, 2)]
    assert parts[0].missing_shards == ["2/2"]
    merged = parts[0].merge(parts[1])
    assert merged.missing_shards == []
    whole = audit(vit, arrays, **how).summary.last.cka["residual"]["patches"]
    found = merged.summary.last.cka["residual"]["patches"]
    # The same float64 sums added up in two parts.
    assert found.unbiased == pytest.approx(whole.unbiased, rel=1e-9)


def test_a_copy_in_memory_is_judged_once(vit, arrays, tmp_path):
    images = [*arrays[:2], arrays[0].copy()]
    settings = {"maps": ["centre"], "out": tmp_path / "out", "size": 16, "device": "cpu"}

    def stop(done, _):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(vit, images, on_progress=stop, **settings)
    made = judge(vit, images, resume=True, **settings)
    assert (made.summary.data.num_images, made.summary.data.num_repeated) == (2, 1)
    assert made.summary.reference.num_images == 2
    rows = [(row["image_id"], row["map"]) for row in made.scores.to_pylist()]
    assert len(set(rows)) == len(rows)
    assert len({image_id for image_id, _ in rows}) == 2


def test_shards_of_other_images_in_memory_are_no_whole(vit, arrays, tmp_path):
    first = audit(vit, arrays, shard=(1, 2), out=tmp_path / "1")
    others = [255 - array for array in arrays]
    second = audit(vit, others, shard=(2, 2), out=tmp_path / "2")
    assert first.merge(second).missing_shards is None
    with pytest.raises(UsageError, match=r"Items\[0\] comes from a dataset.* leave shard out"):
        audit(vit, Items(arrays), shard=(1, 2))


def test_keywords_are_settings(vit, arrays):
    result = audit(vit, arrays, limit=4, layers=[0, 1], dtype=torch.float64, seed=2)
    assert result.summary.data.num_images == 4
    assert [layer.index for layer in result.summary.layers] == [0, 1]
    assert result.summary.model.dtype == "float64"
    with pytest.raises(UsageError, match="unknown setting limt: expected"):
        audit(vit, arrays, limt=4)
    with pytest.raises(UsageError, match="unknown setting limit: expected"):
        explain(vit, arrays[0], limit=4)


def test_images_in_memory_are_explained(vit, paths, pils, tensors, pixels):
    whole = [explain(vit, path).read_image(0) for path in paths[:2]]
    for images in (pils[:2], torch.stack(tensors[:2]), Items(pils[:2])):
        found = explain(vit, images)
        for index, one in enumerate(whole):
            np.testing.assert_array_equal(found.read_image(index)["share"], one["share"])
    given = explain(vit, pixels[:2], preprocessed=True)
    for index, path in enumerate(paths[:2]):
        found = given.read_image(index)
        assert found.framing == "cropped"
        np.testing.assert_array_equal(
            found["attention"], decomposed_attention(vit, vit.preprocess(path))
        )
    prepared = ImageSet.from_sources(pils[:2], vit.preprocessing)
    assert len(explain(vit, prepared)) == 2


def decomposed_attention(vit, pixels):
    from vitscope import map_tokens

    maps = map_tokens(vit, pixels[None])
    return maps.on_grid("attention")[0].numpy()


def test_masks_need_names(vit, arrays, tmp_path):
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (40, 48)).save(tmp_path / "masks" / "0.png")
    with pytest.raises(
        UsageError, match=r"image\[0\] has no name that a mask could be matched with"
    ):
        audit(vit, arrays, masks=tmp_path / "masks")


# --- one image ---------------------------------------------------------------------------------


def test_an_image_is_preprocessed_as_an_audit_would(vit, paths, pils, arrays, tensors, pixels):
    for one in (paths[1], str(paths[1]), pils[1], arrays[1], tensors[1]):
        assert torch.equal(vit.preprocess(one), pixels[1])
    decompose(vit, torch.stack([vit.preprocess(path) for path in paths]))
    with pytest.raises(UsageError, match="6 images were given: expected one"):
        vit.preprocess(pils)
    with pytest.raises(ImageReadError, match="the file is empty"):
        vit.preprocess(write_empty(paths[0].parent.parent / "empty.png"))


def write_empty(path):
    path.write_bytes(b"")
    return path


# --- what comes out ----------------------------------------------------------------------------


def test_results_say_what_they_found_and_hand_over_their_table(vit, arrays, monkeypatch):
    audited = audit(vit, arrays)
    assert str(audited) == f"tiny/dinov2_reg: {audited.summary.last.verdict.text}"
    assert "\n" not in repr(audited)
    explained = explain(vit, arrays[:2])
    assert [line.partition(":")[0] for line in str(explained).splitlines()] == [
        "image[0]",
        "image[1]",
    ]
    classified = one_shot(vit, arrays, labels=[0, 1] * 3, draws=2)
    assert str(classified).startswith("tiny/dinov2_reg: ")
    for library in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(UsageError, match=f"{library} is not installed: pip install {library}"):
            getattr(audited, f"to_{library}")()


def test_tables_go_to_pandas_and_polars(vit, arrays):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    audited = audit(vit, arrays)
    assert isinstance(audited.to_pandas(), pandas.DataFrame)
    assert isinstance(audited.to_polars(), polars.DataFrame)
    expected = audited.images.to_pydict()["image_id"]
    assert list(audited.to_pandas()["image_id"]) == expected
    assert audited.to_polars()["image_id"].to_list() == expected
    classified = one_shot(vit, arrays, labels=[0, 1] * 3, draws=2)
    assert len(classified.to_pandas()) == len(classified.to_polars()) == len(classified.draws)


def test_the_package_lists_its_public_names():
    assert dir(vitscope) == sorted([*vitscope.__all__, "__version__"])


# --- refusals ----------------------------------------------------------------------------------


class Once(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(3, 32, 32)])


class Augmented(Items):
    def __getitem__(self, index):
        return super().__getitem__(index)[:, :: (-1) ** self.asked]


LEVELS = np.zeros((2, 32, 32, 3), np.uint8)
SCALED = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32).expand(3, -1, -1, -1)
PIXELS = torch.zeros(2, 3, 32, 32)
REFUSED = [
    (
        LEVELS / 255,
        False,
        "image[0]: an array of float64 (32, 32, 3): expected levels from 0 to 255",
    ),
    (LEVELS[0, :, :, 0], False, "image: an array of uint8 (32, 32): expected levels"),
    (LEVELS[..., :2], False, "image[0]: an array of uint8 (32, 32, 2): expected levels"),
    (LEVELS.astype(np.int64), False, "image[0]: an array of int64 (32, 32, 3): expected levels"),
    (
        LEVELS.transpose(0, 3, 1, 2),
        False,
        "image[0]: an array of uint8 (3, 32, 32): expected levels",
    ),
    (LEVELS[:0], False, "no images were given: expected a path, a URL, a PIL image"),
    (
        PIXELS,
        False,
        "image[0]: a tensor of float32 (3, 32, 32): expected levels from 0 to 255, as an array",
    ),
    ([PIXELS[0]], False, "image[0]: a tensor of float32 (3, 32, 32): expected levels"),
    (
        PIXELS.to(torch.uint8).permute(0, 2, 3, 1),
        False,
        "image[0]: a tensor of uint8 (32, 32, 3): expected levels",
    ),
    (
        PIXELS.to(torch.uint8),
        True,
        "image[0]: a tensor of uint8 (3, 32, 32) with preprocessed=True: expected floating-point",
    ),
    (
        PIXELS[:, :1],
        True,
        "image[0]: a tensor of float32 (1, 32, 32) with preprocessed=True: expected floating-point",
    ),
    (
        LEVELS,
        True,
        "image[0]: a tensor of uint8 (32, 32, 3) with preprocessed=True: expected floating-point",
    ),
    (
        [Image.new("RGB", (9, 9))],
        True,
        "image[0]: Image with preprocessed=True: expected floating-point tensors",
    ),
    (".", True, "'.' with preprocessed=True: expected floating-point tensors"),
    (Once(), False, "Once gives its images once and in its own order: collect"),
    (
        DataLoader(Once()),
        False,
        "DataLoader gives its images once and in its own order: collect",
    ),
    (
        iter(DataLoader(Items([7] * 2))),
        False,
        "images were given as an iterator of a DataLoader: pass the DataLoader itself",
    ),
    (
        DataLoader(Items([7] * 2), sampler=cycle([1, 0])),
        False,
        "the sampler of the DataLoader gives more indices than its dataset has items, 2, and",
    ),
    (
        Items([7] * 2),
        False,
        "Items[0]: an image was given as int: expected a path, a URL, a PIL image",
    ),
    (
        Items([{"picture_of": 1}] * 2),
        False,
        "Items[0]: an item with picture_of: expected an image under one of image, img",
    ),
    (Items([PIXELS[0]] * 2), False, "Items[0]: a tensor of float32 (3, 32, 32): expected levels"),
    (
        DataLoader(Items([PIXELS[0]] * 2)),
        False,
        "Items[0]: a tensor of float32 (3, 32, 32): expected levels",
    ),
    (SCALED, True, "the pixels are from 0 to 1, as before normalisation, with preprocessed=True"),
    (Items(SCALED * 255), True, "the pixels are from 0 to 255, as before normalisation"),
    (
        Augmented([np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)] * 30),
        False,
        "Augmented[0] differs between two readings: expected a dataset without random",
    ),
    (
        DataLoader(Items([Image.new("RGB", (9, 9))] * 2)),
        False,
        "Items[0]: its DataLoader cannot collate it (default_collate: batch must contain tensors, "
        "numpy arrays, numbers, dicts or lists; found <class 'PIL.Image.Image'>): give the dataset "
        "itself, loader.dataset",
    ),
    ([], False, "no images were given: expected"),
    (
        {"train": Items([LEVELS[0]] * 2)},
        False,
        "images were given as dict: expected one of its values (train)",
    ),
    (b"bytes", False, "an image was given as bytes: expected a path"),
    (object(), False, "an image was given as object: expected a path"),
]


@pytest.fixture
def unrun():
    """A model that is not to be asked for anything."""
    module = TINY_TIMM["vit"]()
    module.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    return module


@pytest.mark.parametrize(("images", "preprocessed", "told"), REFUSED)
def test_what_is_no_image_is_refused_in_one_sentence_before_the_model_runs(
    images, preprocessed, told, unrun
):
    with pytest.raises(UsageError) as refused, unchecked():
        audit(unrun, images, preprocessed=preprocessed)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(told)
    assert "preprocessed=True" in line or "levels" not in line


def test_a_dataset_that_gives_its_images_once_says_what_to_do(vit):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(UsageError, match=r"in a list, as in list\(itertools.islice"):
        audit(vit, Stream())
