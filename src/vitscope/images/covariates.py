"""Numbers that describe an image without labels.

They are computed on the resized and cropped image, before normalisation. Those about lightness use
the grey image: the luma of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B, in whole levels from 0
(black) to 255 (white).
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float64, Int16, Integer, UInt8
from PIL import Image
from scipy import fft, ndimage

from vitscope.files.printable import name_some

SEGMENT_COVARIATES = ("num_segments", "largest_segment", "mean_segment")
"""Additional covariates of images with a mask."""

EDGE_THRESHOLD = 100
"""Sobel gradient above which a pixel is an edge: a straight step of 25 grey levels reaches it."""

NARROW = 1 / 8
"""Images that use less of the range from black to white are counted and reported. Typical cases are
12-bit values in a 16-bit file (1/16) and label maps, which are read as stored."""

SALIENCY_SIDE = 64
"""Side in pixels of the square that an image is reduced to before its spectral residual."""

SALIENCY_BLUR_PX = 2.5
"""Standard deviation in pixels of the Gaussian that smooths the saliency map, at that size."""

Grey = UInt8[np.ndarray, "height width"]


def compute_covariates(
    image: Image.Image | UInt8[np.ndarray, "height width 3"],
) -> dict[str, float]:
    """Describe an image.

    - `entropy`: −Σ p log₂ p over the 256 grey levels, in bits; 0 for one level, 8 at most.
    - `edge_density`: share of the pixels with eight neighbours at which the length of the Sobel
      gradient (weights 1 2 1, not divided) exceeds `EDGE_THRESHOLD`.
    - `colourfulness`: √(σ_rg² + σ_yb²) + 0.3 √(μ_rg² + μ_yb²) with rg = R − G, yb = (R + G) / 2 − B
      (Hasler & Süsstrunk 2003); 0 for a grey image, about 80 for a very colourful one.
    - `spatial_frequency`: mean distance from the origin of the power spectrum, in cycles per
      pixel: Σ P |f| / Σ P, P the power of the grey image less its mean under a Hann window.
    - `saliency_concentration`: Gini coefficient of the saliency map by spectral residual (Hou &
        Zhang 2007); 0 if the whole image is equally salient, near 1 if a single spot is.

    Source:
        D. Hasler and S. Süsstrunk, *Measuring colourfulness in natural images*, SPIE 5007 (2003),
        "M3"; X. Hou and L. Zhang, *Saliency detection: a spectral residual approach*, CVPR 2007,
        with the smoothing of the authors' program.
    """
    pil_image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    grey = np.asarray(pil_image.convert("L"))
    varies = bool(grey.min() != grey.max())
    return {
        "entropy": _compute_entropy(grey),
        "edge_density": _compute_edge_density(grey),
        "colourfulness": _compute_colourfulness(np.asarray(pil_image)),
        "spatial_frequency": _compute_spatial_frequency(grey) if varies else np.nan,
        "saliency_concentration": _compute_gini(_map_saliency(grey)) if varies else np.nan,
    }


def compute_segment_covariates(
    segments: Integer[np.ndarray, "height width"],
) -> dict[str, float]:
    """Number of segments, and area of the largest and on average, as parts of the image."""
    areas = np.unique(segments[segments != 0], return_counts=True)[1] / segments.size
    return {
        "num_segments": float(areas.size),
        "largest_segment": float(areas.max(initial=0)),
        "mean_segment": float(areas.mean()) if areas.size else np.nan,
    }


def measure_range(image: Image.Image | np.ndarray) -> float:
    """Fraction of the range from black to white between the darkest and the brightest sample."""
    levels = np.asarray(image)
    return (int(levels.max()) - int(levels.min())) / 255


def note_narrow(narrow: Sequence[str], num_images: int) -> list[str]:
    """Make a note about images, given by name, that use little of the range."""
    if not narrow:
        return []
    named = name_some([name.rpartition("/")[2] for name in narrow])
    return [
        f"{len(narrow)} of {num_images} images use less than 1/8 of the range from black to white, "
        "as 12-bit numbers in 16-bit files and label maps do: check that they look as they should "
        f"({named})"
    ]


def _compute_entropy(grey: Grey) -> float:
    counts = np.bincount(grey.ravel())
    shares = counts[counts > 0] / grey.size
    return float(np.sum(shares * -np.log2(shares)))


def _compute_edge_density(grey: Grey) -> float:
    if min(grey.shape) < 3:
        return np.nan
    levels = grey.astype(np.int16)  # Wide enough for a gradient, which is at most 1020.
    down = levels[:-2] + 2 * levels[1:-1] + levels[2:]
    across = levels[:, :-2] + 2 * levels[:, 1:-1] + levels[:, 2:]
    x, y = down[:, 2:] - down[:, :-2], across[2:] - across[:-2]
    squares = np.square(x, dtype=np.int32) + np.square(y, dtype=np.int32)
    return float(np.mean(squares > EDGE_THRESHOLD**2))


def _compute_colourfulness(levels: UInt8[np.ndarray, "height width 3"]) -> float:
    red, green, blue = (levels[..., channel].astype(np.int16) for channel in range(3))
    # Twice yellow minus blue, so that all values are integers and their sums exact.
    rg_mean, rg_variance = _compute_moments(red - green)
    yb_mean, yb_variance = _compute_moments(red + green - 2 * blue)
    spread = math.sqrt(rg_variance + yb_variance / 4)
    return spread + 0.3 * math.hypot(rg_mean, yb_mean / 2)


def _compute_moments(values: Int16[np.ndarray, "height width"]) -> tuple[float, float]:
    n, total = values.size, int(values.sum(dtype=np.int64))
    squares = int(np.square(values, dtype=np.int32).sum(dtype=np.int64))
    return total / n, (n * squares - total**2) / n**2


def _compute_spatial_frequency(grey: Grey) -> float:
    window, weights, radii = _make_spectrum_tables(*grey.shape)
    seen = window * grey
    seen -= window * (seen.sum() / window.sum())
    spectrum = fft.rfft2(seen, overwrite_x=True)
    power = spectrum.real**2
    power += spectrum.imag**2
    power *= weights
    return float((power * radii).sum() / power.sum())


@cache
def _make_spectrum_tables(
    height: int, width: int
) -> tuple[
    Float64[np.ndarray, "height width"],
    Float64[np.ndarray, " half"],
    Float64[np.ndarray, "height half"],
]:
    # The window, how often each column of the half spectrum counts, and the distance from the
    # origin. The window is sampled between its zeros, so that no pixel is lost.
    rows, columns = (
        np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2 for side in (height, width)
    )
    # A real image's spectrum is symmetric: all columns except those at 0 and 1/2 count twice.
    weights = np.full(width // 2 + 1, 2.0)
    weights[0] = 1
    if width % 2 == 0:
        weights[-1] = 1
    radii = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    return np.outer(rows, columns), weights, radii


def _map_saliency(grey: Grey) -> Float64[np.ndarray, "side side"]:
    small = _average_over_cells(_average_over_cells(grey.astype(np.float64)).T).T
    spectrum = fft.fft2(small)
    # Amplitudes below one level are rounding errors without a meaningful logarithm or phase.
    amplitude = np.maximum(np.abs(spectrum), 1)
    logarithm = np.log(amplitude)
    # The spectrum of a sampled image is periodic.
    residual = logarithm - ndimage.uniform_filter(logarithm, 3, mode="wrap")
    # exp(residual + i phase), computed without the angle.
    raw = np.abs(fft.ifft2(np.exp(residual) * spectrum / amplitude)) ** 2
    return np.asarray(ndimage.gaussian_filter(raw, SALIENCY_BLUR_PX))


def _average_over_cells(
    values: Float64[np.ndarray, "side other"],
) -> Float64[np.ndarray, "cell other"]:
    # Means over cells of equal length, exact where a boundary cuts a pixel. Running sums, because a
    # matrix product would start threads in every reading process.
    side = len(values)
    edges = np.arange(SALIENCY_SIDE + 1) * (side / SALIENCY_SIDE)
    cut = np.minimum(edges.astype(np.intp), side - 1)
    before = np.cumsum(values, axis=0)[cut] - values[cut]
    until = before + (edges - cut)[:, None] * values[cut]
    return np.asarray(np.diff(until, axis=0) * (SALIENCY_SIDE / side))


def _compute_gini(values: Float64[np.ndarray, "height width"]) -> float:
    # Σ (2i − n − 1) s_(i) / (n Σ s), with s_(i) the values in ascending order.
    ascending = np.sort(values, axis=None)
    ranks = 2.0 * np.arange(1, values.size + 1) - values.size - 1
    return float((ranks * ascending).sum() / (values.size * ascending.sum()))
