"""Images in every form that Python people have them in give the numbers of the same image files."""

import subprocess
import sys
from collections import deque

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler

import vitscope
from audits import tiny_vit
from images import write_images
from vitscope import ImageSet, audit, decompose, explain, one_shot
from vitscope.errors import ImageReadError, UsageError
from vitscope.images.decoding import decode_image, preprocess_image
from vitscope.images.in_memory import hold_images
from vitscope.results.schema import DataSummary

COUNT = 6
NOT_OF_PIXELS = ("path", "image_id")


@pytest.fixture(scope="module")
def vit():
    return tiny_vit("dinov2_reg")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return sorted(write_images(tmp_path_factory.mktemp("inputs") / "photos", COUNT).iterdir())


@pytest.fixture(scope="module")
def pils(paths):
    return [Image.open(path).copy() for path in paths]


@pytest.fixture(scope="module")
def arrays(pils):
    return [np.asarray(image) for image in pils]


@pytest.fixture(scope="module")
def tensors(arrays):
    return [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]


@pytest.fixture(scope="module")
def pixels(vit, pils):
    return torch.stack([preprocess_image(image, vit.preprocessing) for image in pils])


@pytest.fixture(scope="module")
def expected(vit, paths):
    return numbers_of(audit(vit, paths, gallery=0))


def numbers_of(result, *left_out):
    table = result.images.to_pydict()
    dropped = {*NOT_OF_PIXELS, *left_out}
    return {name: values for name, values in table.items() if name not in dropped}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


class Items(Dataset):
    """A dataset that gives out what it holds, and counts how often it is asked."""

    def __init__(self, items):
        self.items, self.asked = items, 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.asked += 1
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


class HubSplit:
    """As a split of a Hugging Face dataset looks: rows as dicts, columns by name, features."""

    class ClassLabel:
        names = ("cat", "dog")

    def __init__(self, rows):
        self.rows = rows
        self.column_names = list(rows[0])
        self.features = dict.fromkeys(self.column_names) | {"label": self.ClassLabel()}

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]


FORMS = {
    "paths": lambda p, **_: p,
    "text": lambda p, **_: [str(path) for path in p],
    "a generator of paths": lambda p, **_: (path for path in p),
    "URLs": lambda p, **_: [path.as_uri() for path in p],
    "PIL images": lambda pils, **_: pils,
    "a tuple of PIL images": lambda pils, **_: tuple(pils),
    "opened files": lambda p, **_: [Image.open(path) for path in p],
    "arrays": lambda arrays, **_: arrays,
    "a batch of arrays": lambda arrays, **_: np.stack(arrays),
    "a read-only view": lambda arrays, **_: [np.asfortranarray(a) for a in arrays],
    "tensors": lambda tensors, **_: tensors,
    "a batch of tensors": lambda tensors, **_: torch.stack(tensors),
    "batches": lambda arrays, **_: [np.stack(arrays[:2]), np.stack(arrays[2:])],
    "mixed": lambda p, pils, arrays, tensors, **_: [p[0], pils[1], arrays[2], *tensors[3:]],
    "a dataset": lambda pils, **_: Items(pils),
    "a dataset with labels": lambda pils, **_: Items([(one, 0) for one in pils]),
    "a dataset of tensors": lambda tensors, **_: Items([(one, 0) for one in tensors]),
    "a dataset of dicts": lambda pils, **_: Items([{"label": 0, "img": one} for one in pils]),
    "a deque": lambda pils, **_: deque(pils),
    "a loader": lambda tensors, **_: DataLoader(Items(tensors), batch_size=4),
    "a shuffled loader": lambda tensors, **_: DataLoader(
        Items([(one, 1) for one in tensors]), batch_size=4, shuffle=True
    ),
    "a loader without batches": lambda arrays, **_: DataLoader(
        Items(arrays), batch_size=None, collate_fn=lambda item: item
    ),
    "a hub dataset": lambda pils, **_: HubSplit([{"image": one, "label": 0} for one in pils]),
    "bytes of a hub dataset": lambda p, **_: HubSplit(
        [{"image": {"bytes": path.read_bytes(), "path": None}, "label": 0} for path in p]
    ),
}

