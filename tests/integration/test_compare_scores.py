"""One-shot accuracy and the skill of maps, before and after edits, in one comparison."""

import json
import shutil
from dataclasses import replace
from math import nan

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from audits import tiny_vit
from images import write_classes, write_images
from reference_jackknife import busing_interval
from vitscope import AuditConfig, JudgeResult, OneShotResult, decompose, restrict
from vitscope.errors import ResultError, UsageError
from vitscope.figures.saved import load_results
from vitscope.images.image_set import iter_batches
from vitscope.metrics.jackknife import Estimate, block_of
from vitscope.metrics.one_shot import draw_pairs, group_images
from vitscope.remedies.tokens import Skip
from vitscope.results.remedy_comparison import compare_judgements, compare_one_shots
from vitscope.results.remedy_text import tabulate_overview, tabulate_remedy
from vitscope.runs.model_run import make_image_set
from vitscope.runs.remedy_loop import compare_remedies

EDITS = ["skip", "attentive-head:epochs=1"]
FOLDERS = ["original", "01-skip", "02-attentive-head"]
MAPS = ("legrad", "frozen")
NUM_JUDGED = 4
SETTINGS = {"gallery": 0, "dtype": "float64", "num_workers": 0}


@pytest.fixture(scope="module")
def few_maps():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vitscope.runs.judge_run.DEFAULT_MAPS", MAPS)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("photos"), 9)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("classes"), 4)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def compared(few_maps, photos, classes, told, tmp_path_factory):
    return compare_remedies(
        *(tiny_vit(), photos, EDITS),
        one_shot=classes,
        judge=NUM_JUDGED,
        out=tmp_path_factory.mktemp("compared"),
        on_progress=lambda *numbers: told.append(numbers),
        **SETTINGS,
    )


def open_one_shot(compared, name):
    return OneShotResult.load(compared.folder.parent / "one-shot" / name)


def open_judgement(compared, name):
    return JudgeResult.load(compared.folder.parent / "judge" / name)


def features_of(vit, folder):
    """Identities and global features of all images of a folder, in float64."""
    images = make_image_set(vit, sorted(folder.rglob("*.png")), AuditConfig())
    (batch,) = iter_batches(images, batch_size=len(images))
    vit = vit.to("cpu", torch.float64)
    outputs = restrict(vit, decompose(vit, batch.pixels.double()))["embedding"]
    return batch.ids, {name: rows.detach().numpy() for name, rows in outputs.items()}


def is_nearest(train, test):
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test)]
    return ((unit[1] @ unit[0].T).argmax(axis=1) == np.arange(len(train))).mean()


def t_interval(values):
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def test_accuracies_and_their_difference_are_those_of_the_definition(compared, classes):
    (one, *_) = compared.summary.remedies
    labels = [path.relative_to(classes).parts[0] for path in sorted(classes.rglob("*.png"))]
    vit = tiny_vit()
    ids, before = features_of(vit, classes)
    with Skip().applied(vit) as edited:
        _, after = features_of(edited, classes)
    pairs = draw_pairs(list(group_images(labels, ids).values()), 100, 0)
    for part in ("full", "patches"):
        first, second = (
            np.array([is_nearest(rows["full"][p[:, 0]], rows[part][p[:, 1]]) for p in pairs])
            for rows in (before, after)
        )
        found = one.one_shot[f"{part}_top1"]
        assert found.before.value == pytest.approx(first.mean(), abs=1e-12)
        assert found.after.value == pytest.approx(second.mean(), abs=1e-12)
        assert found.difference.value == pytest.approx((second - first).mean(), abs=1e-12)
        assert found.difference.ci95 == pytest.approx(t_interval(second - first), abs=1e-12)
    assert one.one_shot["full_top1"].difference.value != 0
    classified = compared.summary.one_shot
    assert (classified.num_classes, classified.draws) == (4, 100)
    assert classified.chance.top1 == pytest.approx(1 / 4)


