"""Every claim of the paper reaches each answer that it can, for the right reason."""

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claims_evidence import (
    PARAMS,
    SIZES,
    N,
    change_all,
    cka,
    find,
    forget,
    leave_out_intervals,
    make_model,
    make_models,
    mean,
    measured,
    put,
    widen,
)
from vitscope.errors import UsageError
from vitscope.reproduction.claims import judge_claims
from vitscope.reproduction.paper_claims import list_claims
from vitscope.weights.catalogue import SIZE_CLASSES, plan_models

CLAIMS = list_claims()
NAMES = [f"{claim.where} {claim.data}: {claim.statement}" for claim in CLAIMS]
TINY = next(i for i, claim in enumerate(CLAIMS) if "tiny" in claim.statement)


def places(*words):
    """Which claims hold one of the words."""
    return {i for i, claim in enumerate(CLAIMS) if any(word in claim.statement for word in words)}


WITHOUT_INTERVAL = places("spread", "ignore", "scales")
OF_COUNTS = places("same register", "clean attention map")
AGREES, DISAGREES = make_models(True), make_models(False)
WORLDS = {
    "like the paper": AGREES,
    "the opposite": DISAGREES,
    "nothing": [],
    "few like the paper": [make_model(m.recipe, m.size, n=99) for m in AGREES],
    "few of the opposite": [make_model(m.recipe, m.size, agrees=False, n=99) for m in AGREES],
    "wide like the paper": change_all(AGREES, widen),
    "wide of the opposite": change_all(DISAGREES, widen),
    "without intervals": change_all(AGREES, leave_out_intervals),
    "undefined": change_all(AGREES, forget),
}
EACH = pytest.mark.parametrize("index", range(len(CLAIMS)), ids=NAMES)


def each_but(left_out):
    kept = sorted(set(range(len(CLAIMS))) - left_out)
    return pytest.mark.parametrize("index", kept, ids=[NAMES[i] for i in kept])


EACH_TOLD = each_but({TINY})
EACH_WITH_WIDTH = each_but({TINY} | WITHOUT_INTERVAL | OF_COUNTS)


@cache
def judged(world):
    return judge_claims(WORLDS[world])


# Each claim and each answer


@EACH_TOLD
def test_a_measurement_like_the_papers_agrees(index):
    finding = judged("like the paper")[index]
    assert (finding.answer, finding.reason) == ("agrees", "")
    assert f"n = {N}" in finding.measured


@EACH_TOLD
def test_the_opposite_disagrees_and_says_which_number(index):
    finding = judged("the opposite")[index]
    assert finding.answer == "disagrees"
    assert finding.reason


@EACH
def test_no_model_cannot_tell_and_names_what_is_missing(index):
    finding = judged("nothing")[index]
    assert finding.answer == "cannot tell"
    assert finding.measured == "not measured"
    assert re.search("no (audit|one-shot result|DeiT III tiny weights)", finding.reason)


@EACH_TOLD
@pytest.mark.parametrize("world", ["few like the paper", "few of the opposite"])
def test_few_images_cannot_tell(index, world):
    finding = judged(world)[index]
    assert finding.answer == "cannot tell"
    assert "n = 99" in finding.reason
    assert "n = 99" in finding.measured


@EACH_TOLD
def test_undefined_numbers_cannot_tell(index):
    finding = judged("undefined")[index]
    assert finding.answer == "cannot tell"
    assert finding.measured == "not measured"
    assert finding.reason


@EACH_WITH_WIDTH
@pytest.mark.parametrize("world", ["wide like the paper", "wide of the opposite"])
def test_wide_intervals_cannot_tell(index, world):
    finding = judged(world)[index]
    assert finding.answer == "cannot tell"
    assert re.search("interval|no better than chance", finding.reason)


@EACH_WITH_WIDTH
def test_missing_intervals_cannot_tell(index):
    finding = judged("without intervals")[index]
    assert finding.answer == "cannot tell"
    assert "no interval" in finding.reason


@pytest.mark.parametrize(
    ("words", "path", "line"),
    [
        ("same register", ("anatomy", "dominant_register", "share"), 0.95),
        ("clean attention map", ("high_norm_tokens", 11, "images_fraction"), 0.05),
    ],
)
def test_parts_of_the_images_near_the_line_cannot_tell(words, path, line):
    finding = find(put(AGREES, "DINOv2 with registers", "g", line, *path), words)
    assert finding.answer == "cannot tell"
    assert f"contains {line}" in finding.reason


def test_numbers_without_an_interval_need_a_hundred_images():
    models = [make_model(m.recipe, m.size, n=99) for m in AGREES]
    for index in WITHOUT_INTERVAL:
        finding = judge_claims(models)[index]
        assert finding.answer == "cannot tell"
        assert "n = 99" in finding.reason
        assert "100 images" in finding.reason
    assert len(WITHOUT_INTERVAL) == 3