PREPROCESSED = {
    "a batch": lambda pixels: pixels,
    "a list": lambda pixels: list(pixels),
    "arrays": lambda pixels: pixels.numpy(),
    "a dataset": lambda pixels: Items([(one, 0) for one in pixels]),
    "a loader": lambda pixels: DataLoader(Items([(p, 0) for p in pixels]), 4, shuffle=True),
    "a loader of dicts": lambda pixels: DataLoader(
        Items([{"pixel_values": one, "labels": 0, "image": "left aside"} for one in pixels]), 4
    ),
    "double precision": lambda pixels: pixels.double(),
    "with gradients": lambda pixels: pixels.clone().requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_numbers_are_those_of_the_files(vit, form, expected, paths, pils, arrays, tensors):
    images = FORMS[form](p=paths, pils=pils, arrays=arrays, tensors=tensors)
    assert_same(numbers_of(audit(vit, images, gallery=0)), expected)


@pytest.mark.parametrize("form", PREPROCESSED)
def test_preprocessed_numbers_are_given_to_the_model_as_they_are(vit, form, expected, pixels):
    result = audit(vit, PREPROCESSED[form](pixels), preprocessed=True, gallery=0)
    assert_same(numbers_of(result), expected)  # covariates of how they look included
    described = result.summary.preprocessing
    assert described.pipeline == "given"
    assert described.changed == ("pipeline",)


def test_half_precision_and_another_size_are_taken(vit):
    pixels = torch.randn(3, 3, 24, 40).bfloat16()
    result = audit(vit, pixels, preprocessed=True)
    assert result.summary.preprocessing.size == (24, 40)
    with pytest.raises(UsageError, match="does not fit the patch size"):
        audit(vit, torch.randn(3, 3, 25, 40), preprocessed=True)
    with pytest.raises(UsageError, match="size is set, but preprocessed"):
        audit(vit, pixels, preprocessed=True, size=24)
    prepared = ImageSet.from_sources(pixels, vit.preprocessing, preprocessed=True)
    with pytest.raises(UsageError, match="preprocessed=True with an ImageSet"):
        audit(vit, prepared, preprocessed=True)


def test_a_prepared_set_of_preprocessed_pixels(vit, pixels, expected):
    images = ImageSet.from_sources(pixels, vit.preprocessing, preprocessed=True)
    assert repr(images) == f"ImageSet({COUNT} images, 32 x 32 px)"
    assert_same(numbers_of(audit(vit, images)), expected)


def test_the_library_datasets_is_taken(vit, paths, pils, expected):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"image": pils, "label": [i % 2 for i in range(COUNT)]}
    split = datasets.Dataset.from_dict(rows, features=features)
    assert_same(numbers_of(audit(vit, split)), expected)
    assert_same(numbers_of(audit(vit, split.with_format("torch"))), expected)
    encoded = split.cast_column("image", datasets.Image(decode=False))
    assert_same(numbers_of(audit(vit, encoded)), expected)
    result = one_shot(vit, split, draws=2)
    assert result.summary.data.num_images == COUNT
    with pytest.raises(UsageError, match="gives its images once"):
        audit(vit, split.to_iterable_dataset())
    with pytest.raises(UsageError, match="expected one of its values"):
        audit(vit, datasets.DatasetDict(train=split))


# --- what an image is known by -----------------------------------------------------------------


def test_copies_are_recognised_in_whatever_form(vit, pils, arrays, tensors):
    result = audit(vit, [pils[0], arrays[0], tensors[0], pils[1], pils[1], *arrays[2:]])
    assert result.summary.data == DataSummary(num_images=COUNT, num_failed=0, num_repeated=3)
    named = result.images.to_pydict()["path"]
    assert named[:3] == ["image[0]", "image[3]", "image[5]"]
    of_dataset = audit(vit, Items([*pils, *pils]), shard_size=5)
    assert of_dataset.summary.data.num_repeated == COUNT
    assert (
        of_dataset.images.to_pydict()["image_id"] == audit(vit, pils).images.to_pydict()["image_id"]
    )


def test_a_dataset_is_asked_for_an_image_when_its_turn_comes(vit, pils):
    images = Items(pils * 20)
    audit(vit, images, limit=3, gallery=0)
    assert images.asked < 10


