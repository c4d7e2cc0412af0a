"""Every covariate against its definition written out plainly, and what must not change it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from images import IMAGE_COVARIATES
from vitscope.images.covariates import (
    SEGMENT_COVARIATES,
    compute_covariates,
    compute_segment_covariates,
)

RNG = np.random.default_rng(0)
SHAPES = [(70, 90), (64, 64), (61, 75), (5, 9), (3, 3)]


def make_image(height: int, width: int) -> np.ndarray:
    """Noise on a slope, so that all frequencies are there and low ones prevail."""
    slope = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 60, width))
    return (slope[..., None] + RNG.integers(0, 70, (height, width, 3))).astype(np.uint8)


def reference_grey(image: np.ndarray) -> np.ndarray:
    # Pillow rounds the weights to 16 bits.
    weighted = image.astype(int) @ np.array([19595, 38470, 7471])
    return ((weighted + 2**15) // 2**16).astype(float)


def reference_entropy(grey: np.ndarray) -> float:
    shares = [np.mean(grey == level) for level in range(256)]
    return -sum(share * np.log2(share) for share in shares if share)


def reference_edge_density(grey: np.ndarray) -> float:
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    height, width = grey.shape
    edges = []
    for row in range(1, height - 1):
        for column in range(1, width - 1):
            around = grey[row - 1 : row + 2, column - 1 : column + 2]
            edges.append(np.hypot((around * kernel).sum(), (around * kernel.T).sum()) > 100)
    return float(np.mean(edges))


def reference_colourfulness(image: np.ndarray) -> float:
    red, green, blue = image.astype(float).transpose(2, 0, 1)
    rg, yb = red - green, (red + green) / 2 - blue
    return np.sqrt(rg.var() + yb.var()) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)


def fourier_matrix(side: int) -> np.ndarray:
    return np.exp(-2j * np.pi * np.outer(np.arange(side), np.arange(side)) / side)


def transform(values: np.ndarray) -> np.ndarray:
    return fourier_matrix(values.shape[0]) @ values @ fourier_matrix(values.shape[1])


def reference_spatial_frequency(grey: np.ndarray) -> float:
    height, width = grey.shape
    rows, columns = (
        (1 - np.cos(2 * np.pi * (np.arange(side) + 0.5) / side)) / 2 for side in (height, width)
    )
    window = np.outer(rows, columns)
    power = np.abs(transform(window * (grey - np.average(grey, weights=window)))) ** 2
    # Beyond half a cycle per pixel a frequency is the negative one that it cannot be told from.
    down = np.array([min(k, height - k) / height for k in range(height)])
    across = np.array([min(k, width - k) / width for k in range(width)])
    return float(np.average(np.sqrt(down[:, None] ** 2 + across**2), weights=power))


def reference_saliency(grey: np.ndarray) -> np.ndarray:
    height, width = grey.shape
    fine = grey.repeat(64, axis=0).repeat(64, axis=1)
    small = fine.reshape(64, height, 64, width).mean(axis=(1, 3))
    spectrum = transform(small)
    amplitude = np.maximum(np.abs(spectrum), 1)
    shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    logs = np.log(amplitude)
    residual = logs - sum(np.roll(logs, shift, axis=(0, 1)) for shift in shifts) / 9
    weight = np.minimum(
        np.abs(spectrum), 1
    )  # What is below the floor counts as far as it is there.
    whitened = weight * np.exp(residual + 1j * np.angle(spectrum))
    raw = np.abs(np.conj(transform(np.conj(whitened))) / 64**2) ** 2
    kernel = np.exp(-(np.arange(-10, 11) ** 2) / (2 * 2.5**2))
    kernel /= kernel.sum()
    padded = np.pad(raw, 10, mode="symmetric")
    smooth = np.apply_along_axis(np.convolve, 0, padded, kernel, "valid")
    return np.apply_along_axis(np.convolve, 1, smooth, kernel, "valid")


def reference_gini(values: np.ndarray) -> float:
    differences = sum(np.abs(values - value).sum() for value in values.ravel())
    return differences / (2 * values.size**2 * values.mean())


# Against the definitions


@pytest.mark.parametrize("shape", SHAPES)
def test_every_covariate_is_its_definition(shape):
    image = make_image(*shape)
    grey = reference_grey(image)
    expected = {
        "entropy": reference_entropy(grey),
        "edge_density": reference_edge_density(grey),
        "colourfulness": reference_colourfulness(image),
        "spatial_frequency": reference_spatial_frequency(grey),
        "saliency_concentration": reference_gini(reference_saliency(grey)),
    }
    # Both are float64 throughout; the logarithms of small amplitudes lose a few digits.
    assert compute_covariates(image) == pytest.approx(expected, rel=1e-8)


def test_names_and_their_order():
    assert tuple(compute_covariates(make_image(8, 8))) == IMAGE_COVARIATES
    assert tuple(compute_segment_covariates(np.zeros((2, 2), dtype=int))) == SEGMENT_COVARIATES


def test_a_image_and_its_levels_are_the_same():
    image = make_image(20, 30)
    assert compute_covariates(Image.fromarray(image)) == compute_covariates(image)


@given(st.integers(3, 20), st.integers(3, 20), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_mirroring_and_turning_change_nothing(height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = compute_covariates(image)
    for turned in (image[:, ::-1], image[::-1], image.transpose(1, 0, 2)):
        found = compute_covariates(np.ascontiguousarray(turned))
        assert found == pytest.approx(expected, rel=1e-8)


# Where the answer is known


def grey_image(grey) -> np.ndarray:
    return np.repeat(np.asarray(grey, dtype=np.uint8)[..., None], 3, axis=-1)


def test_entropy_of_two_and_of_all_levels():
    assert compute_covariates(grey_image([[0, 9], [9, 0]]))["entropy"] == 1
    levels = np.arange(256).reshape(16, 16)
    assert compute_covariates(grey_image(levels))["entropy"] == pytest.approx(8)


@pytest.mark.parametrize(("height", "expected"), [(25, 0.0), (26, 2 / 8)])
def test_a_step_is_an_edge_from_26_levels_on(height, expected):
    step = np.full((10, 10), 100)
    step[:, 5:] += height
    assert compute_covariates(grey_image(step))["edge_density"] == expected
    assert compute_covariates(grey_image(step.T))["edge_density"] == expected


def test_grey_has_no_colour_and_two_colours_have_much():
    assert compute_covariates(grey_image(RNG.integers(0, 256, (9, 9))))["colourfulness"] == 0
    halves = np.array([[[255, 0, 0], [0, 255, 0]]], dtype=np.uint8)
    # rg = ±255 has mean 0, yb = 127.5 no spread.
    found = compute_covariates(halves)["colourfulness"]
    assert found == pytest.approx(255 + 0.3 * 127.5)


@pytest.mark.parametrize("cycles", [4, 10, 25])
def test_the_frequency_of_a_wave(cycles):
    wave = 128 + 100 * np.cos(2 * np.pi * cycles * np.arange(64) / 64)
    found = compute_covariates(grey_image(np.tile(wave, (64, 1))))["spatial_frequency"]
    # The window spreads a wave over the neighbouring frequencies, also across.
    assert found == pytest.approx(cycles / 64, rel=0.02)


def test_a_busy_patch_on_a_calm_ground_concentrates_saliency():
    calm = RNG.integers(100, 105, (64, 64))
    patch = calm.copy()
    patch[10:30, 10:30] = RNG.integers(50, 250, (20, 20))
    even, concentrated = (
        compute_covariates(grey_image(image))["saliency_concentration"] for image in (calm, patch)
    )
    assert 0 <= even < 0.1
    assert 0.6 < concentrated < 1


# Where there is little to describe


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 10, 30)])
@pytest.mark.parametrize("shape", [(224, 224), (3, 3)])
def test_a_image_of_one_colour_is_defined_or_says_that_it_is_not(colour, shape):
    image = np.broadcast_to(np.uint8(colour), (*shape, 3))
    red, green, blue = colour
    expected = {
        "entropy": 0,
        "edge_density": 0,
        "colourfulness": 0.3 * np.hypot(red - green, (red + green) / 2 - blue),
        "spatial_frequency": np.nan,
        "saliency_concentration": np.nan,
    }
    assert compute_covariates(image) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 50), (50, 2)])
def test_images_without_a_pixel_that_has_eight_neighbours(shape):
    found = compute_covariates(RNG.integers(0, 256, (*shape, 3), dtype=np.uint8))
    assert np.isnan(found["edge_density"])
    defined = ["entropy", "colourfulness"]
    defined += ["spatial_frequency", "saliency_concentration"] if shape != (1, 1) else []
    assert all(np.isfinite(found[name]) for name in defined)


@pytest.mark.parametrize("period", [1, 2, 8])
def test_stripes_have_few_frequencies_and_still_a_number(period):
    stripes = np.tile((np.arange(64) // period % 2) * 255, (64, 1))
    found = compute_covariates(grey_image(stripes))
    assert 0 <= found["saliency_concentration"] < 1
    assert 0 < found["spatial_frequency"] <= np.sqrt(0.5)


# Segments


def test_segments_against_counting():
    segments = RNG.integers(0, 5, (13, 17)) * 70_000
    areas = {number: np.mean(segments == number) for number in set(segments.flat) - {0}}
    assert compute_segment_covariates(segments) == pytest.approx(
        {
            "num_segments": len(areas),
            "largest_segment": max(areas.values()),
            "mean_segment": sum(areas.values()) / len(areas),
        }
    )


def test_one_segment_and_none():
    whole = compute_segment_covariates(np.full((4, 6), 7, dtype=np.int32))
    assert whole == {"num_segments": 1, "largest_segment": 1, "mean_segment": 1}
    none = compute_segment_covariates(np.zeros((4, 6), dtype=np.int32))
    assert none == pytest.approx(
        {"num_segments": 0, "largest_segment": 0, "mean_segment": np.nan}, nan_ok=True
    )
