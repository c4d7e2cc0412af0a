"""Verdicts on the hypotheses: each threshold, on rows of which the answer is known."""

from dataclasses import replace

import numpy as np
import pytest
from findings import CHANGE, MARGIN, RELATED, Row, judge_hypotheses
from plan import PRESETS, Cell
from scipy.stats import spearmanr, ttest_rel

GRID = [(depth, size, seed) for depth in (4, 8, 16) for size in (100, 800) for seed in (0, 1)]


def make_row(variant, depth, size, seed, **numbers):
    usual = {
        "parameters": 1,
        "flops": 1,
        "train_accuracy": 1.0,
        "accuracy": 0.9,
        "needle_accuracy": 0.9,
        "transfer": 0.5,
        "patches": 0.5,
        "registers": 0.0,
        "cls": 0.0,
        "skip": 0.5,
        "cka": 0.5,
        "untrained": 0.5,
        "half_depth": 0.5,
        "entropy": 0.5,
        "high_norm": 0.0,
        "verdict": "holds",
    }
    cell = Cell(variant, depth, 8, size, seed, "shortcut")
    return Row(cell=cell, **usual | numbers)


def judge(rows, tmp_path, start):
    return next(
        finding
        for finding in judge_hypotheses(rows, tmp_path)
        if finding.hypothesis.startswith(start)
    )


@pytest.fixture(autouse=True)
def histories(monkeypatch):
    """Of a patches' share that falls by what `made` says, by seed."""
    made = {}
    monkeypatch.setattr(
        "findings.read_history",
        lambda folder, _: [
            (0, 0.9),
            (1, made.get("first", 0.8)),
            (2, made.get("first", 0.8) - made.get(int(folder.name[-1]), 0.0)),
        ],
    )
    return made


@pytest.mark.parametrize(
    ("slope", "wobble", "verdict"),
    [
        (-0.10, 0.01, "yes"),
        (-0.01, 0.01, "no"),  # too little to count
        (+0.10, 0.01, "no"),  # the other way
        (-0.10, 0.40, "cannot tell"),  # as large as the spread of seeds
    ],
)
def test_a_trend_counts_if_it_is_large_and_not_by_chance(tmp_path, slope, wobble, verdict):
    noise = np.random.default_rng(3).normal(0, wobble, len(GRID))
    rows = [
        make_row("V0", *place, cka=0.6 + slope * np.log2(place[0] / 4) + extra)
        for place, extra in zip(GRID, noise, strict=True)
    ]
    found = judge(rows, tmp_path, "H1: CKA of output and patches falls")
    assert found.verdict == verdict
    changes = [
        two.cka - one.cka
        for one in rows
        for two in rows
        if (one.cell.depth, two.cell.depth) == (4, 16)
        and (one.cell.num_images, one.cell.seed) == (two.cell.num_images, two.cell.seed)
    ]
    assert len(changes) == 4
    assert f"change {np.mean(changes):+.2f} ({min(changes):+.2f} to {max(changes):+.2f} in 4" in (
        found.reason
    )


def test_models_that_did_not_learn_their_images_do_not_count(tmp_path):
    rows = [make_row("V1", *place, registers=0.1 * np.log2(place[0])) for place in GRID]
    assert judge(rows, tmp_path, "H2").verdict == "yes"
    poor = [replace(row, train_accuracy=0.94) for row in rows]
    assert judge(poor, tmp_path, "H2").verdict == "cannot tell"
    assert "differ in depth alone: 0" in judge(poor, tmp_path, "H2").reason


def test_registers_that_do_not_move_do_not_take_over(tmp_path):
    rows = [make_row("V1", *place, registers=0.3) for place in GRID]
    assert judge(rows, tmp_path, "H2").verdict == "no"


@pytest.mark.parametrize(
    ("gain", "wobble", "verdict"),
    [
        (0.0, 0.004, "yes"),
        (-0.05, 0.004, "no, worse"),
        (0.05, 0.004, "no, better"),
        (0.0, 0.05, "cannot tell"),
    ],
)
def test_costs_are_two_one_sided_tests_on_pairs(tmp_path, gain, wobble, verdict):
    noise = np.random.default_rng(1).normal(0, wobble, (len(GRID), 2))
    rows = [
        make_row(variant, *place, accuracy=0.9 + extra + gain * (variant == "V2"))
        for place, extras in zip(GRID, noise, strict=True)
        for variant, extra in zip(("V0", "V2"), extras, strict=True)
    ]
    found = judge(rows, tmp_path, "H3: V2 is as accurate as V0")
    assert found.verdict == verdict
    forced, free = (
        np.array([row.accuracy for row in rows if row.cell.variant == variant])
        for variant in ("V2", "V0")
    )
    tests = (
        ttest_rel(forced + MARGIN, free, alternative="greater").pvalue,
        ttest_rel(forced - MARGIN, free, alternative="less").pvalue,
    )
    assert (max(tests) < 0.05) == (verdict == "yes")
    assert f"{100 * (forced - free).mean():+.1f} points" in found.reason
    # What a model does not learn is part of what its design costs.
    poor = [replace(row, train_accuracy=0.5) for row in rows]
    assert judge(poor, tmp_path, "H3: V2 is as accurate as V0") == found