def test_what_cannot_be_read_is_counted(vit, pils, pixels):
    images = Items([pils[0], ValueError("no such\nrow"), pils[1], pils[2], (), "dog.jpg"])
    result = audit(vit, images)
    assert result.summary.data.num_failed == 3
    assert result.failures[0] == ("Items[1]", "its dataset raised ValueError: no such row")
    assert [name for name, _ in result.failures] == ["Items[1]", "Items[4]", "Items[5]"]
    spoiled = pixels.clone()
    spoiled[1, 0, 0, 0] = torch.nan
    (failure,) = audit(vit, spoiled, preprocessed=True).failures
    assert failure == ("image[1]", "its preprocessed pixels hold NaN or infinity")
    shapes = Items([pixels[0], pixels[1, :, :24], pixels[2]])
    (failure,) = audit(vit, shapes, preprocessed=True).failures
    assert failure[1] == "its preprocessed pixels are 24 x 32, those of the first image 32 x 32"
    with pytest.raises(ImageReadError, match=r"none of the 2 images .* Items\[0\]: its dataset"):
        audit(vit, Items([OSError(), OSError()]))


@pytest.mark.parametrize("preprocessed", [False, True])
def test_the_gallery_shows_them(vit, paths, tensors, pixels, preprocessed):
    of_files = audit(vit, paths)
    held = audit(vit, Items(pixels if preprocessed else tensors), preprocessed=preprocessed)
    shown, gallery = of_files.gallery, held.gallery
    assert len(gallery.images) == len(shown.images) == COUNT
    by_name = {one.path: shown.read_maps(i).image for i, one in enumerate(shown.images)}
    for place, one in enumerate(gallery.images):
        number = int(one.path.removeprefix("Items[").removesuffix("]"))
        image = gallery.read_maps(place).image
        np.testing.assert_array_equal(image, by_name[str(paths[number])])


MODES = {
    "L": lambda image: image.convert("L"),
    "1": lambda image: image.convert("1"),
    "P": lambda image: image.quantize(7),
    "LA": lambda image: with_alpha(image).convert("LA"),
    "RGBA": lambda image: with_alpha(image),
    "La": lambda image: with_alpha(image).convert("LA").convert("La"),
    "RGBa": lambda image: with_alpha(image).convert("RGBa"),
    "CMYK": lambda image: image.convert("CMYK"),
    "YCbCr": lambda image: image.convert("YCbCr"),
    "HSV": lambda image: image.convert("HSV"),
    "I": lambda image: Image.fromarray(np.asarray(image.convert("L"), np.int32) * 257),
    "I;16": lambda image: Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257),
    "F": lambda image: Image.fromarray(np.asarray(image.convert("L"), np.float32) / 255),
}


def with_alpha(image):
    alpha = Image.linear_gradient("L").resize(image.size)
    image = image.copy()
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize("mode", MODES)
def test_any_mode_of_pillow_looks_as_it_does(pils, mode):
    from vitscope.images.colours import convert_to_rgb

    image = MODES[mode](pils[0])
    assert image.mode == mode
    (held,) = hold_images(image, "image", preprocessed=False)
    for background in (0, 255):
        found = decode_image(held.read(), background=background)
        np.testing.assert_array_equal(found, convert_to_rgb(image, background))


def test_a_photograph_is_turned_upright(tmp_path, pils):
    exif = Image.Exif()
    exif[0x0112] = 6
    pils[0].save(tmp_path / "turned.jpg", exif=exif)
    (held,) = hold_images(Image.open(tmp_path / "turned.jpg"), "image", preprocessed=False)
    file = decode_image((tmp_path / "turned.jpg").read_bytes(), background=0)
    np.testing.assert_array_equal(decode_image(held.read(), background=0), file)
    assert file.size == pils[0].size[::-1]


# --- loaders -----------------------------------------------------------------------------------


def test_a_loader_says_which_images_and_random_numbers_stay_where_they_are(vit, tensors):
    chosen = DataLoader(Items(tensors), batch_size=2, sampler=SubsetRandomSampler([4, 1, 3]))
    before = torch.get_rng_state()
    result = audit(vit, chosen)
    assert torch.equal(torch.get_rng_state(), before)
    assert result.images.to_pydict()["path"] == ["Items[1]", "Items[3]", "Items[4]"]
    dropped = DataLoader(Items(tensors), batch_size=4, drop_last=True)
    assert audit(vit, dropped).summary.data.num_images == 4


