"""Images in memory: PIL images, arrays, tensors, and datasets of them, asked for one at a time.

The range of values is never guessed: floating-point values must be declared preprocessed.
Images are read as bytes, as from a file, so that copies are recognised.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from vitscope.errors import ImageReadError, UsageError
from vitscope.images.colours import narrow_grey, widen_png_key
from vitscope.images.decoding import image_id, pack_pixels, turn_upright
from vitscope.images.folders import image_extensions
from vitscope.images.loaders import LoadedItems, list_indices
from vitscope.images.parquet_rows import USUAL_NAMES
from vitscope.images.preprocessing import Preprocessing
from vitscope.images.stores import read_file

IMAGE_KINDS = (
    "a path, a URL, a PIL image, an array of uint8 (height, width, 3), a tensor of uint8 (3, "
    "height, width), a dataset of these, or a list of these"
)
NOT_PREPROCESSED = (
    "with preprocessed=True: expected floating-point tensors (3, height, width) that are already "
    "preprocessed; leave preprocessed out for images and files"
)
_COLUMNS = (*USUAL_NAMES, "pixel_values")
"""Usual names of image columns in datasets, in order of preference."""

_NUM_STEADY = 8  # more than one, as a random flip may leave one as it is

LABELS = ("label", "labels")
"""Usual names of label columns."""

_NUM_LOOKED_AT = 8
_NEAR = 0.02  # to 0 and to 1, which photographs reach
_LEAST_LEVEL = 10  # which no normalised image reaches

_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}
_TIFF_MODES = {"CMYK"}
"""Pillow modes that are written as they are; others are converted as in decoding."""

_STRAIGHT = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}  # modes with transparency that no file has


class Items(Protocol):
    """Anything with numbered items: a list, an array, a dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, eq=False, slots=True)
class HeldImage:
    """An image in memory."""

    items: Items  # the collection it belongs to
    index: int  # its index there
    name: str
    preprocessed: bool  # whether its values are already preprocessed
    from_dataset: bool  # whether it must be requested from a dataset

    def read(self) -> bytes:
        """Read its bytes."""
        return pack_pixels(self.take_pixels()) if self.preprocessed else _encode(self.take())

    def take(self) -> Any:
        """Get the image object."""
        with _plain_errors("its dataset raised"):
            return _pick_image(self.items[self.index], preprocessed=self.preprocessed)

    def take_pixels(self) -> Tensor:
        """Get its preprocessed pixels."""
        pixels = _check_pixels(self.take()).to("cpu", torch.float32)
        if not pixels.isfinite().all():
            raise ImageReadError("its preprocessed pixels hold NaN or infinity")
        return pixels

    def take_label(self) -> Any:
        """Get its label; None if it has none."""
        with _plain_errors("its dataset raised"):
            item = self.items[self.index]
            if isinstance(item, Mapping):
                return next((item[one] for one in LABELS if one in item), None)
            return item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None

    @property
    def version(self) -> str:
        """A value that changes with the image; empty for a dataset, which is not asked for it."""
        with suppress(ImageReadError):
            return "" if self.from_dataset else image_id(self.read())
        return ""


@contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (ImageReadError, MemoryError):
        raise
    except Exception as error:  # the caller's code and files may raise anything
        text = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split())[:200])))
        raise ImageReadError(f"{what} {text}") from error


def hold_images(source: object, name: str, *, preprocessed: bool) -> list[HeldImage] | None:
    """List the images of an object in memory; None if it is something else, such as a path."""
    _refuse_unnumbered(source)
    items: Items
    is_dataset, indices = True, None
    if isinstance(source, Image.Image):
        is_dataset, items = False, (_keep_item(source),)
    elif isinstance(source, Tensor) or _is_numeric(source):
        is_dataset, items = False, source if source.ndim == 4 else (source,)
    elif _is_list_of_items(source):
        items = [_keep_item(item) for item in source]
    elif isinstance(source, DataLoader):
        items, indices = LoadedItems(source), list_indices(source)
        name = type(source.dataset).__name__
    elif _is_dataset(source):
        items, name = source, type(source).__name__
    else:
        return None
    places = range(len(items)) if indices is None else indices
    names = [name] if len(places) == 1 and not is_dataset else [f"{name}[{i}]" for i in places]
    held = [
        HeldImage(items, place, one, preprocessed, is_dataset)
        for place, one in zip(places, names, strict=True)
    ]
    for image in held[:1] if is_dataset else held:
        _check(image)
    if is_dataset:
        _check_steady(held[:_NUM_STEADY])
    return held


def _refuse_unnumbered(source: object) -> None:
    looked_at = source.dataset if isinstance(source, DataLoader) else source
    kinds = {kind.__name__ for kind in type(looked_at).__mro__}
    if "_BaseDataLoaderIter" in kinds:
        raise UsageError(
            "images were given as an iterator of a DataLoader: pass the DataLoader itself"
        )
    if "IterableDataset" in kinds:
        raise UsageError(
            f"{type(source).__name__} gives its images once and in its own order: collect the ones "
            "to audit in a list, as in list(itertools.islice(dataset, 1000)), or give a dataset "
            "with numbered items"
        )
    if isinstance(source, Mapping):
        raise UsageError(
            f"images were given as {type(source).__name__}: expected one of its values "
            f"({', '.join(map(str, source))})"
        )


