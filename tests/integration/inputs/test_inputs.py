"""Images in every form that Python people have them in give the numbers of the same image files."""

from collections import deque
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler

from encoded import encode
from input_forms import COUNT, HubSplit, Items, assert_same, numbers_of
from vitscope import ImageSet, audit, one_shot
from vitscope.errors import ImageReadError, UsageError
from vitscope.images.decoding import decode_image
from vitscope.images.in_memory import hold_images
from vitscope.results.schema import DataSummary

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
    "a list of pairs": lambda pils, **_: [(one, 0) for one in pils],
    "a list of pairs of opened files": lambda p, **_: [(Image.open(path), 0) for path in p],
    "a list of dicts": lambda arrays, **_: [{"image": one, "label": 0} for one in arrays],
    "a list of paths with labels": lambda p, **_: [(str(path), "cat") for path in p],
    "a dataset of paths with labels": lambda p, **_: Items([(path, 0) for path in p]),
    "paths of a hub dataset": lambda p, **_: HubSplit(
        [{"image": {"bytes": None, "path": str(path)}, "label": 0} for path in p]
    ),
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


def test_pixels_that_may_be_normalised_are_taken(vit):
    scaled = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32).expand(3, -1, -1, -1)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ([0.5] * 3, [0.25] * 3))
    usual = replace(vit.preprocessing, mean=(0.5,) * 3, std=(0.25,) * 3)
    unscaled = replace(usual, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    for pixels, preprocessing in [
        (scaled, replace(usual, mean=(0.0,) * 3, std=(1.0,) * 3)),  # models that take them so
        (scaled * 255, unscaled),
        (scaled[:1], usual),  # one image may happen to be so
        (torch.stack([scaled[0] * 0, scaled[0] * 0 + 1]), usual),  # plain grey and brighter
        ((scaled * 0 - mean) / std, usual),  # black
        ((scaled * 0.5 + 0.5 - mean) / std, usual),  # bright
        (((scaled + 0.05).clamp(max=1) * 0.25 + 0.5 - mean) / std, usual),  # pale, to 1
    ]:
        assert len(ImageSet.from_sources(pixels, preprocessing, preprocessed=True)) == len(pixels)


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
    assert images.asked < 30


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
    many = Items([OSError(), pixels[0, :, :24], *[pixels[1]] * 14])
    found = ImageSet.from_sources(many, vit.preprocessing, preprocessed=True)
    assert found.preprocessing.size == (24, 32)  # of the first that is readable
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
    "I": lambda image: in_file(np.asarray(image.convert("L"), np.int32) * 257),
    "I;16": lambda image: Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257),
    "F": lambda image: in_file(np.asarray(image.convert("L"), np.float32) / 255),
}


def in_file(values):
    return Image.open(BytesIO(encode(values, "TIFF")))


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


@pytest.mark.parametrize("mode", ["I", "F"])
def test_deep_grey_without_a_file_is_refused(vit, pils, mode):
    # 255 is black or white: nothing says which.
    with pytest.raises(UsageError, match=rf"image\[1\]: a PIL image of mode {mode} that was made"):
        audit(vit, [pils[0], pils[1].convert(mode)])
    (failure,) = audit(vit, Items([*pils, pils[1].convert(mode)]), gallery=0).failures
    assert failure[1].startswith(f"a PIL image of mode {mode} that was made in memory")


def test_what_cannot_be_taken_from_memory_is_named(vit, paths, pils):
    with Image.open(paths[0]) as closed:
        pass
    (failure,) = audit(vit, [closed, *pils], gallery=0).failures
    assert failure[0] == "image[0]"
    assert failure[1].startswith("damaged, cut short, or closed before its pixels were loaded: ")
    for kind, more in [(torch.uint8, {}), (torch.float32, {"preprocessed": True})]:
        nowhere = torch.zeros(3, 32, 32, dtype=kind, device="meta")
        with pytest.raises(
            UsageError, match=r"image\[0\]: .* holds no numbers: expected a tensor on"
        ):
            audit(vit, [nowhere, nowhere], **more)


def test_several_images_beside_each_other_are_no_image_with_its_label(vit, paths):
    with pytest.raises(UsageError, match="an image was given as tuple"):
        audit(vit, [tuple(paths[:2]), tuple(paths[2:4])])


def test_an_animation_stays_at_its_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    image = Image.open(BytesIO(data))
    (held,) = hold_images(image, "image", preprocessed=False)
    assert decode_image(held.read(), background=0).getpixel((0, 0)) == (0, 128, 0)
    assert (image.tell(), image.convert("RGB").getpixel((0, 0))) == (0, (255, 0, 0))
    image.seek(2)  # the caller's choice
    (held,) = hold_images(image, "image", preprocessed=False)
    assert decode_image(held.read(), background=0).getpixel((0, 0)) == (0, 0, 255)


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
    sampler = RandomSampler(tensors, replacement=True, num_samples=40)
    often = audit(vit, DataLoader(Items(tensors), sampler=sampler))
    assert often.summary.data.num_images <= len(tensors)
    dropped = DataLoader(Items(tensors), batch_size=4, drop_last=True)
    assert audit(vit, dropped).summary.data.num_images == 4


@pytest.mark.parametrize("how", ["shuffle", "sampler", "sampler alone"])
def test_a_generator_of_the_caller_stays_where_it_is(vit, tensors, how):
    own = torch.Generator().manual_seed(3)
    items = Items(tensors)
    sampler = RandomSampler(items, generator=own)
    loader = {
        "shuffle": lambda: DataLoader(items, 2, shuffle=True, generator=own),
        "sampler": lambda: DataLoader(items, 2, sampler=sampler),
        "sampler alone": lambda: DataLoader(items, None, sampler=sampler, collate_fn=as_it_is),
    }[how]()
    before = own.get_state()
    assert audit(vit, loader, gallery=0).summary.data.num_images == COUNT
    assert torch.equal(own.get_state(), before)


def as_it_is(item):
    return item


@pytest.mark.parametrize(
    "collate",
    [
        lambda items: {"pixel_values": torch.stack(items), "size": 32},
        lambda items: (torch.stack(items), None),
        lambda items: (torch.stack(items), {"label": torch.ones(len(items))}),
    ],
)
def test_what_a_batch_holds_besides_images_is_left_alone(vit, tensors, expected, collate):
    loader = DataLoader(Items(tensors), 2, collate_fn=collate)
    assert_same(numbers_of(audit(vit, loader, gallery=0)), expected)


def test_processes_that_read_are_given_the_images(vit, paths, pils, tensors, expected):
    assert_same(numbers_of(audit(vit, pils, num_workers=2, gallery=0)), expected)
    opened = [(Image.open(path), 0) for path in paths]
    assert_same(numbers_of(audit(vit, opened, num_workers=2, gallery=0)), expected)
    assert_same(numbers_of(audit(vit, Items(tensors), num_workers=1, gallery=0)), expected)
