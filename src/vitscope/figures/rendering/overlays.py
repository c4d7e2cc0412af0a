"""A map in colours, patch by patch, alone and over its image."""

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import Normalize

from vitscope.results.image_maps import ImageMap

SEQUENTIAL, DIVERGING = "cividis", "PuOr"
_OPACITY = 0.7
"""Of a map over its image, as the report begins."""

Pixels = UInt8[np.ndarray, "height width 3"]


def choose_limits(values: Float[np.ndarray, "..."], *, signed: bool) -> tuple[float, float]:
    """The ends of a map's own scale: zero is at its low end, or in the middle if it is signed."""
    largest = float(np.abs(values).max()) or 1.0
    return (-largest if signed else min(0.0, float(values.min()))), largest


def paint(values: Float[np.ndarray, "row column"], *, signed: bool) -> Pixels:
    """A map on its own scale, one pixel for each patch."""
    scaled = Normalize(*choose_limits(values, signed=signed))(values)
    colours: Pixels = mpl.colormaps[DIVERGING if signed else SEQUENTIAL](scaled, bytes=True)
    return colours[..., :3]


def paint_map(one: ImageMap, size: tuple[int, int]) -> Pixels:
    """A map with patches as large as in an image of (height, width) pixels."""
    painted = paint(one.values, signed=one.about.signed)
    for axis, (length, count) in enumerate(zip(size, one.values.shape, strict=True)):
        painted = painted.repeat(length // count, axis=axis)
    return painted


def lay_over(image: Pixels, painted: Pixels) -> Pixels:
    """A painted map over its image."""
    mixed = (1 - _OPACITY) * image + _OPACITY * painted
    return np.rint(mixed).astype(np.uint8)
