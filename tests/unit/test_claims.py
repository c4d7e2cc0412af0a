"""Every claim of the paper reaches each answer that it can, for the right reason."""

import csv
import json
import re
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from claims_evidence import (
    PARAMS,
    SIZES,
    N,
    change_all,
    forget,
    make_model,
    make_models,
    mean,
    spoil,
    widen,
)
from claims_page import PAGE, make_page
from vitscope.errors import UsageError
from vitscope.reproduction.claims import Finding, judge_claims, list_claims, write_claims
from vitscope.reproduction.claims_table import make_claims_table

CLAIMS = list_claims()
NAMES = [f"{claim.where} {claim.data}: {claim.statement}" for claim in CLAIMS]
TINY = next(i for i, claim in enumerate(CLAIMS) if "tiny" in claim.statement)


def places(*words):
    """Which claims hold one of the words."""
    return {i for i, claim in enumerate(CLAIMS) if any(word in claim.statement for word in words)}


WITHOUT_INTERVAL = places("spread", "ignore", "scales")
OF_COUNTS = places("same register", "clean attention map")
AGREES, DISAGREES = make_models(True), make_models(False)
EACH = pytest.mark.parametrize("index", range(len(CLAIMS)), ids=NAMES)


def each_but(left_out):
    kept = sorted(set(range(len(CLAIMS))) - left_out)
    return pytest.mark.parametrize("index", kept, ids=[NAMES[i] for i in kept])


EACH_TOLD = each_but({TINY})
EACH_WITH_WIDTH = each_but({TINY} | WITHOUT_INTERVAL | OF_COUNTS)


def find(models, words, data="COCO", **settings):
    found = [f for f in judge_claims(models, **settings) if words in f.claim and f.data == data]
    assert len(found) == 1, [finding.claim for finding in found]
    return found[0]


def put(models, recipe, size, value, *path, stage="audit"):
    """The same models, one of them with one number of its result replaced."""
    return [
        replace(model, **{stage: put_in(getattr(model, stage), value, *path)})
        if (model.recipe, model.size) == (recipe, size)
        else model
        for model in models
    ]


def put_in(tree, value, key, *path):
    new = value if not path else put_in(tree[key], value, *path)
    if isinstance(tree, list):
        return [*tree[:key], new, *tree[key:][1:]]
    return {**tree, key: new}


# Each claim and each answer


@EACH_TOLD
def test_a_measurement_like_the_papers_agrees(index):
    finding = judge_claims(AGREES)[index]
    assert (finding.answer, finding.reason) == ("agrees", "")
    assert f"n = {N}" in finding.measured


@EACH_TOLD
def test_the_opposite_disagrees_and_says_which_number(index):
    finding = judge_claims(DISAGREES)[index]
    assert finding.answer == "disagrees"
    assert finding.reason


@EACH
def test_no_model_cannot_tell_and_names_what_is_missing(index):
    finding = judge_claims([])[index]
    assert finding.answer == "cannot tell"
    assert finding.measured == "not measured"
    assert re.search("no (audit|one-shot result|DeiT III tiny weights)", finding.reason)


@EACH_TOLD
@pytest.mark.parametrize("models", [AGREES, DISAGREES], ids=["like the paper", "the opposite"])
def test_few_pictures_cannot_tell(index, models):
    few = [make_model(m.recipe, m.size, agrees=models is AGREES, n=19) for m in models]
    finding = judge_claims(few)[index]
    assert finding.answer == "cannot tell"
    assert "n = 19" in finding.reason
    assert "n = 19" in finding.measured


@EACH_WITH_WIDTH
@pytest.mark.parametrize("models", [AGREES, DISAGREES], ids=["like the paper", "the opposite"])
def test_wide_intervals_cannot_tell(index, models):
    finding = judge_claims(change_all(models, widen))[index]
    assert finding.answer == "cannot tell"
    assert re.search("interval|no better than chance", finding.reason)


@pytest.mark.parametrize(
    ("words", "path", "line"),
    [
        ("same register", ("anatomy", "dominant_register", "share"), 0.95),
        ("clean attention map", ("high_norm_tokens", 11, "images_fraction"), 0.05),
    ],
)
def test_parts_of_the_pictures_near_the_line_cannot_tell(words, path, line):
    finding = find(put(AGREES, "DINOv2 with registers", "g", line, *path), words)
    assert finding.answer == "cannot tell"
    assert f"holds {line}" in finding.reason


