"""How a model wants its pictures: the values alone; `vitscope.pictures.images` carries them out."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from vitscope.errors import UsageError

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, centre crop, scale to [0, 1], normalise.

    Attributes:
        size: Input (height, width) in pixels that the model is given.
        resize: Size before the crop: "cover" scales the picture, keeping its shape, until it
            covers `size / crop_fraction`; "stretch" scales both sides to it, changing the shape.
        crop_fraction: Part of the resized picture's covered side that the crop keeps (224 / 256).
        interpolation: Resampling filter; antialiased when the picture shrinks.
        mean: Per-channel mean (red, green, blue) in [0, 1].
        std: Per-channel standard deviation.
        background: Colour, 0 to 255, that transparent pictures are laid on.
        draft: Whether a JPEG file that is at least twice as large as the resized picture is decoded
            at a half, a quarter or an eighth of its size, which is faster and changes pixels.
    """

    size: tuple[int, int]
    resize: Literal["cover", "stretch"] = "cover"
    crop_fraction: float = 1.0
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    background: int = 255
    draft: bool = False

    def __post_init__(self) -> None:
        """Refuse what pixels cannot be divided by.

        Raises:
            UsageError: If a standard deviation is not above 0.
        """
        if not all(0 < value < math.inf for value in self.std):
            raise UsageError(f"std {self.std}: expected numbers above 0, such as 0.5")

    def with_size(self, size: tuple[int, int]) -> "Preprocessing":
        """The same preprocessing for another input size.

        Args:
            size: Input (height, width) in pixels.

        Returns:
            A copy with `size` replaced; the crop keeps the same fraction.
        """
        return replace(self, size=size)