def test_skill_and_its_difference_are_those_of_the_definition(compared):
    (one, *_) = compared.summary.remedies
    tables = [open_judgement(compared, name).scores.to_pylist() for name in FOLDERS[:2]]
    gaps = [{(row["image_id"], row["map"]): row["gap"] for row in rows} for rows in tables]
    ids = list(dict.fromkeys(row["image_id"] for row in tables[0]))
    blocks, places = np.array([block_of(name) for name in ids]), np.arange(len(ids))

    def skill(found, name, chosen):
        def mean(which):
            return np.mean([found[ids[place], which] for place in chosen])

        return (mean(name) - mean("random")) / (mean("oracle") - mean("random"))

    assert list(one.skill) == ["attention", "legrad"]
    for name, change in one.skill.items():
        before, after = (skill(found, name, places) for found in gaps)
        assert change.before.value == pytest.approx(before, abs=1e-12)
        assert change.after.value == pytest.approx(after, abs=1e-12)
        expected = busing_interval(
            lambda chosen, name=name: skill(gaps[1], name, chosen) - skill(gaps[0], name, chosen),
            *(places, blocks),
        )
        assert change.difference.value == pytest.approx(after - before, abs=1e-12)
        assert change.difference.ci95 == pytest.approx(expected, abs=1e-9)


def test_the_same_images_are_drawn_by_seed_for_every_model(compared, photos):
    drawn = {open_one_shot(compared, name).provenance["drawn"] for name in FOLDERS}
    assert len(drawn) == 1
    judged = [open_judgement(compared, name).read_gaps()[0] for name in FOLDERS]
    images = make_image_set(tiny_vit(), photos, AuditConfig()).limited(NUM_JUDGED, 0)
    (batch,) = iter_batches(images, batch_size=NUM_JUDGED)
    assert judged == [batch.ids] * len(FOLDERS)
    other = make_image_set(tiny_vit(), photos, AuditConfig()).limited(NUM_JUDGED, 1)
    assert other.addresses != images.addresses


def test_a_head_that_reads_patches_alone_has_its_fidelity_in_the_same_table(compared):
    head = compared.summary.remedies[1]
    for top in ("top1", "top5"):
        assert head.one_shot[f"full_{top}"].after == head.one_shot[f"patches_{top}"].after
    (row,) = [row for row in rows_of(compared, head) if row[0] == "one-shot top-1"]
    assert row[3] not in {"–", "0.00 ± 0.00"}


def rows_of(compared, one):
    return [row for rows in tabulate_remedy(compared.summary, one).sections for row in rows]


def test_a_map_that_only_one_model_has_is_not_compared_and_that_is_said(compared):
    first, head = compared.summary.remedies
    assert "frozen" in open_judgement(compared, "original").summary.maps
    assert "frozen" not in open_judgement(compared, "01-skip").summary.maps
    assert "frozen" not in first.skill
    assert "legrad" not in head.skill
    tables = [tabulate_remedy(compared.summary, one) for one in (first, head)]
    assert tables[0].caption.endswith("The original alone has: Frozen trace.")
    assert tables[1].caption.endswith("The original alone has: LeGrad; Frozen trace.")


@pytest.mark.parametrize(
    ("skills", "labels"),
    [
        ({"attention": (0.1, 0.5), "legrad": (0.3, 0.2)}, [", best after", ", best before"]),
        ({"attention": (0.1, 0.5), "legrad": (0.3, 0.6)}, ["", ", best before and after"]),
        ({"attention": (nan, 0.5), "legrad": (0.3, nan)}, [", best after", ", best before"]),
        ({}, []),
    ],
)
def test_the_best_maps_before_and_after_are_named(compared, skills, labels):
    change = compared.summary.remedies[0].skill["attention"]
    made = {
        name: replace(change, before=Estimate(before, None), after=Estimate(after, None))
        for name, (before, after) in skills.items()
    }
    rows = rows_of(compared, replace(compared.summary.remedies[0], skill=made))
    found = [row[0] for row in rows if row[0].startswith("skill of")]
    titles = ["skill of Attention", "skill of LeGrad"]
    assert found == [title + label for title, label in zip(titles, labels, strict=False)]