def _is_list_of_items(source: object) -> TypeGuard[Sequence[Any]]:
    # For example list(itertools.islice(dataset, 1000)): (image, label) tuples, or columns by name.
    if not (isinstance(source, (list, tuple)) and source):
        return False
    first = source[0]
    if not isinstance(first, tuple):
        return isinstance(first, Mapping)
    # A tuple of several images is not an image with its label.
    paths = [one for one in first if isinstance(one, (str, PathLike))]
    of_images = [one for one in paths if Path(one).suffix.lower() in image_extensions()]
    return bool(first) and len(of_images) < 2


def _keep_item(item: Any) -> Any:
    # Pillow images as they look: information that only their open files have is lost when they are
    # sent to another process, and reading processes would share the files.
    if isinstance(item, tuple):
        return tuple(map(_keep_item, item))
    if isinstance(item, Mapping):
        return {name: _keep_item(value) for name, value in item.items()}
    if isinstance(item, Image.Image):
        with suppress(Exception):  # reading it will raise the error
            return _show_plainly(item)
    return item


def _is_dataset(source: Any) -> TypeGuard[Items]:
    if isinstance(source, (str, bytes, list, tuple, np.ndarray)):
        return False
    if not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        return False
    try:
        first = source[0]
    except Exception:  # noqa: BLE001 - reading it will raise the error
        return True
    return not isinstance(first, (str, PathLike))  # a column of paths is a list of paths


def _is_numeric(source: object) -> TypeGuard[np.ndarray]:
    return isinstance(source, np.ndarray) and source.dtype.kind not in "OSU"


def _pick_image(item: Any, *, preprocessed: bool) -> Any:
    # The item itself, the first element of a tuple, or a column.
    if isinstance(item, Mapping):
        columns = _COLUMNS[::-1] if preprocessed else _COLUMNS
        column = next((one for one in columns if item.get(one) is not None), None)
        if column is None and "bytes" in item and item.get("path") is not None:
            column = "path"  # of an image that Hugging Face's datasets has not decoded
        if column is None:
            raise ImageReadError(
                f"an item with {', '.join(map(str, item)) or 'nothing'}: expected an image under "
                f"one of {', '.join(_COLUMNS)}"
            )
        return _pick_image(item[column], preprocessed=preprocessed)
    if isinstance(item, (tuple, list)) and item:
        return _pick_image(item[0], preprocessed=preprocessed)
    return item


def _check(image: HeldImage) -> None:
    # Report an unusable image now rather than after the model is loaded.
    try:
        check = _check_pixels if image.preprocessed else _check_image
        check(image.take())
    except ImageReadError as error:
        # What a dataset's code raised is counted with the unreadable ones.
        if error.__cause__ is None:
            raise UsageError(": ".join((image.name, str(error)))) from None


def _check_steady(images: Sequence[HeldImage]) -> None:
    for image in images:
        with suppress(ImageReadError):  # it is counted with the unreadable ones
            if image.read() != image.read():
                raise UsageError(
                    f"{image.name} differs between two readings: expected a dataset without "
                    "random augmentation, or list(dataset), which keeps what it gave once"
                )


def _check_image(image: object) -> None:
    if isinstance(image, Image.Image) and image.mode in ("I", "F") and image.format is None:
        raise ImageReadError(
            f"a PIL image of mode {image.mode} that was made in memory has no defined white: give "
            "it in mode L, its file, or the image that Image.open gave"
        )
    if isinstance(image, (bytes, str, PathLike, Image.Image)):
        return
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ImageReadError(
            f"an image was given as {type(image).__name__}: expected {IMAGE_KINDS}"
        )
    _check_device(image)
    channels = image.shape[0 if isinstance(image, Tensor) else -1] if image.ndim == 3 else None
    levels = image.dtype in (torch.uint8, np.dtype(np.uint8))
    if channels != 3 or not levels or not all(image.shape):
        raise ImageReadError(
            f"{_describe(image)}: expected levels from 0 to 255, as an array of uint8 (height, "
            "width, 3) or a tensor of uint8 (3, height, width); pixels that are already "
            "preprocessed need preprocessed=True"
        )


def _check_pixels(pixels: object) -> Tensor:
    if _is_numeric(pixels):
        pixels = torch.from_numpy(pixels)
    if not isinstance(pixels, Tensor):
        raise ImageReadError(f"{type(pixels).__name__} {NOT_PREPROCESSED}")
    _check_device(pixels)
    of_image = pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.numel() > 0
    if not (of_image and pixels.is_floating_point()):
        raise ImageReadError(f"{_describe(pixels)} {NOT_PREPROCESSED}")
    return pixels.detach()


