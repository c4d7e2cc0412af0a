"""The verdict on one picture, on both sides of its lines."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscope.results.verdict import judge_picture


def bill(patches, **others):
    return {"patches": patches, **(others or {"skip": 1 - patches})}


@pytest.mark.parametrize(
    ("patches", "status", "words"),
    [
        (1.0, "most", "patches carry 100 % of this output: the map shows where most"),
        (0.80, "most", "80 %"),
        (1.20, "most", "120 %"),
        (0.794, "part", "79 % of this output: the map shows only part"),
        (1.206, "part", "121 %"),
        (0.50, "part", "50 %"),
        (1.50, "part", "150 %"),
        (0.494, "do not read", "49 %"),
        (1.51, "do not read", "151 %"),
        (0.03, "do not read", "patches carry 3 % of this output: do not read this map"),
        (-0.3, "do not read", "−30 %"),
    ],
)
def test_status_follows_the_share_that_the_sentence_names(patches, status, words):
    verdict = judge_picture(bill(patches), 100)
    assert verdict.status == status
    assert verdict.share == patches
    assert words in verdict.text


@given(st.floats(-3, 3))
def test_the_sentence_never_contradicts_its_own_number(patches):
    verdict = judge_picture(bill(patches), None)
    percent = int(verdict.text.split(" %")[0].removeprefix("patches carry ").replace("−", "-"))
    distance = abs(100 - percent)
    expected = "most" if distance <= 20 else "part" if distance <= 50 else "do not read"
    assert verdict.status == expected


def test_the_door_is_the_largest_other_source_whatever_its_sign():
    verdict = judge_picture(bill(0.9, registers=0.15, cls=0.05, skip=-0.2), 100)
    assert verdict.door == "skip"
    assert "the largest other source is the [CLS] token's skip connection (−20 %)" in verdict.text


def test_no_door_where_there_is_nothing_but_patches():
    verdict = judge_picture({"patches": 1.0}, None)
    assert verdict.door is None
    assert "other source" not in verdict.text


def test_a_pooling_query_reads_cls_as_one_of_the_tokens():
    verdict = judge_picture(bill(0.6, cls=0.4), None)
    assert "the largest other source is the [CLS] token (40 %)" in verdict.text


@pytest.mark.parametrize(("num_reference", "words"), [(None, "the bias"), (250, "the mean of")])
def test_undefined_shares_cannot_tell(num_reference, words):
    verdict = judge_picture(bill(math.nan, skip=math.nan), num_reference)
    assert verdict.status == "cannot tell"
    assert verdict.door is None
    assert words in verdict.text
    assert "nan" not in verdict.text


def test_the_basis_says_what_the_shares_are_of():
    framed = judge_picture(bill(0.9), 250).basis
    assert framed == "shares of r − mean r, means over 250 reference pictures framed as this one"
    whole = judge_picture(bill(0.9), 250, cropped_to=(224, 336)).basis
    assert whole == (
        "shares of r − mean r, means over 250 reference pictures cropped to 224 x 336 px; this one "
        "is whole, and the means of whole pictures may differ"
    )
    assert judge_picture(bill(0.9), None, cropped_to=(224, 224)) == judge_picture(bill(0.9), None)
    assert "without a reference" in judge_picture(bill(0.9), None).basis
