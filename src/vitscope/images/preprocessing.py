"""Preprocessing of a model's images, as values; `vitscope.images.decoding` applies it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import index
from textwrap import shorten
from typing import Any, Literal, get_args

from vitscope.errors import UsageError

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Resize = Literal["cover", "stretch"]
Pipeline = Literal["torchvision", "transformers", "transformers-float", "transformers-pil", "given"]

_EXPECTED_MEAN = "three numbers from 0 to 1, of levels that were divided by 255"
_EXPECTED_STD = "three numbers above 0 and at most 1, of levels that were divided by 255"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, centre crop, scale to [0, 1], normalise.

    Attributes:
        size: Input (height, width) of the model in pixels.
        resize: How the image is resized to `size / crop_fraction`: "cover" keeps its shape and
            covers that size; "stretch" scales each side to it.
        crop_fraction: Fraction of that size that the centre crop keeps (224 / 256).
        interpolation: Resampling filter; antialiased when the image shrinks.
        mean: Per-channel mean (red, green, blue) in [0, 1].
        std: Per-channel standard deviation, above 0 and at most 1.
        background: Background of transparent images, 0 to 255.
        draft: Whether a JPEG file at least twice as large as the resized image is decoded at a
            half, a quarter or an eighth of its size, which is faster but changes pixels.
        pipeline: Library whose arithmetic is reproduced. "torchvision" resizes with Pillow and
            rounds the offset of the crop, as do torchvision's transforms, timm and open_clip. The
            image processors of transformers round the offset down: "transformers" resizes 8-bit
            tensors, "transformers-float" scales to [0, 1] before resizing (DINOv3), and
            "transformers-pil" resizes with Pillow. "given" is for images preprocessed by the
            caller: nothing is done to them, and `mean` and `std` are used only to show them.
    """

    size: tuple[int, int]
    resize: Resize = "cover"
    crop_fraction: float = 1.0
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    background: int = 255
    draft: bool = False
    pipeline: Pipeline = "torchvision"

    def __post_init__(self) -> None:
        choices = {"resize": Resize, "interpolation": Interpolation, "pipeline": Pipeline}
        for name, known in choices.items():
            *others, last = get_args(known)
            given = getattr(self, name)
            self._check(name, given in (*others, last), f"{', '.join(others)} or {last}")
        self._take_numbers("size", index, 2, "two sides in pixels, such as (224, 224)")
        self._take_numbers("mean", _to_float, 3, _EXPECTED_MEAN)
        self._take_numbers("std", _to_float, 3, _EXPECTED_STD)
        self._check("size", min(self.size) >= 1, "sides of at least 1 pixel")
        self._check("mean", all(0 <= level <= 1 for level in self.mean), _EXPECTED_MEAN)
        self._check("std", all(0 < level <= 1 for level in self.std), _EXPECTED_STD)
        fraction, level = self.crop_fraction, self.background
        self._check(
            "crop_fraction",
            isinstance(fraction, (int, float)) and 0 < fraction <= 1,
            "the part that the crop keeps, above 0 and at most 1",
        )
        self._check(
            "background", isinstance(level, int) and 0 <= level <= 255, "a grey level, 0 to 255"
        )
        self._check("draft", isinstance(self.draft, bool), "True or False")

    def with_size(self, size: tuple[int, int]) -> "Preprocessing":
        """The same preprocessing for another input size.

        Args:
            size: Input (height, width) in pixels.

        Returns:
            A copy with `size` replaced; the crop keeps the same fraction.
        """
        return replace(self, size=size)

    def _check(self, name: str, condition: bool, expected: str) -> None:
        if not condition:
            given = shorten(repr(getattr(self, name)), 80, placeholder=" …")
            raise UsageError(f"preprocessing {name}={given}: expected {expected}")

    # Lists and numpy numbers are converted.
    def _take_numbers(
        self, name: str, convert: Callable[[Any], float], count: int, expected: str
    ) -> None:
        try:
            numbers = tuple(convert(each) for each in getattr(self, name))
        except (TypeError, ValueError):
            numbers = ()
        self._check(name, len(numbers) == count, expected)
        object.__setattr__(self, name, numbers)


def _to_float(value: Any) -> float:
    if isinstance(value, (str, bytes)):
        raise TypeError(value)
    return float(value)
