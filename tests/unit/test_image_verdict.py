"""The verdict on one image, on both sides of its lines."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscope.results.verdict import judge_alone, judge_image


def judge(shares, num_images=100):
    return judge_image(shares, num_images, "of the audit a/b")


def shares(patches, **others):
    return {"patches": patches, **(others or {"skip": 1 - patches})}


@pytest.mark.parametrize(
    ("patches", "status", "words"),
    [
        (
            1.0,
            "most",
            "patches together carry 100 % of this output: the attention map leaves little out",
        ),
        (0.80, "most", "80 %"),
        (1.20, "most", "120 %"),
        (0.794, "part", "79 % of this output: the attention map shows only part"),
        (1.206, "part", "121 %"),
        (0.50, "part", "50 %"),
        (1.50, "part", "150 %"),
        (0.494, "do not read", "49 %"),
        (1.51, "do not read", "151 %"),
        (
            0.03,
            "do not read",
            "patches together carry 3 % of this output: do not read the attention map",
        ),
        (-0.3, "do not read", "−30 %"),
    ],
)
def test_status_follows_the_share_that_the_sentence_names(patches, status, words):
    verdict = judge(shares(patches))
    assert verdict.status == status
    assert verdict.share == patches
    assert words in verdict.text


def test_a_good_share_does_not_claim_that_the_map_is_right():
    text = judge(shares(0.93)).text
    assert "patches together carry 93 %" in text
    assert "may weigh single patches wrongly" in text


@given(st.floats(-3, 3))
def test_the_sentence_never_contradicts_its_own_number(patches):
    verdict = judge(shares(patches))
    percent = int(
        verdict.text.split(" %")[0].removeprefix("patches together carry ").replace("−", "-")
    )
    distance = abs(100 - percent)
    expected = "most" if distance <= 20 else "part" if distance <= 50 else "do not read"
    assert verdict.status == expected


def test_the_main_other_source_is_the_largest_other_source_whatever_its_sign():
    verdict = judge(shares(0.9, registers=0.15, cls=0.05, skip=-0.2))
    assert verdict.main_other_source == "skip"
    assert "the main other source is the [CLS] token's skip connection (−20 %)" in verdict.text


def test_no_other_source_where_there_is_nothing_but_patches():
    verdict = judge({"patches": 1.0})
    assert verdict.main_other_source is None
    assert "other source" not in verdict.text


def test_a_pooling_query_reads_cls_as_one_of_the_tokens():
    verdict = judge(shares(0.6, cls=0.4))
    assert "the main other source is the [CLS] token (40 %)" in verdict.text


def test_undefined_shares_cannot_tell():
    verdict = judge(shares(math.nan, skip=math.nan))
    assert verdict.status == "cannot tell"
    assert verdict.main_other_source is None
    assert "does not differ from the reference's mean" in verdict.text
    assert "nan" not in verdict.text


def test_the_basis_says_which_images_the_means_are_over():
    basis = judge(shares(0.9), 250).basis
    assert basis == "shares of r − mean r, means over 250 images of the audit a/b"


@pytest.mark.parametrize(("num_images", "status"), [(19, "cannot tell"), (20, "most")])
def test_means_over_few_images_cannot_tell(num_images, status):
    verdict = judge(shares(0.9), num_images)
    assert verdict.status == status
    assert math.isnan(verdict.share) == (status == "cannot tell")
    if status == "cannot tell":
        assert "a mean over 19 images says little, audit 20 or more" in verdict.text


@pytest.mark.parametrize("patches", [0.03, 0.7, 0.95, math.nan])
def test_without_a_reference_no_share_decides(patches):
    verdict = judge_alone(shares(patches), "do this")
    assert verdict.status == "cannot tell"
    assert verdict.text == "cannot tell what attention leaves out without a reference: do this"
    assert math.isnan(verdict.share)
    assert verdict.main_other_source is None
    assert "raw" in verdict.basis


def test_patches_that_are_the_only_source_need_no_reference():
    verdict = judge_alone({"patches": 1.0}, "do this")
    assert (verdict.status, verdict.share) == ("most", 1)
    assert verdict.text == judge({"patches": 1.0}).text