# Single claims


def test_one_size_that_fails_decides_although_another_is_missing():
    models = [m for m in DISAGREES if (m.recipe, m.size) != ("DINOv2 with registers", "B")]
    finding = find(models, "small and base attend mostly")
    assert finding.answer == "disagrees"
    assert finding.reason == "patch share in S is not above 0.5"


def test_one_size_that_is_missing_is_named():
    models = [m for m in AGREES if (m.recipe, m.size) != ("DINOv2 with registers", "B")]
    finding = find(models, "small and base attend mostly")
    assert finding.answer == "cannot tell"
    assert finding.reason == "no audit of DINOv2 with registers B"
    assert finding.measured.startswith("patch share: S 0.8 [")


def test_an_interval_that_holds_the_line_cannot_tell():
    models = put(AGREES, "DINOv2 with registers", "S", mean(0.51, 0.3), "patch_share")
    finding = find(models, "small and base attend mostly")
    assert (finding.answer, finding.reason) == (
        "cannot tell",
        "the interval of patch share in S contains 0.5",
    )


def test_a_model_without_registers_has_no_patch_share_to_speak_of():
    mass = {"patches": mean(1.0)}
    models = put(AGREES, "DINOv2 with registers", "g", mass, "attention_mass")
    for words in ("large and giant attend", "spread", "almost ignore"):
        finding = find(models, words)
        assert finding.answer == "cannot tell"
        assert "needs registers" in finding.reason


def test_without_a_dominant_register_there_is_no_anatomy_to_judge():
    path = ("anatomy", "dominant_register")
    models = put(AGREES, "DINOv2 with registers", "g", None, *path)
    found = [finding for finding in judge_claims(models) if finding.where == "Sec. 3.2"]
    assert len(found) == 5
    assert all("needs registers" in finding.reason for finding in found)


def test_the_anatomy_is_that_of_the_dominant_register():
    path = ("anatomy", "dominant_register", "index")
    models = put(AGREES, "DINOv2 with registers", "g", 0, *path)
    finding = find(models, "0.9989")
    assert finding.answer == "disagrees"
    assert "0.3" in finding.measured


def test_the_map_is_that_of_the_tokens_the_last_block_reads():
    # In the made-up models the output of the last block is the other way round.
    assert find(AGREES, "clean attention map").answer == "agrees"
    models = put(
        AGREES, "DINOv2 with registers", "g", 0.7, "high_norm_tokens", 11, "images_fraction"
    )
    assert find(models, "clean attention map").answer == "disagrees"


def test_the_second_set_of_images_is_judged_by_itself():
    words = "drops for large"
    models = put(
        AGREES,
        "DINOv2 with registers",
        "L",
        cka(0.99),
        *("cka", "attention", "patches"),
        data="ImageNet",
    )
    assert find(models, words).answer == "agrees"
    assert find(models, words, "ImageNet").answer == "disagrees"
    alone = [replace(model, summaries={"COCO": model.summaries["COCO"]}) for model in AGREES]
    assert "no audit on ImageNet of DINOv2 with" in find(alone, words, "ImageNet").reason


def test_a_drop_that_is_no_drop_below_base_disagrees():
    models = put(AGREES, "DINOv2 with registers", "B", cka(0.6), "cka", "attention", "patches")
    finding = find(models, "drops for large")
    assert finding.reason == "CKA(t, patches) in L is not smaller than in B"


def test_the_papers_biased_cka_stands_beside_the_unbiased_one():
    finding = find(AGREES, "CKA close to 1")
    assert "CKA(t, patches): S 0.99 [0.98, 1] (biased 1.01), B 0.97" in finding.measured


def test_the_readout_is_the_one_asked_for():
    finding = find(AGREES, "CKA close to 1", readout="values")
    assert finding.answer == "cannot tell"
    assert "CKA(values output, patches)" in finding.criterion
    models = AGREES
    for size in "SB":
        values = {"patches": cka(0.95)}
        models = put(models, "DINOv2 with registers", size, values, "cka", "values")
    assert find(models, "CKA close to 1", readout="values").answer == "agrees"


def test_one_shot_of_another_classifier_was_not_measured():
    finding = find(AGREES, "one-shot", "one-shot", classifier="logistic")
    assert finding.answer == "cannot tell"
    assert "was not measured" in finding.reason


def test_one_shot_no_better_than_chance_tells_nothing_of_patches():
    path = ("accuracy", "nearest", "attention", "full", "top5")
    models = put(AGREES, "DINOv2 with registers", "g", measured(0.06, 0.02), *path, data="one-shot")
    finding = find(models, "one-shot", "one-shot")
    assert finding.answer == "cannot tell"
    assert "no better than chance" in finding.reason