@pytest.mark.parametrize(
    ("falls", "verdict"),
    [((0.3, 0.32), "yes"), ((0.02, 0.021), "no"), ((0.0, 0.3), "cannot tell")],
)
def test_shares_over_time_leave_the_untrained_model_out(tmp_path, histories, falls, verdict):
    histories |= dict(enumerate(falls))
    rows = [make_row("V0", 4, 100, seed) for seed in (0, 1)]
    found = judge(rows, tmp_path, "H4")
    assert found.verdict == verdict
    assert f"{-np.mean(falls):+.2f} (95" in found.reason


@pytest.mark.parametrize(
    ("mix", "count", "verdict"), [(0.0, 120, "yes"), (1.0, 120, "no"), (0.3, 8, "cannot tell")]
)
def test_clean_maps_may_or_may_not_say_something(tmp_path, mix, count, verdict):
    generator = np.random.default_rng(0)
    entropy, other = generator.permuted(np.tile(np.linspace(0, 1, count), (2, 1)), axis=1)
    patches = mix * entropy + (1 - mix) * other
    rows = [
        make_row("V0", 4, 100, seed, entropy=entropy[seed], patches=patches[seed])
        for seed in range(count)
    ]
    found = judge(rows, tmp_path, "H5: attention's entropy")
    assert found.verdict == verdict
    assert f"rank correlation {spearmanr(entropy, patches).statistic:+.2f}" in found.reason


def test_thresholds_are_those_of_the_plan():
    """A change of these after a run would be a choice made by its outcome."""
    assert (CHANGE, MARGIN, RELATED) == (0.10, 0.01, 0.5)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_lists_each_cell_once_and_judges_its_middle(name):
    preset = PRESETS[name]
    cells = preset.list_cells()
    assert len(cells) == len({cell.name for cell in cells})
    assert {cell.seed for cell in cells} == set(preset.seeds)
    judged = [cell for cell in cells if preset.judges(cell)]
    assert {cell.variant for cell in judged} == {*preset.main, *preset.others}
    assert cells[: len(judged)] == judged  # the slowest come first


def test_transfer_no_better_than_guessing_is_no_equivalence(tmp_path):
    rows = [
        make_row(variant, *place, transfer=0.15 + 0.01 * (variant == "V2"))
        for place in GRID
        for variant in ("V0", "V2")
    ]
    found = judge(rows, tmp_path, "H3: V2 transfers")
    assert found.verdict == "cannot tell"
    assert found.reason == "16.0 % in the better one, where guessing gives 14.3 %"
    good = [replace(row, transfer=0.5 + 0.001 * row.cell.seed) for row in rows]
    assert judge(good, tmp_path, "H3: V2 transfers").verdict == "yes"


def test_what_has_no_room_to_move_is_no_answer(tmp_path, histories):
    least = [make_row("V0", *place, half_depth=1 / place[0]) for place in GRID]
    found = judge(least, tmp_path, "H1: half depth over depth falls")
    assert (found.verdict, "at one block" in found.reason) == ("cannot tell", True)
    deeper = [make_row("V0", *place, half_depth=4 / place[0]) for place in GRID]
    assert judge(deeper, tmp_path, "H1: half depth over depth falls").verdict == "yes"
    histories["first"] = 0.06
    assert "no room to fall" in judge(least, tmp_path, "H4").reason
    assert judge(least, tmp_path, "H5: the fraction").reason == "0.00 in all 12 models"


def test_two_depths_and_two_seeds_are_enough_for_a_yes(tmp_path):
    """The grid of the presets: of 36 ways to shuffle it one is as extreme."""
    places = [place for place in GRID if place[0] < 16]
    rows = [make_row("V1", *place, registers=0.05 * place[0]) for place in places]
    found = judge(rows, tmp_path, "H2")
    assert found.verdict == "yes"
    assert float(found.reason.split("p = ")[1][:5]) == pytest.approx(1 / 36, abs=0.005)
    assert judge(rows[:2], tmp_path, "H2").verdict == "cannot tell"  # one pair at most


def test_models_that_have_no_choice_say_nothing_of_clean_maps(tmp_path):
    generator = np.random.default_rng(0)
    made = [
        make_row(variant, 4, 100, seed, entropy=entropy, patches=entropy)
        for variant in ("V0", "V2")
        for seed, entropy in enumerate(generator.random(12))
    ]
    assert "12 models" in judge(made, tmp_path, "H5: attention").reason