def test_overview_text_and_report_say_what_was_measured(compared):
    overview = tabulate_overview(compared.summary)
    assert {"one-shot top-1", "skill of attention"} <= set(overview.columns)
    assert all(len(row) == len(overview.columns) for rows in overview.sections for row in rows)
    assert "one-shot: by draw" in overview.caption
    results = load_results([compared.folder.parent])
    kinds = [result.kind for result in results]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        **dict.fromkeys(("audit", "one-shot", "judgement"), len(FOLDERS)),
        "remedies": 1,
    }
    page = compared._repr_html_()
    assert "one-shot: 4 classes, 15 images, 100 draws, chance 0.25" in page
    assert f"maps judged on {NUM_JUDGED} images, target self, removal shuffle" in page
    assert "one-shot top-1, patches alone" in page
    assert "The original alone has: LeGrad; Frozen trace." in page


def test_scores_of_other_images_are_not_compared(compared, tmp_path):
    other = shutil.copytree(compared.folder.parent / "one-shot" / "original", tmp_path / "other")
    told = json.loads((other / "provenance.json").read_text()) | {"drawn": "0"}
    (other / "provenance.json").write_text(json.dumps(told))
    with pytest.raises(ResultError, match="drew other images"):
        compare_one_shots(open_one_shot(compared, "original"), OneShotResult.load(other))
    fewer = shutil.copytree(compared.folder.parent / "judge" / "original", tmp_path / "fewer")
    table = pq.read_table(fewer / "scores.parquet")
    left = np.array(table["image_id"].to_pylist()) != table["image_id"][0].as_py()
    pq.write_table(table.filter(left), fewer / "scores.parquet")
    with pytest.raises(ResultError, match="is of other images"):
        compare_judgements(open_judgement(compared, "original"), JudgeResult.load(fewer))


def test_progress_counts_the_images_of_all_runs(compared, told):
    total = len(FOLDERS) * (9 + 15 + NUM_JUDGED)
    assert told == sorted(told)
    assert told[-1] == (total, total)


def test_what_is_finished_is_kept(compared, photos, classes, few_maps, tmp_path, monkeypatch):
    out = shutil.copytree(compared.folder.parent, tmp_path / "copy")
    asked = {"one_shot": classes, "judge": NUM_JUDGED, "out": out, "resume": True, **SETTINGS}
    for name in ("judge_run.JudgeRun", "one_shot_loop._OneShotRun"):
        monkeypatch.setattr(f"vitscope.runs.{name}.execute", pytest.fail)
    again = compare_remedies(tiny_vit(), photos, ["skip"], **asked)
    (one,), (other, _) = again.summary.remedies, compared.summary.remedies
    assert replace(one, time_ratio=1) == replace(other, time_ratio=1)
    with pytest.raises(UsageError, match="the images differ"):
        compare_remedies(tiny_vit(), photos, ["skip"], **asked | {"judge": 2})


def test_overwriting_leaves_no_scores_of_the_earlier_comparison(compared, photos, tmp_path):
    out = shutil.copytree(compared.folder.parent, tmp_path / "copy")
    (out / "judge" / "01-skip" / "mine.txt").write_text("kept")
    compare_remedies(tiny_vit(), photos, ["zero"], out=out, overwrite=True, limit=3, **SETTINGS)
    left = {path.parent.relative_to(out).as_posix() for path in out.rglob("summary.json")}
    # What holds something else is no result of ours alone.
    assert left == {"01-zero", "comparison", "original", "judge/01-skip"}
    assert not (out / "one-shot").exists()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"judge": 1}, "judge 1: expected 0 or at least 2 images"),
        ({"judge": -3}, "judge -3: expected 0 or at least 2 images"),
        ({"judge": "some"}, "judge was given as str"),
        ({"judge": 5, "limit": 1}, "there are 1: judge two or more"),
        ({"judge": 5, "dtype": "bfloat16"}, "maps cannot be judged in bfloat16"),
        ({"one_shot": "photos"}, "has no subfolders"),
        ({"one_shot": "absent"}, "does not exist"),
    ],
)
def test_wrong_use_is_told_before_anything_runs(photos, asked, told, monkeypatch):
    monkeypatch.setattr("vitscope.runs.remedy_loop._Comparison.execute", pytest.fail)
    if "one_shot" in asked:
        asked = {"one_shot": photos.parent / asked["one_shot"].replace("photos", photos.name)}
    with pytest.raises(UsageError, match=told):
        compare_remedies(tiny_vit(), photos, ["zero"], **{**SETTINGS, **asked})
