"""Labelled images: a folder with one subfolder per class, a dataset, or a list of labels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from vitscope.config import check_kind
from vitscope.errors import ImageReadError, UsageError
from vitscope.files.printable import name_some, printable
from vitscope.images.addresses import ImageAddress, Images, printable_address
from vitscope.images.folders import is_hidden
from vitscope.images.in_memory import LABELS, HeldImage
from vitscope.images.search import FoundImages, find_files, find_images
from vitscope.images.urls import show_name

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
_GIVE_LABELS = "give labels=[...], one for each image, or a folder with one sub-folder a class"
_HIDDEN = -1
"""Label of images whose label a dataset withholds."""


@dataclass(frozen=True)
class LabelledImages:
    """Images by class."""

    classes: Mapping[str, tuple[ImageAddress, ...]]  # sorted, at least two images each
    too_small: tuple[str, ...]
    num_unlabelled: int  # images left out, such as those outside the class folders
    notes: tuple[str, ...] = ()  # remarks about the search, one sentence each
    preprocessed: bool = False  # whether they are preprocessed tensors
    failures: tuple[tuple[str, str], ...] = ()

    def list_images(self) -> FoundImages:
        """List all images, class by class."""
        found = FoundImages(chain.from_iterable(self.classes.values()))
        found.notes = self.notes
        return found

    def limited(self, limit: int | None, seed: int) -> "LabelledImages":
        """Draw some of the classes at random."""
        if limit is None or limit >= len(self.classes):
            return self
        names = list(self.classes)
        drawn = np.random.default_rng(seed).choice(len(names), limit, replace=False)
        return replace(self, classes={names[i]: self.classes[names[i]] for i in sorted(drawn)})


def find_classes(
    images: Images, labels: Iterable[object] | None = None, *, preprocessed: bool = False
) -> LabelledImages:
    """Group images by class; the classes of a folder are its subfolders."""
    folder = Path(images) if labels is None and isinstance(images, (str, Path)) else None
    found = find_images(images if folder is None else folder, preprocessed=preprocessed)
    named = found.named or found
    told: Sequence[object]
    source, by_class = "the labels", dict[str, list[ImageAddress]]()
    if labels is not None:
        check_kind("labels", labels, Iterable, "a list of text or whole numbers, one an image")
        told = list(labels)
    elif folder is not None:
        source = show_name(str(folder))
        told, by_class = _read_folders(folder, source, found)
    else:
        told = _read_labels(images, found)
    if len(told) != len(named):
        raise UsageError(
            f"{len(told)} labels for {len(named)} images: expected one for each, in their order"
        )
    label_of: dict[ImageAddress, str] = {}
    num_unlabelled = 0
    failures: list[tuple[str, str]] = []
    for label, image in zip(told, named, strict=True):
        if isinstance(label, ImageReadError):
            failures.append((printable_address(image), str(label)))
        elif label is None and labels is None:
            num_unlabelled += 1
        else:
            _set_label(label_of, image, _name_label(_plain(label)))
    if failures and not label_of:
        name, reason = failures[0]
        raise ImageReadError(
            f"none of the {len(named)} images has a label; the first that could not be "
            f"read, {name}: {reason}"
        )
    for image, name in label_of.items():
        by_class.setdefault(name, []).append(image)
    chosen = {name: tuple(by_class[name]) for name in sorted(by_class) if len(by_class[name]) > 1}
    if len(chosen) < 2:
        raise UsageError(
            f"of the classes in {source}, {len(by_class)} in all, {len(chosen)} have two images or "
            "more: give at least two such classes"
        )
    too_small = tuple(sorted(by_class.keys() - chosen.keys()))
    return LabelledImages(
        chosen, too_small, num_unlabelled, found.notes, preprocessed, tuple(failures)
    )


def _set_label(label_of: dict[ImageAddress, str], image: ImageAddress, label: str) -> None:
    # An image may be named twice.
    first = label_of.setdefault(image, label)
    if first != label:
        raise UsageError(
            f"{printable_address(image)} was given twice, with the labels {printable(first)} and "
            f"{printable(label)}: expected one label for each image"
        )


def _read_labels(source: object, found: FoundImages) -> list[Any]:
    # None for an image without one, an error if the dataset fails to return it.
    held = [image for image in found if isinstance(image, HeldImage) and image.from_dataset]
    if not held or len(held) < len(found):
        raise UsageError(f"the images have no labels: {_GIVE_LABELS}")
    dataset: Any = source.dataset if isinstance(source, DataLoader) else source
    columns = getattr(dataset, "column_names", None) or ()  # of a Hugging Face dataset
    column = next((one for one in LABELS if one in columns), None)
    if column is None:
        labels = [_pick_label(image) for image in held]
        names = getattr(dataset, "classes", None)  # of a torchvision dataset
    else:
        values = dataset[column]
        labels = [values[image.index] for image in held]
        names = getattr(dataset.features[column], "names", None)
    plain = [*map(_plain, labels)]
    numbers = all(label is None or isinstance(label, (int, ImageReadError)) for label in plain)
    if not (names and numbers):
        return plain
    return [_name_held(label, names, image) for label, image in zip(plain, held, strict=True)]


def _name_held(label: Any, names: Sequence[Any], image: HeldImage) -> Any:
    if label is None or isinstance(label, ImageReadError):
        return label
    if label == _HIDDEN:
        return None
    if not 0 <= label < len(names):
        raise UsageError(
            f"{image.name} has the label {label}, and its dataset names {len(names)} classes: "
            f"expected 0 to {len(names) - 1}, or {_HIDDEN} of an image without a label; give "
            "labels=[...], one for each image"
        )
    return names[label]


def _pick_label(image: HeldImage) -> Any:
    try:
        found = image.take_label()
    except ImageReadError as error:
        return error
    if found is None:
        raise UsageError(f"{image.name} has no label: {_GIVE_LABELS}")
    return found


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, (Tensor, np.generic)) and not label.ndim else label


def _name_label(label: object) -> str:
    if isinstance(label, (str, int)) or (isinstance(label, float) and label.is_integer()):
        return str(label)
    raise UsageError(f"a label of type {type(label).__name__}: expected text or whole numbers")


def _read_folders(
    root: Path, shown: str, found: FoundImages
) -> tuple[list[str | None], dict[str, list[ImageAddress]]]:
    # The subfolder of each image, None if it lies beside them, and all subfolders, still empty.
    if not root.is_dir():
        raise UsageError(f"{shown} is no folder: give a folder with one subfolder per class")
    below = [path.relative_to(root).parts for path in find_files(found)]
    # Folders with nothing but vitscope's own files are no classes.
    own = {place.relative_to(root).parts[0] for place in found.skipped if place != root}
    own -= {parts[0] for parts in below}
    classes: dict[str, list[ImageAddress]] = {
        entry.name: []
        for entry in root.iterdir()
        if entry.is_dir() and not is_hidden(entry.name) and entry.name not in own
    }
    if not classes:
        raise UsageError(
            f"{shown} has no subfolders, so its {len(found)} images have no labels: put the "
            "images of each class into a folder of its own"
        )
    # A class may have subfolders. But if all classes do, or one is named like a split, these
    # folders are the splits of a data set.
    filled = {parts[0] for parts in below if len(parts) > 1}
    nested = sorted(filled - {parts[0] for parts in below if len(parts) == 2})
    if nested and (len(nested) == len(filled) or not _SPLITS.isdisjoint(map(str.lower, nested))):
        raise UsageError(
            f"{name_some([*map(printable, nested)], 5)} in {shown} contain folders and no images, "
            "as train and val do: give one of them, or put each class's images directly into its "
            "folder"
        )
    return [parts[0] if len(parts) > 1 else None for parts in below], classes
