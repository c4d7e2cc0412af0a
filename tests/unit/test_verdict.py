"""The verdict at, across and between its lines: the worse of two readings, and their sentence."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscope.metrics.estimates import CkaEstimate
from vitscope.metrics.jackknife import Estimate
from vitscope.results.verdict import LEVELS, MIN_IMAGES_TO_JUDGE, judge


def cka(value, low, high):
    return CkaEstimate(value, value, None if low is None else (low, high), 0.1)


def share(value, low=None, high=None):
    return Estimate(value, None if low is None else (low, high))


CLEAR = share(0.9, 0.88, 0.92)
ALIGNED = cka(0.96, 0.94, 0.98)


def judge_readings(alignment=ALIGNED, source=CLEAR, n=200, constant=None, **others):
    """`others` are the terms beside patches: their share, and their CKA."""
    others = others or {"skip": (0.1, 0.6)}
    shares = {"patches": source} | {name: share(value) for name, (value, _) in others.items()}
    found = {"patches": alignment}
    found |= {name: cka(value, value, value) for name, (_, value) in others.items()}
    return judge(found, shares, n, constant)


@pytest.mark.parametrize(
    ("value", "low", "high", "n", "status"),
    [
        (0.95, 0.92, 0.98, 200, "holds"),
        (0.95, 0.90, 1.00, 200, "holds"),
        (0.70, 0.60, 0.80, 200, "weakened"),
        (0.70, 0.50, 0.89, 200, "weakened"),
        (0.20, 0.10, 0.49, 200, "broken"),
        (-0.01, -0.03, 0.01, 200, "broken"),
        (0.89, 0.85, 0.93, 200, "borderline"),
        (0.52, 0.45, 0.60, 200, "borderline"),
        (0.70, 0.40, 0.95, 200, "not enough images"),
        (0.95, 0.92, 0.98, 99, "not enough images"),
        (0.95, None, None, 200, "not enough images"),
        (math.nan, None, None, 3, "not enough images"),
    ],
)
def test_alignment_decides_where_patches_are_the_source(value, low, high, n, status):
    verdict = judge_readings(cka(value, low, high), n=n)
    assert verdict.status == status
    assert f"n = {n}" in verdict.text


@pytest.mark.parametrize(
    ("value", "low", "high", "status"),
    [
        (0.90, 0.80, 1.00, "holds"),
        (0.79, 0.78, 0.799, "weakened"),
        (0.50, 0.50, 0.60, "weakened"),
        (0.13, 0.12, 0.14, "broken"),
        (0.005, 0.004, 0.006, "broken"),
        (0.80, 0.78, 0.82, "borderline"),
        (0.50, 0.48, 0.52, "borderline"),
        (0.65, 0.45, 0.85, "not enough images"),
        # Above 1 others take back the patches' contribution: as far off as below.
        (1.10, 1.00, 1.20, "holds"),
        (1.30, 1.25, 1.35, "weakened"),
        (1.60, 1.55, 1.65, "broken"),
        (1.00, 0.70, 1.30, "borderline"),
        (1.00, 0.45, 1.10, "not enough images"),
        (-0.20, -0.30, -0.10, "broken"),
    ],
)
def test_source_decides_where_patches_are_aligned(value, low, high, status):
    verdict = judge_readings(source=share(value, low, high))
    assert verdict.status == status
    if status in {"weakened", "broken"}:
        assert verdict.decided_by == "source"
        assert "(the variance share decides)" in verdict.text


def test_a_source_that_patches_hardly_write_is_broken_however_alike_it_is():
    verdict = judge_readings(
        cka(0.9999, 0.9998, 1.0), share(0.005, 0.0046, 0.0054), skip=(0.995, 1.0)
    )
    assert verdict.text == (
        "patch integration is broken (the variance share decides): variance share of patches = "
        "0.5 % (0.5 to 0.5 %), CKA(r, patches) = 1.000 (1.000 to 1.000), 95 % intervals, n = 200; "
        "the main other source is the [CLS] token's skip connection (99.5 %); CKA cannot "
        "distinguish sources here: patches and skip reach 0.9"
    )


def test_the_reading_that_decides_is_named():
    assert judge_readings().decided_by == "both"
    assert judge_readings(cka(0.7, 0.6, 0.8)).decided_by == "alignment"
    assert judge_readings(source=share(0.6, 0.55, 0.65)).decided_by == "source"
    # Each gives one end: weakened at worst by the share, at best by CKA.
    mixed = judge_readings(cka(0.7, 0.6, 0.8), share(0.6, 0.4, 0.85))
    assert (mixed.status, mixed.decided_by) == ("borderline", "both")
    assert judge_readings(n=50).decided_by is None


def test_one_reading_that_is_broken_needs_no_other():
    """More images could not make the worse of two readings better than broken."""
    assert judge_readings(cka(0.7, 0.2, 1.0), share(0.1, 0.05, 0.15)).status == "broken"
    assert judge_readings(cka(0.1, 0.0, 0.2), share(0.7, 0.3, 0.95)).status == "broken"


def test_borderline_says_between_what():
    assert "between holds and weakened" in judge_readings(cka(0.89, 0.85, 0.93)).text
    assert "between weakened and broken" in judge_readings(cka(0.52, 0.45, 0.6)).text


def test_numbers_are_held_against_the_lines_as_they_are_printed():
    just_below = judge_readings(source=share(0.8, 0.79996, 0.81))
    assert (just_below.status, "80.0 to 81.0 %" in just_below.text) == ("holds", True)
    assert judge_readings(cka(0.91, 0.8994, 0.92)).status == "borderline"


def test_the_main_other_source_is_the_largest_whatever_its_sign():
    others = {"registers": (0.3, 0.1), "skip": (-0.9, 0.2), "cls": (0.05, 0.0)}
    verdict = judge_readings(source=share(1.55, 1.52, 1.58), **others)
    assert verdict.main_other_source == "skip"
    assert "the [CLS] token's skip connection (−90.0 %)" in verdict.text


def test_undefined_shares_are_no_source():
    assert judge_readings(skip=(math.nan, math.nan)).main_other_source is None


def test_sources_that_cka_cannot_tell_apart_are_named():
    assert "cannot tell" not in judge_readings(skip=(0.1, 0.89)).text
    told = judge_readings(skip=(0.1, 0.95), cls=(0.0, 0.91)).text
    assert told.endswith("CKA cannot distinguish sources here: patches, skip and cls reach 0.9")


@pytest.mark.parametrize("n", [2, 26, 200])
def test_where_patches_are_the_only_source_nothing_is_estimated(n):
    verdict = judge({"patches": cka(1.0, None, None)}, {"patches": share(1.0)}, n)
    assert (verdict.status, verdict.main_other_source, verdict.decided_by) == ("holds", None, None)
    assert verdict.text.startswith("patch integration holds by construction: ")


@pytest.mark.parametrize(
    ("constant", "n", "status", "words"),
    [
        ("output", 200, "no variation", "the output is the same for every image"),
        ("patches", 200, "no variation", "the patches' contribution is the same for every image"),
        ("output", 2, "no variation", "the output is the same for every image"),
        ("output", 1, "not enough images", "not enough images to tell"),
        (None, 30, "not enough images", "a verdict takes 100 images or more"),
        (None, 200, "not enough images", "audit more images"),
    ],
)
def test_what_does_not_vary_is_not_put_down_to_too_few_images(constant, n, status, words):
    source = share(math.nan) if constant == "output" else CLEAR
    verdict = judge_readings(cka(math.nan, None, None), source, n, constant)
    assert verdict.status == status
    assert words in verdict.text
    told = "audit more" in verdict.text or "a verdict takes" in verdict.text
    assert told == (status == "not enough images")
    assert "CKA(r, patches) = undefined" in verdict.text
    assert f"n = {n}" in verdict.text


def spans(lowest, highest):
    numbers = st.floats(lowest, highest)
    return st.tuples(numbers, numbers, numbers).map(sorted)


@given(spans(-0.2, 1.0), spans(-1.0, 3.0), st.integers(1, 400))
def test_the_verdict_is_never_better_than_either_reading(alignment, source, n):
    """Every pair of values that the two intervals allow, by the definition: min of two levels."""
    low, value, high = alignment
    least, middle, most = source
    verdict = judge_readings(cka(value, low, high), share(middle, least, most), n)

    def level(number, holds_from):
        shown = round(number, 3)
        return "holds" if shown >= holds_from else "weakened" if shown >= 0.5 else "broken"

    def nearness(number):
        return round(1 - abs(1 - round(number, 3)), 3)

    aligned = [level(number, 0.9) for number in (low, high)]
    between = [1.0] if least <= 1 <= most else []
    near = [level(nearness(number), 0.8) for number in (least, most)]
    near += [level(number, 0.8) for number in between]
    allowed = {min(a, s, key=LEVELS.index) for a in aligned for s in near}
    ends = [min(allowed, key=LEVELS.index), max(allowed, key=LEVELS.index)]
    if n < MIN_IMAGES_TO_JUDGE or ends == ["broken", "holds"]:
        assert verdict.status == "not enough images"
    elif ends[0] == ends[1]:
        assert verdict.status == ends[0]
        # The point estimates allow what is said.
        said = LEVELS.index(verdict.status)
        assert said <= LEVELS.index(level(value, 0.9))
        assert said <= LEVELS.index(level(nearness(middle), 0.8))
    else:
        assert verdict.status == "borderline"
        assert f"between {ends[1]} and {ends[0]}" in verdict.text