def test_processes_that_read_are_given_the_images(vit, pils, tensors, expected):
    assert_same(numbers_of(audit(vit, pils, num_workers=2, gallery=0)), expected)
    assert_same(numbers_of(audit(vit, Items(tensors), num_workers=1, gallery=0)), expected)


# --- runs --------------------------------------------------------------------------------------


def test_images_in_memory_are_resumed_by_their_pixels(vit, arrays, tmp_path):
    first = audit(vit, arrays, out=tmp_path / "out")
    run = first.provenance["run"]
    again = audit(vit, [array.copy() for array in arrays], out=tmp_path / "out", resume=True)
    assert again.provenance["run"] == run
    changed = [255 - arrays[0], *arrays[1:]]
    with pytest.raises(UsageError, match=r"holds a different result \(its images are others"):
        audit(vit, changed, out=tmp_path / "out", resume=True)
    with pytest.raises(UsageError, match=r"Items\[0\] comes from a dataset"):
        audit(vit, Items(arrays), out=tmp_path / "out", resume=True)


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
            np.testing.assert_array_equal(found.read_image(index).share, one.share)
    given = explain(vit, pixels[:2], preprocessed=True)
    for index, path in enumerate(paths[:2]):
        found = given.read_image(index)
        assert found.framing == "cropped"
        np.testing.assert_array_equal(
            found.attention, decomposed_attention(vit, vit.preprocess(path))
        )
    prepared = ImageSet.from_sources(pils[:2], vit.preprocessing)
    assert len(explain(vit, prepared)) == 2


def decomposed_attention(vit, pixels):
    from vitscope import map_tokens

    maps = map_tokens(vit, pixels[None])
    return maps.on_grid(maps.attention)[0].mean(dim=0).numpy()


def test_masks_need_names(vit, arrays, tmp_path):
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (40, 48)).save(tmp_path / "masks" / "0.png")
    with pytest.raises(
        UsageError, match=r"image\[0\] has no name that a mask could be matched with"
    ):
        audit(vit, arrays, masks=tmp_path / "masks")


# --- labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["labels", "pairs", "dict", "hub", "loader", "classes", "folder"])
def test_labels_come_with_the_images(vit, form, pils, tensors, pixels, tmp_path):
    labels = [0, 1, 0, 1, 0, 1]
    preprocessed = False
    given = None
    pairs = list(zip(pils, labels, strict=True))
    if form == "labels":
        images, given = pils, np.array(labels)
    elif form == "pairs":
        images = Items(pairs)
    elif form == "dict":
        images = Items([{"image": one, "label": torch.tensor(k)} for one, k in pairs])
    elif form == "hub":
        images = HubSplit([{"image": one, "label": k} for one, k in pairs])
    elif form == "loader":
        pairs = list(zip(pixels, labels, strict=True))
        images, preprocessed = DataLoader(Items(pairs), 4, shuffle=True), True
    elif form == "classes":
        images = Items(pairs)
        images.classes = ["cat", "dog"]
    else:
        images = tmp_path
        for number, (one, k) in enumerate(pairs):
            (tmp_path / f"{k}").mkdir(exist_ok=True)
            one.save(tmp_path / f"{k}" / f"{number}.png")
    result = one_shot(vit, images, labels=given, preprocessed=preprocessed, draws=3)
    data = result.summary.data
    assert (data.num_classes, data.num_images) == (2, COUNT)
    if form not in {"loader", "folder"}:  # whose images have other identities, and so other draws
        expected = one_shot(vit, pils, labels=labels, draws=3)
        assert result.draws.equals(expected.draws)


def test_names_of_labels_are_those_of_the_dataset(vit, pils):
    rows = [{"image": one, "label": min(i, 2)} for i, one in enumerate(pils)]
    split = HubSplit(rows)
    split.ClassLabel.names = ("lone", "other", "rest")
    with pytest.raises(UsageError, match="name 3 classes, 1 of them with at least two"):
        one_shot(vit, split)
    more = HubSplit([*rows, {"image": pils[1].rotate(180), "label": 1}])
    assert one_shot(vit, more, draws=2).summary.data.dropped_classes == ("lone",)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 1], "2 labels for 6 images: expected one for each"),
        ([0.5] * 6, "a label of type float: expected text or whole numbers"),
        (None, "the images come without labels"),
    ],
)
def test_labels_that_do_not_fit(vit, pils, labels, told):
    with pytest.raises(UsageError, match=told):
        one_shot(vit, pils, labels=labels)


