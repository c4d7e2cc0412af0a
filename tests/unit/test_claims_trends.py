"""Claims about sizes: what rises, what falls and what has no order."""

import re

import pytest

from claims_evidence import SIZES, cka, find, make_models, mean, put

AGREES, DISAGREES = make_models(True), make_models(False)


def trend_of(values, half=0.01, sizes=SIZES["iBOT"]):
    models = AGREES
    for size, value in zip(sizes, values, strict=True):
        models = put(models, "iBOT", size, cka(value, half), "cka", "residual", "skip")
    return find(models, "iBOT: CKA(full, skip) rises")


@pytest.mark.parametrize(
    ("values", "half", "answer"),
    [
        ((0.1, 0.5, 0.9), 0.01, "agrees"),
        ((0.1, 0.1, 0.9), 0.01, "agrees"),
        ((0.5, 0.4, 0.9), 0.01, "agrees"),
        ((0.9, 0.5, 0.1), 0.01, "disagrees"),
        ((0.1, 0.5, 0.9), 0.5, "cannot tell"),
        ((0.5, 0.5, 0.5), 0.01, "cannot tell"),
        ((0.5, 0.9, 0.5), 0.01, "disagrees"),
    ],
)
def test_a_trend_goes_by_its_ends(values, half, answer):
    assert trend_of(values, half).answer == answer


def test_ends_in_order_are_no_trend_where_most_sizes_go_the_other_way():
    # Of the six pairs three rise and three fall.
    models = AGREES
    for size, value in zip(("S", "B", "L", "H"), (0.5, 0.9, 0.2, 0.55), strict=True):
        patches, skip = mean(value, 0.01), mean(1.0, 0.0)
        for part, norm in (("patches", skip), ("skip", patches)):
            models = put(models, "DeiT III", size, norm, "contribution_norm", part)
    finding = find(models, "DeiT III: the skip")
    assert finding.answer == "disagrees"
    assert finding.reason == "of 6 pairs of sizes that differ, 3 go the other way"


def test_a_trend_shows_the_sizes_from_small_to_large():
    measured = find(DISAGREES, "(OpenAI): CKA(full, skip)").measured
    assert re.findall(r"(\S+/\d+) ", measured) == ["B/16", "B/32", "L/14"]


def test_a_trend_needs_its_ends_and_names_them():
    models = [m for m in AGREES if m.recipe != "DINOv2" or m.size in {"S", "B"}]
    finding = find(models, "DINOv2: CKA(full, patches)")
    assert finding.answer == "cannot tell"
    assert finding.reason == "no audit of DINOv2 g"


def test_a_trend_does_without_a_size_between():
    models = [m for m in AGREES if (m.recipe, m.size) != ("DINOv2", "B")]
    finding = find(models, "DINOv2: CKA(full, patches)")
    assert finding.answer == "agrees"
    assert " B " not in finding.measured


def test_larger_sizes_than_the_needed_ones_take_part():
    models = put(AGREES, "CLIP (OpenCLIP)", "bigG/14", cka(0.05), "cka", "residual", "skip")
    assert find(models, "(OpenCLIP): CKA(full, skip)").answer == "disagrees"


def test_every_large_model_must_be_early():
    path = ("layer_similarity", 9, "mean")
    models = put(AGREES, "CLIP (OpenCLIP)", "bigG/14", 0.1, *path)
    finding = find(models, "larger CLIP (OpenCLIP)")
    assert finding.answer == "disagrees"
    assert "in bigG/14 is not above 0.5" in finding.reason
