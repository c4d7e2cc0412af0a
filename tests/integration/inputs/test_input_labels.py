"""Labels of images in memory: where they come from, what they are called, which are refused."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from input_forms import COUNT, HubSplit, Items
from vitscope import one_shot
from vitscope.errors import ImageReadError, UsageError


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
        images = Items([{"image": one, "label": torch.tensor(float(k))} for one, k in pairs])
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


def test_labels_come_with_a_list_of_what_a_dataset_gives(vit, paths, pils, tmp_path):
    labels = [0, 1] * 3
    expected = one_shot(vit, pils, labels=labels, draws=3)
    pairs = list(zip(pils, labels, strict=True))
    for images in (pairs, [{"image": one, "label": k} for one, k in pairs]):
        assert one_shot(vit, images, draws=3).draws.equals(expected.draws)
    files = list(zip(paths, labels, strict=True))
    of_paths = one_shot(vit, paths, labels=labels, draws=3)
    assert one_shot(vit, files, draws=3).draws.equals(of_paths.draws)
    with pytest.raises(UsageError, match=r"Items\[\d\] comes from a dataset.* leave resume out"):
        one_shot(vit, Items(pairs), out=tmp_path / "out", resume=True)


def test_names_of_labels_are_those_of_the_dataset(vit, pils):
    rows = [{"image": one, "label": min(i, 2)} for i, one in enumerate(pils)]
    split = HubSplit(rows)
    split.ClassLabel.names = ("lone", "other", "rest")
    with pytest.raises(UsageError, match="of the classes in the labels, 3 in all, 1 have two"):
        one_shot(vit, split)
    more = HubSplit([*rows, {"image": pils[1].rotate(180), "label": 1}])
    assert one_shot(vit, more, draws=2).summary.data.dropped_classes == ("lone",)


def test_an_image_whose_label_is_hidden_is_left_out(vit, pils):
    images = Items(list(zip(pils, [0, 1, -1, 0, 1, -1], strict=True)))
    images.classes = ["cat", "dog", "horse"]
    summary = one_shot(vit, images, draws=2).summary
    assert (summary.data.num_classes, summary.data.num_images) == (2, 4)
    assert summary.data.num_unlabelled == 2
    # Where classes have no names, a number is a class.
    plain = Items(list(zip(pils, [-1, 1] * 3, strict=True)))
    assert one_shot(vit, plain, draws=2).summary.data.num_images == COUNT


@pytest.mark.parametrize("label", [2, -2])
def test_a_label_that_no_class_has_is_refused(vit, pils, label):
    images = Items(list(zip(pils, [0, 1, 0, 1, 0, label], strict=True)))
    images.classes = ["cat", "dog"]
    told = rf"Items\[5\] has the label {label}, and its dataset names 2 classes: expected 0 to 1"
    with pytest.raises(UsageError, match=told):
        one_shot(vit, images)


def test_an_image_that_its_dataset_does_not_give_is_counted(vit, pils):
    pairs = list(zip(pils, [0, 1] * 3, strict=True))
    images = Items([*pairs[:5], OSError("no such row"), pairs[5]])
    images.classes = ["cat", "dog"]
    result = one_shot(vit, images, draws=2)
    assert (result.summary.data.num_images, result.summary.data.num_failed) == (COUNT, 1)
    assert result.failures == [("Items[5]", "its dataset raised OSError: no such row")]
    with pytest.raises(ImageReadError, match=r"none of the 2 images .* Items\[0\]: its dataset"):
        one_shot(vit, Items([OSError(), OSError()]))


def test_labels_are_of_the_images_as_they_were_named(vit, paths):
    labels = [0, 1] * 3
    expected = one_shot(vit, paths, labels=labels, draws=2)
    found = one_shot(vit, [paths[1], *paths], labels=[1, *labels], draws=2)
    assert found.draws.equals(expected.draws)
    with pytest.raises(UsageError, match=r"twice, with the labels 0 and 1: expected one label"):
        one_shot(vit, [*paths, paths[0]], labels=[*labels, 1])
    with pytest.raises(UsageError, match="6 labels for 7 images"):
        one_shot(vit, [*paths, paths[0]], labels=labels)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 1], "2 labels for 6 images: expected one for each"),
        ([0.5] * 6, "a label of type float: expected text or whole numbers"),
        (None, "the images have no labels"),
    ],
)
def test_labels_that_do_not_fit(vit, pils, labels, told):
    with pytest.raises(UsageError, match=told):
        one_shot(vit, pils, labels=labels)


def test_a_dataset_without_labels(vit, pils):
    with pytest.raises(UsageError, match=r"Items\[0\] has no label"):
        one_shot(vit, Items(pils))
    with pytest.raises(UsageError, match="a label of type Tensor: expected text or whole numbers"):
        one_shot(vit, Items(list(zip(pils, torch.eye(COUNT), strict=True))))