def test_a_dataset_without_labels(vit, pils):
    with pytest.raises(UsageError, match=r"Items\[0\] comes without a label"):
        one_shot(vit, Items(pils))


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

_REFUSED = """
import itertools, sys
import numpy as np, torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset
from vitscope import audit, explain, one_shot
from vitscope.errors import UsageError
from vitscope.testing.tiny_timm import TINY_TIMM

vit = TINY_TIMM["vit"]()
vit.register_forward_hook(lambda *_: sys.exit("the model ran"))

class Once(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(3, 32, 32)])

class Odd(Dataset):
    def __init__(self, item):
        self.item = item
    def __len__(self):
        return 2
    def __getitem__(self, index):
        return self.item

levels = np.zeros((2, 32, 32, 3), np.uint8)
pixels = torch.zeros(2, 3, 32, 32)
for images, more in [
    (levels / 255, {}),
    (levels[0, :, :, 0], {}),
    (levels[..., :2], {}),
    (levels.astype(np.int64), {}),
    (levels.transpose(0, 3, 1, 2), {}),
    (levels[:0], {}),
    (pixels, {}),
    ([pixels[0]], {}),
    (pixels.to(torch.uint8).permute(0, 2, 3, 1), {}),
    (pixels.to(torch.uint8), {"preprocessed": True}),
    (pixels[:, :1], {"preprocessed": True}),
    (levels, {"preprocessed": True}),
    ([Image.new("RGB", (9, 9))], {"preprocessed": True}),
    ("photos", {"preprocessed": True}),
    (Once(), {}),
    (DataLoader(Once()), {}),
    (Odd(7), {}),
    (Odd({"picture_of": 1}), {}),
    (Odd(pixels[0]), {}),
    (DataLoader(Odd(pixels[0])), {}),
    ([], {}),
    ({"train": Odd(levels[0])}, {}),
    (b"bytes", {}),
    (object(), {}),
]:
    try:
        audit(vit, images, **more)
    except UsageError as error:
        print(str(error).replace("\\n", "NEWLINE"))
    else:
        print("TAKEN")
"""

TOLD = """\
image[0]: an array of float64 (32, 32, 3): expected levels from 0 to 255
image: an array of uint8 (32, 32): expected levels
image[0]: an array of uint8 (32, 32, 2): expected levels
image[0]: an array of int64 (32, 32, 3): expected levels
image[0]: an array of uint8 (3, 32, 32): expected levels
no images were given: expected a path, a URL, a PIL image
image[0]: a tensor of float32 (3, 32, 32): expected levels from 0 to 255, as an array
image[0]: a tensor of float32 (3, 32, 32): expected levels
image[0]: a tensor of uint8 (32, 32, 3): expected levels
image[0]: a tensor of uint8 (3, 32, 32) with preprocessed=True: expected floating-point
image[0]: a tensor of float32 (1, 32, 32) with preprocessed=True: expected floating-point
image[0]: a tensor of uint8 (32, 32, 3) with preprocessed=True: expected floating-point
image[0]: Image with preprocessed=True: expected floating-point tensors
'photos' with preprocessed=True: expected floating-point tensors
Once gives its images once and in its own order: take those
DataLoader gives its images once and in its own order: take those
Odd[0]: an image was given as int: expected a path, a URL, a PIL image
Odd[0]: an item with picture_of: expected an image under one of image, img
Odd[0]: a tensor of float32 (3, 32, 32): expected levels
Odd[0]: a tensor of float32 (3, 32, 32): expected levels
no images were given: expected
images were given as dict: expected one of its values (train)
an image was given as bytes: expected a path
an image was given as object: expected a path"""


def test_what_is_no_image_is_refused_in_one_sentence_before_the_model_runs():
    # In a process of its own: here annotations are checked before any code of ours.
    done = subprocess.run([sys.executable, "-c", _REFUSED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(TOLD.splitlines())
    for line, told in zip(lines, TOLD.splitlines(), strict=True):
        assert line.startswith(told)
        assert "preprocessed=True" in line or "levels" not in line


def test_a_dataset_that_gives_its_images_once_says_what_to_do(vit):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(UsageError, match=r"into a list, as in list\(itertools.islice"):
        audit(vit, Stream())