def test_the_accuracies_stand_beside_what_is_kept():
    finding = find(AGREES, "one-shot", "one-shot")
    assert "L 0.2 [0.1842, 0.2162] (top-5: patches 20.0%, full 80.0%)" in finding.measured


def test_tiny_is_deit_and_never_in_the_trends_of_deit_iii():
    finding = judge_claims(AGREES)[TINY]
    assert finding.answer == "cannot tell"
    assert "another recipe" in finding.reason
    assert "Ti 1.2" in finding.measured
    assert "S 0.5" in finding.measured
    plan = plan_models(["deit3"], list(SIZE_CLASSES))
    planned = [(entry.family, entry.size) for _, entry in plan]
    assert planned[0] == ("DeiT", "Ti")
    assert {(m.recipe, m.size) for m in AGREES if "DeiT" in m.recipe} == set(planned)
    without = [model for model in AGREES if model.size != "Ti"]
    for one, other in zip(judge_claims(AGREES), judge_claims(without), strict=True):
        assert one == other or "tiny" in one.claim
    assert judge_claims(DISAGREES)[TINY].answer == "cannot tell"


def test_two_models_of_one_recipe_and_size_are_refused():
    with pytest.raises(UsageError, match="iBOT S is given twice"):
        judge_claims([*AGREES, next(m for m in AGREES if (m.recipe, m.size) == ("iBOT", "S"))])


def test_models_without_a_size_are_left_alone():
    stray = replace(AGREES[0], size=None)
    assert judge_claims([stray, *AGREES, stray]) == judge_claims(AGREES)


# All claims together


@settings(max_examples=15, deadline=None)
@given(st.permutations(AGREES))
def test_the_order_of_the_models_does_not_matter(models):
    assert judge_claims(models) == judge_claims(AGREES)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, len(AGREES) - 1), max_size=len(AGREES), unique=True),
    st.booleans(),
)
def test_missing_models_never_turn_one_answer_into_its_opposite(left_out, agrees):
    # Where all sizes agree with each other; a trend lost in the middle keeps its direction.
    whole = AGREES if agrees else DISAGREES
    kept = [model for i, model in enumerate(whole) if i not in left_out]
    for before, after in zip(judge_claims(whole), judge_claims(kept), strict=True):
        if "DeiT III shows" not in before.claim:
            assert after.answer in {before.answer, "cannot tell"}


@settings(max_examples=30, deadline=None)
@given(st.floats(1, 1e4), st.booleans())
def test_wider_intervals_never_turn_one_answer_into_its_opposite(factor, agrees):
    def stretch(key, value):
        if key == "ci95":
            middle, half = np.mean(value), factor * (value[1] - value[0]) / 2
            return (middle - half, middle + half)
        return factor * value if key == "std" else value

    whole = AGREES if agrees else DISAGREES
    pairs = zip(judge_claims(whole), judge_claims(change_all(whole, stretch)), strict=True)
    assert all(after.answer in {before.answer, "cannot tell"} for before, after in pairs)


SPEC = (
    *("Fig. 2a", "Sec. 3.2", "Fig. 3a", "Fig. 3b", "Fig. 4", "Fig. 5a", "Fig. 5b", "Fig. 6"),
    *("Fig. 7", "Fig. 8", "Fig. 9"),
)


def test_every_figure_with_a_claim_has_a_row():
    found = {claim.where.split(",")[0] for claim in CLAIMS}
    assert found == set(SPEC)
    assert len({(c.where, c.statement, c.data) for c in CLAIMS}) == len(CLAIMS)


@pytest.mark.parametrize(
    ("where", "recipes"),
    [
        ("Fig. 7", set(SIZES) - {"DINOv2 with registers", "DeiT"}),
        ("Fig. 8", set(SIZES) - {"DINOv2 with registers", "DeiT"}),
        ("Fig. 9", {"CLIP (OpenAI)", "CLIP (OpenCLIP)", "iBOT", "DeiT III"}),
    ],
)
def test_every_recipe_of_a_figure_has_its_rows(where, recipes):
    told = [
        c.statement for c in CLAIMS if where in c.where or (where, c.where) == ("Fig. 8", "Fig. 6")
    ]
    told += [c.statement for c in CLAIMS if where == "Fig. 7" and c.where == "Fig. 5a, 7"]
    for recipe in recipes:
        assert any(recipe in statement for statement in told), recipe


def test_the_sizes_of_the_test_are_ordered_as_their_names_say():
    assert PARAMS["S"] < PARAMS["B"] < PARAMS["L"] < PARAMS["H"] < PARAMS["g"]
