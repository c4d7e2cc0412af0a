"""The figures of explained images, named by the images, in one folder."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from vitscope.figures.draw import Format, save_figure
from vitscope.figures.rendering.maps import plot_explanations
from vitscope.figures.saved import slug
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.own_files import check_figures_target, is_figures, write_index
from vitscope.files.storage import never, staged_folder
from vitscope.results.explanation import Explanation
from vitscope.results.schema import SCHEMA_VERSION


def draw_explanations(
    explanations: Sequence[Explanation],
    out: str | Path,
    *,
    formats: Sequence[Format] = ("png",),
    heads: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Draw every explained image, one row for each model that explains it."""
    target = Path(out)
    check_figures_target(target, overwrite=overwrite)
    files: list[Path] = []
    with staged_folder(target, replaces=is_figures if overwrite else never) as staging:
        entries = []
        for name, image_id in _name_images(explanations).items():
            shown = [one for one in explanations if image_id in one.image_ids]
            figure = plot_explanations(shown, image_id, heads=heads)
            names = [f"{name}.{kind}" for kind in dict.fromkeys(formats)]
            with plain_disk_errors(target):
                for file in names:
                    save_figure(figure, staging / file)
            entries.append({"name": name, "files": names, "image_id": image_id})
            files += [target / file for file in names]
        write_index(staging, {"schema_version": SCHEMA_VERSION, "figures": entries})
    return files


def _name_images(explanations: Sequence[Explanation]) -> dict[str, str]:
    """Name each image so that any file system takes it."""
    names: dict[str, str] = {}
    for image in chain.from_iterable(one.summary.images for one in explanations):
        if image.image_id in names.values():
            continue
        stem = Path(image.path).stem
        readable = any(letter.isascii() and letter.isalnum() for letter in stem)
        stem = name = slug(stem) if readable else "image"
        number = 2
        while name.casefold() in {other.casefold() for other in names}:
            name, number = f"{stem}-{number}", number + 1
        names[name] = image.image_id
    return names