@EACH_TOLD
@pytest.mark.parametrize("change", [forget, spoil])
def test_undefined_numbers_cannot_tell(index, change):
    finding = judge_claims(change_all(AGREES, change))[index]
    assert finding.answer == "cannot tell"
    assert finding.measured == "not measured"
    assert finding.reason


def test_numbers_without_an_interval_need_a_hundred_pictures():
    models = [make_model(m.recipe, m.size, n=99) for m in AGREES]
    for index in WITHOUT_INTERVAL:
        finding = judge_claims(models)[index]
        assert finding.answer == "cannot tell"
        assert "n = 99" in finding.reason
        assert "100 pictures" in finding.reason
    assert len(WITHOUT_INTERVAL) == 3


@EACH_WITH_WIDTH
def test_missing_intervals_cannot_tell(index):
    def without(key, value):
        return None if key in {"ci95", "std"} else value

    finding = judge_claims(change_all(AGREES, without))[index]
    assert finding.answer == "cannot tell"
    assert "no interval" in finding.reason


@EACH
def test_nothing_of_a_damaged_summary_breaks_the_table(index):
    for junk in ({}, {"data": []}, {"data": {"num_images": 400}, "layer_similarity": [1, 2, 3]}):
        models = [replace(model, audit=junk, imagenet=junk, one_shot=junk) for model in AGREES]
        assert judge_claims(models)[index].answer == "cannot tell"


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
        "the interval of patch share in S holds 0.5",
    )


def test_a_model_without_registers_has_no_patch_share_to_speak_of():
    path = ("attention_mass", "registers")
    models = put(AGREES, "DINOv2 with registers", "g", None, *path)
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


def test_the_second_set_of_pictures_is_judged_by_itself():
    words = "drops for large"
    models = put(
        AGREES,
        "DINOv2 with registers",
        "L",
        {"unbiased": 0.99, "ci95": [0.98, 1.0]},
        *("cka", "attention", "patches"),
        stage="imagenet",
    )
    assert find(models, words).answer == "agrees"
    assert find(models, words, "ImageNet").answer == "disagrees"
    alone = [replace(model, imagenet=None) for model in AGREES]
    assert "no audit on ImageNet of DINOv2 with" in find(alone, words, "ImageNet").reason


def test_a_drop_that_is_no_drop_below_base_disagrees():
    base = {"unbiased": 0.6, "ci95": [0.59, 0.61]}
    models = put(AGREES, "DINOv2 with registers", "B", base, "cka", "attention", "patches")
    finding = find(models, "drops for large")
    assert finding.reason == "CKA(t, patches) in L is not smaller than in B"


def test_the_papers_biased_cka_stands_beside_the_unbiased_one():
    finding = find(AGREES, "CKA close to 1")
    assert "CKA(t, patches): S 0.99 [0.98, 1] (biased 1.01), B 0.97" in finding.measured


def test_the_readout_is_the_one_asked_for():
    finding = find(AGREES, "CKA close to 1", readout="values")
    assert finding.answer == "cannot tell"
    assert "CKA(values output, patches)" in finding.criterion
    cka = {"patches": {"unbiased": 0.95, "ci95": [0.94, 0.96]}}
    models = AGREES
    for size in "SB":
        models = put(models, "DINOv2 with registers", size, cka, "cka", "values")
    assert find(models, "CKA close to 1", readout="values").answer == "agrees"


def test_one_shot_of_another_classifier_was_not_measured():
    finding = find(AGREES, "one-shot", "one-shot", classifier="logistic")
    assert finding.answer == "cannot tell"
    assert "was not measured" in finding.reason


def test_one_shot_no_better_than_chance_tells_nothing_of_patches():
    path = ("accuracy", "nearest", "attention", "full", "top5")
    chance = {"value": 0.06, "ci95": [0.04, 0.08]}
    models = put(AGREES, "DINOv2 with registers", "g", chance, *path, stage="one_shot")
    finding = find(models, "one-shot", "one-shot")
    assert finding.answer == "cannot tell"
    assert "no better than chance" in finding.reason


def test_the_accuracies_stand_beside_what_is_kept():
    finding = find(AGREES, "one-shot", "one-shot")
    assert "L 0.2 [0.1842, 0.2162] (top-5: patches 20.0%, full 80.0%)" in finding.measured


# Trends