def _check_device(values: np.ndarray | Tensor) -> None:
    if isinstance(values, Tensor) and values.is_meta:
        raise ImageReadError(
            f"{_describe(values)} on the meta device, which holds no numbers: expected a tensor on "
            "a device that does, such as the CPU"
        )


def _describe(values: np.ndarray | Tensor) -> str:
    kind = "a tensor" if isinstance(values, Tensor) else "an array"
    return f"{kind} of {str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}"


def _encode(image: Any) -> bytes:
    _check_image(image)
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, PathLike)):
        return read_file(Path(image))
    if isinstance(image, Image.Image):
        with _plain_errors("damaged, cut short, or closed before its pixels were loaded:"):
            return _encode_pil(image)
    levels = image if isinstance(image, np.ndarray) else image.permute(1, 2, 0).cpu().numpy()
    height, width, _ = levels.shape
    return b"P6 %d %d 255\n" % (width, height) + np.ascontiguousarray(levels).tobytes()


def _encode_pil(image: Image.Image) -> bytes:
    shown = _show_plainly(image)
    upright = turn_upright(shown, shown)
    if upright.mode not in _PNG_MODES | _TIFF_MODES:
        upright = upright.convert(_STRAIGHT.get(upright.mode, "RGB"))
    if upright.mode == "RGB" and not upright.has_transparency_data:
        return _encode(np.asarray(upright))
    file = BytesIO()
    if upright.mode in _TIFF_MODES:
        upright.save(file, "TIFF")
    else:
        upright.save(file, "PNG", compress_level=0)
    return file.getvalue()


def _show_plainly(image: Image.Image) -> Image.Image:
    # Loaded, with what only its open file has applied to the pixels.
    _check_image(image)
    tiles = getattr(image, "tile", ())  # empty once it is loaded
    if image.format == "PNG" and tiles:
        raw_mode = str(tiles[0][3])  # such as L;4 or RGB;16B
        widen_png_key(image, depth=int(raw_mode.partition(";")[2].removesuffix("B") or 8))
    if image.format == "TIFF" and tiles:
        # Pillow memory-maps a named file, and then reads a rotated one with a wrong width.
        image.filename = ""  # type: ignore[attr-defined]
    image.load()
    moving = getattr(image, "is_animated", False)
    if moving and image.info.get("default_image") and not image.tell():
        image = _copy_first_frame(image)
    narrowed = narrow_grey(image)
    return image if narrowed is image else turn_upright(narrowed, image)


def _copy_first_frame(image: Image.Image) -> Image.Image:
    # The default image is for viewers without animation. The caller's image stays at it.
    image.seek(1)
    frame = image.copy()
    last = image.n_frames - 1  # type: ignore[attr-defined]
    image.seek(last)  # seeking back from any other frame, Pillow loses its place in the file
    image.seek(0)
    image.load()
    return frame


def settle_given(found: Sequence[object], preprocessing: Preprocessing) -> Preprocessing:
    """The preprocessing of pixels as they are, of the size of the first that can be read."""
    step = max(1, len(found) // _NUM_LOOKED_AT)
    first = next(_take_readable(found), None)
    looked_at = [*islice(_take_readable(found[::step]), _NUM_LOOKED_AT)]
    if looked_at:
        _check_normalised(looked_at, preprocessing)
    height, width = preprocessing.size if first is None else first.shape[1:]
    return replace(preprocessing, size=(height, width), pipeline="given")


def _take_readable(found: Iterable[object]) -> Iterator[Tensor]:
    for address in found:
        if isinstance(address, HeldImage):
            with suppress(ImageReadError):
                yield address.take_pixels()


def _check_normalised(images: Sequence[Tensor], preprocessing: Preprocessing) -> None:
    # Refuse pixels that were obviously never normalised, if the model's own are. Levels go up to
    # 255, scaled ones from 0 to 1 and no further. That normalised images of any contrast end at
    # both is next to impossible.
    ranges = [(float(pixels.min()), float(pixels.max())) for pixels in images]
    lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    least, most = 0.0 - float((mean / std).max()), float(((1 - mean) / std).max())
    varied = [one for one in ranges if one[1] - one[0] > 0.5]
    are_levels = lowest >= 0 and highest > max(2 * most, _LEAST_LEVEL)
    are_scaled = 0 <= lowest < _NEAR and 1 - _NEAR < highest <= 1 and len(varied) > 1
    if not (are_levels or (are_scaled and least < 0)):
        return
    own = "1" if are_scaled else "1/255" if highest <= 255 else "1/65535"
    steps = f"subtract its mean {preprocessing.mean} and divide by its std {preprocessing.std}"
    raise UsageError(
        f"the pixels are from {lowest:.3g} to {highest:.3g}, as before normalisation, with "
        f"preprocessed=True: expected what the model takes, from {least:.3g} to {most:.3g}"
        f"{f'; {steps}' if least < 0 else ''}. If it takes them so, wrap it with "
        f"preprocessing=Preprocessing(...) of mean 0 and std {own}"
    )
