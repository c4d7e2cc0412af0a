"""Images with labels: a folder that holds a folder a class."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitscope.errors import UsageError
from vitscope.files.printable import printable
from vitscope.images.names import is_hidden
from vitscope.images.sources import find_files, find_images

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


@dataclass(frozen=True)
class ClassFolders:
    """The classes of a folder.

    Attributes:
        classes: Images of each class that has at least two, by the name of its folder, sorted.
        too_small: Names of the other folders.
        num_unlabelled: Images that lie in no class's folder and are left out.
        notes: What has to be said of the search for them, a sentence each.
    """

    classes: Mapping[str, tuple[Path, ...]]
    too_small: tuple[str, ...]
    num_unlabelled: int
    notes: tuple[str, ...] = ()

    def limited(self, limit: int | None, seed: int) -> "ClassFolders":
        """Draw some of the classes at random."""
        if limit is None or limit >= len(self.classes):
            return self
        names = list(self.classes)
        drawn = np.random.default_rng(seed).choice(len(names), limit, replace=False)
        return replace(self, classes={names[i]: self.classes[names[i]] for i in sorted(drawn)})


def find_classes(folder: str | Path) -> ClassFolders:
    """List the images of every class in a folder."""
    root = Path(folder)
    name = repr(os.fspath(folder))
    if root.exists() and not root.is_dir():
        raise UsageError(f"{name} is a file: give a folder with one subfolder per class")
    search = find_images(root)
    found = find_files(search)
    # Where nothing lies but what vitscope wrote is no class.
    own = {place.relative_to(root).parts[0] for place in search.skipped if place != root}
    own -= {path.relative_to(root).parts[0] for path in found}
    by_class: dict[str, list[Path]] = {
        entry.name: []
        for entry in sorted(root.iterdir())
        if entry.is_dir() and not is_hidden(entry.name) and entry.name not in own
    }
    if not by_class:
        raise UsageError(
            f"{name} has no subfolders, so its {len(found)} images have no labels: put the "
            "images of each class into a folder of its own"
        )
    num_unlabelled = 0
    for path in found:
        label, *rest = path.relative_to(root).parts
        if rest:
            by_class[label].append(path)
        else:
            num_unlabelled += 1
    _refuse_splits(name, {label: paths for label, paths in by_class.items() if paths}, root)
    classes = {label: tuple(paths) for label, paths in by_class.items() if len(paths) > 1}
    if len(classes) < 2:
        raise UsageError(
            f"{name} holds {len(by_class)} subfolders, {len(classes)} of them with at least two "
            "images: give at least two such classes"
        )
    too_small = tuple(label for label in by_class if label not in classes)
    return ClassFolders(classes, too_small, num_unlabelled, search.notes)


def _refuse_splits(name: str, by_class: Mapping[str, list[Path]], root: Path) -> None:
    # A class may lie in folders of its own; where all do, or one is called as a split is, they are
    # taken for splits of one data set.
    nested = [
        label
        for label, paths in by_class.items()
        if not any(path.parent == root / label for path in paths)
    ]
    if nested and (len(nested) == len(by_class) or not _SPLITS.isdisjoint(map(str.lower, nested))):
        listed = ", ".join(map(printable, nested[:5])) + (", …" if len(nested) > 5 else "")
        raise UsageError(
            f"{listed} in {name} contain folders and no images, as train "
            "and val do: give one of them, or put each class's images directly into its folder"
        )