def trend_of(values, half=0.01, sizes=SIZES["iBOT"]):
    models = AGREES
    for size, value in zip(sizes, values, strict=True):
        skip = {"unbiased": value, "ci95": [value - half, value + half]}
        models = put(models, "iBOT", size, skip, "cka", "residual", "skip")
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
        patches = {"mean": value, "std": 0.01}
        skip = {"mean": 1.0, "std": 0.0}
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
    value = {"unbiased": 0.05, "ci95": [0.04, 0.06]}
    models = put(AGREES, "CLIP (OpenCLIP)", "bigG/14", value, "cka", "residual", "skip")
    assert find(models, "(OpenCLIP): CKA(full, skip)").answer == "disagrees"


def test_every_large_model_must_be_early():
    path = ("layer_similarity", 9, "mean")
    models = put(AGREES, "CLIP (OpenCLIP)", "bigG/14", 0.1, *path)
    finding = find(models, "larger CLIP (OpenCLIP)")
    assert finding.answer == "disagrees"
    assert "in bigG/14 is not above 0.5" in finding.reason


def test_tiny_is_deit_and_never_in_the_trends_of_deit_iii():
    finding = judge_claims(AGREES)[TINY]
    assert finding.answer == "cannot tell"
    assert "another recipe" in finding.reason
    assert "Ti 1.2" in finding.measured
    without = [model for model in AGREES if model.size != "Ti"]
    for one, other in zip(judge_claims(AGREES), judge_claims(without), strict=True):
        assert one == other or "tiny" in one.claim
    assert judge_claims(DISAGREES)[TINY].answer == "cannot tell"


def test_two_models_of_one_recipe_and_size_are_refused():
    with pytest.raises(UsageError, match="iBOT S is there twice"):
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
            return [middle - half, middle + half]
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
        ("Fig. 7", set(SIZES) - {"DINOv2 with registers"}),
        ("Fig. 8", set(SIZES) - {"DINOv2 with registers"}),
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


# The table


def test_the_files_hold_every_finding(tmp_path):
    findings = judge_claims(AGREES)
    write_claims(tmp_path / "claims", findings)
    rows = [asdict(finding) for finding in findings]
    content = json.loads((tmp_path / "claims" / "claims.json").read_text())
    assert content["claims"] == rows
    with (tmp_path / "claims" / "claims.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == rows
    page = (tmp_path / "claims" / "claims.md").read_text()
    assert f"{len(findings) - 1} agree, 0 disagree, 1 cannot be told" in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == len(findings) + 2


HOSTILE = "a|b\n| `c` <script>alert(1)</script> [x](http://e.vil) _em_ *b* \\| \udcff =1+1 ü"


def test_hostile_text_is_one_cell_of_plain_text(tmp_path):
    finding = Finding("Fig. 2a", "COCO", HOSTILE, "c", HOSTILE, "cannot tell", HOSTILE)
    write_claims(tmp_path / "claims", [finding])
    page = (tmp_path / "claims" / "claims.md").read_text()
    line = page.splitlines()[-1]
    assert len(re.split(r"(?<!\\)(?:\\\\)*\|", line)) == 8
    assert "<script>" not in page
    assert r"\[x\](http" in line
    with (tmp_path / "claims" / "claims.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["claim"] == HOSTILE.replace("\udcff", r"\udcff")
    assert list(row) == [field.name for field in fields(Finding)]
    (saved,) = json.loads((tmp_path / "claims" / "claims.json").read_text())["claims"]
    assert saved["claim"] == HOSTILE


def test_an_earlier_table_is_replaced_and_nothing_else(tmp_path):
    write_claims(tmp_path / "claims", judge_claims([]))
    write_claims(tmp_path / "claims", judge_claims(AGREES))
    assert "0 disagree, 1 cannot" in (tmp_path / "claims" / "claims.md").read_text()
    (tmp_path / "claims" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError):
        write_claims(tmp_path / "claims", judge_claims(AGREES))
    assert (tmp_path / "claims" / "mine.txt").read_text() == "mine"


def test_the_terminal_shows_answers_numbers_and_reasons():
    console = Console(width=160, record=True)
    finding = Finding("Fig. 2a", "COCO", "[bold]said[/]", "c", "[red]0.3", "disagrees", "so [x]")
    console.print(make_claims_table([finding]))
    shown = console.export_text()
    for text in ("[bold]said[/]", "[red]0.3", "so [x]", "disagrees", "Fig. 2a", "1 disagree,"):
        assert text in shown


def test_the_page_is_made_from_the_list():
    assert PAGE.read_text(encoding="utf-8") == make_page()
