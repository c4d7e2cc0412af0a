"""Explaining with a judgement: which map is drawn, and the score of each map on its image."""

import csv
import json
import math
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from audits import read_strictly, tiny_vit
from images import write_images
from vitscope import Explanation, JudgeResult, audit, explain, judge
from vitscope.cli import main
from vitscope.errors import UsageError
from vitscope.figures.draw import draw_explanations
from vitscope.figures.rendering.maps import plot_explanations
from vitscope.figures.saved import ModelResult
from vitscope.files.json_files import read_json, write_json
from vitscope.maps.targets import explain_direction
from vitscope.report.embedded_images import collect_images
from vitscope.report.page import render_report
from vitscope.terminal import make_explanation_report

SMALL = {"size": 16, "device": "cpu"}
BOTH = {"maps": ["traced", "share"], "gallery": 0, **SMALL}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 3)


@pytest.fixture(scope="module")
def judged(folder):
    return judge(tiny_vit(), folder, **BOTH)


@pytest.fixture
def decided(judged, tmp_path):
    """The same, as if it could tell."""
    changed = judged.save(tmp_path / "decided" / "dinov2-small")
    path = changed.folder / "summary.json"
    content = read_json(path)
    content["verdict"] = {"best": "share", "text": "publish Share of the row: skill 0.5"}
    path.unlink()
    write_json(path, content)
    return JudgeResult.load(changed.folder)


def print_report(summary):
    out = StringIO()
    Console(width=999, file=out).print(make_explanation_report(summary))
    return out.getvalue()


def words_of(figure):
    return " ".join(" ".join(text.get_text() for text in figure.texts).split())


def test_an_image_is_cropped_as_the_judged_ones_were(judged, folder, tmp_path):
    (first, *_) = sorted(folder.iterdir())
    with Image.open(first) as image:
        image.resize((120, 40)).save(tmp_path / "wide.png")
    alone = explain(tiny_vit(), tmp_path / "wide.png", **SMALL)
    beside = explain(tiny_vit(), tmp_path / "wide.png", judged=judged, references=folder)
    found = [one.summary.images[0] for one in (alone, beside)]
    assert [(one.framing, one.input_size) for one in found] == [
        ("whole", (16, 48)),
        ("cropped", (16, 16)),
    ]


def test_the_best_judged_map_is_drawn_beside_attention(folder, decided):
    found = explain(tiny_vit(), folder, judged=decided, references=folder, **SMALL)
    used = read_strictly(found).judgement
    assert (used.drawn, used.verdict) == ("share", decided.summary.verdict)
    assert used.folder == str(decided.folder)
    for image in found.summary.images:
        assert list(image.maps) == list(image.skill) == list(image.gap) == ["attention", "share"]
    words = words_of(plot_explanations([found], found.image_ids[0]))
    assert "Judgement: publish Share of the row: skill 0.5." in words
    assert "not recommended" not in words
    # It fails on the second image, which says so instead.
    assert [image.skill["share"] < 0 for image in found.summary.images] == [False, True, False]
    failing = words_of(plot_explanations([found], found.image_ids[1]))
    assert "On this image Share of the row is worse than random orders" in failing
    assert "publish Share" not in failing
    (gallery,) = collect_images([ModelResult(found)])["galleries"]
    assert "Judgement: publish Share of the row" in gallery["note"]
    told = [image["told"].count("do not publish it of this image") for image in gallery["images"]]
    assert told == [0, 1, 0]
    second = f"{Path(found.summary.images[1].path).name}: on this image Share of the row is worse"
    page, _, _ = render_report([ModelResult(found)]).partition("There is no audit")
    # Few images give no verdict.
    assert "Cannot tell: 3 of 3 images." in page
    assert str(folder) not in page
    assert page.count(found.summary.images[0].verdict.text) == 3
    for text in (print_report(found.summary), page, found._repr_html_()):
        assert text.count(second) == text.count("judgement: publish Share of the row") == 1


def test_the_folder_of_a_model_is_not_shown(folder, tmp_path):
    moved = explain(tiny_vit(), folder, **SMALL).save(tmp_path / "moved")
    file = moved.folder / "summary.json"
    told = file.read_text().replace("with this model", "with --model /home/me/models/vit")
    file.write_text(told)
    moved = Explanation.load(moved.folder)
    assert "--model /home/me/models/vit" in print_report(moved.summary)  # to be typed
    page = render_report([ModelResult(moved)])
    drawn = words_of(plot_explanations([moved], moved.image_ids[0]))
    for text in (page, drawn):
        assert "--model vit" in text
        assert "/home/me" not in text


def test_with_a_reference_the_judged_map_itself_is_drawn(folder, decided, tmp_path):
    photos = write_images(tmp_path / "photos", 20, start=10)
    audited = audit(tiny_vit(), photos, gallery=0, **SMALL)
    given = {"reference": audited, "references": folder, **SMALL}
    found = explain(tiny_vit(), folder / "0000.png", judged=decided, **given)
    assert list(found.read_image(0).shown) == ["attention", "share"]
    plain = explain(tiny_vit(), folder / "0000.png", score=True, **given)
    shown = ["attention", "contribution_norm", "centred_share"]
    assert list(plain.read_image(0).shown) == list(plain.summary.images[0].skill) == shown


def test_a_judgement_that_cannot_tell_says_so_wherever_its_map_is_drawn(
    folder, judged, tmp_path, monkeypatch, capsys
):
    first = max(("attention", "traced", "share"), key=lambda name: gap_of(judged, name))
    monkeypatch.setattr("vitscope.load_model", lambda _: tiny_vit())
    judged.save(tmp_path / "judged" / "dinov2-small")
    arguments = ["explain", str(folder / "0000.png"), "--model", "dinov2-small"]
    arguments += ["--references", str(folder), "--judged", str(tmp_path / "judged")]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "judgement: cannot tell which map to publish from 3 images" in printed
    assert "it is drawn, but not recommended" in printed
    assert "Maps scored on each image" in printed
    content = json.loads((tmp_path / "out/dinov2-small/summary.json").read_text())
    assert content["judgement"]["drawn"] == first
    assert content["judgement"]["verdict"]["best"] is None
    assert main([*arguments, "--judged", str(folder), "--out", str(tmp_path / "x")]) == 2


def gap_of(judged, name):
    return judged.summary.removals["shuffle"][name].scores["gap"].value


def test_named_maps_are_drawn_and_scored(folder, decided):
    image = folder / "0001.png"
    found = explain(
        tiny_vit(), image, maps=["rollout"], judged=str(decided.folder), references=folder, **SMALL
    )
    (one,) = found.summary.images
    assert list(one.skill) == ["rollout"]
    assert found.summary.judgement.drawn is None


def test_a_score_is_that_of_the_judge(tmp_path):
    vit = tiny_vit()
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    judged = judge(vit, images, preprocessed=True, maps=["traced", "share"], device="cpu")
    rows = {(row["image_id"], row["map"]): row for row in judged.scores.to_pylist()}
    maps = ["attention", "share", "traced"]
    found = explain(
        vit, images, preprocessed=True, references=images, maps=maps, score=True, device="cpu"
    )
    assert found.summary.scoring.removal == "shuffle"
    assert found.summary.scoring.target == "self"
    for image in found.summary.images:
        for name in maps:
            row = rows[image.image_id, name]
            assert image.gap[name] == pytest.approx(row["gap"], abs=1e-5)
            assert image.skill[name] == pytest.approx(row["skill"], abs=1e-4, nan_ok=True)
    assert any(not math.isnan(image.skill["traced"]) for image in found.summary.images)


def test_nothing_is_scored_unless_asked_for(folder):
    found = explain(tiny_vit(), folder, **SMALL)
    assert found.summary.scoring is None
    assert found.summary.judgement is None
    assert all(not image.skill and not image.gap for image in found.summary.images)


def test_without_references_patches_are_dropped(folder, tmp_path):
    found = explain(tiny_vit(), folder / "0000.png", score=True, **SMALL)
    assert vars(found.summary.scoring) == {"removal": "drop", "target": "cosine"}
    image = found.read_image(0)
    assert set(image.gap) == {"attention", "contribution_norm", "share"}
    # Under each map, in the table beside the figure, in the report and in notebooks.
    words = words_of(plot_explanations([found], found.image_ids[0])).replace("−", "-")
    for gap in image.gap.values():
        assert f"gap {gap:.2f}" in words
    draw_explanations([found], tmp_path / "figures", formats=["svg"])
    with (tmp_path / "figures" / "0000.csv").open(newline="") as file:
        rows = {(row["panel"], row["other"]): row["value"] for row in csv.DictReader(file)}
    assert {name: float(rows[name, "gap"]) for name in image.gap} == pytest.approx(image.gap)
    (gallery,) = collect_images([ModelResult(found)])["galleries"]
    assert set(gallery["images"][0]["scores"]) == set(image.gap)
    assert "removal drop" in gallery["note"]
    assert "Maps scored on each image" in found._repr_html_()


def test_a_judgement_of_another_model_layer_size_or_target_is_refused(folder, judged, tmp_path):
    def refuse(told, vit=None, **settings):
        given = {"judged": judged, "references": folder, **SMALL} | settings
        with pytest.raises(UsageError, match=told):
            explain(vit or tiny_vit(), folder, **given)

    refuse("with other weights", tiny_vit("dinov2"))
    hooked = tiny_vit()
    hooked.module.blocks[0].register_forward_hook(lambda *_: None)
    refuse("whether its model is the same cannot be verified", hooked)
    refuse("is of layer 1, not 0", layer=0)
    refuse("was made at 16 x 16 px, the images are prepared at 24 x 24 px", size=24)
    refuse("explain the target self", target="cosine")
    refuse("explain the target self", target=explain_direction(torch.ones(32)))
    refuse("give references, such as the judged images", references=None)
    cosine = judge(tiny_vit(), folder, target="cosine", maps=["share"], gallery=0, limit=2, **SMALL)
    refuse("the mean of others: give references", judged=cosine, references=None)
    refuse("judged was given as int", judged=3)
    vector = judge(tiny_vit(), folder, target=torch.ones(32), limit=2, **BOTH)
    refuse("was not given", judged=vector)
    refuse("was not given", judged=vector, target=torch.arange(32.0))
    given = {"judged": vector, "target": torch.ones(32), "maps": ["attention"], **SMALL}
    used = explain(tiny_vit(), folder / "0000.png", **given)
    assert used.summary.scoring.target == vector.summary.target
    assert used.summary.scoring.removal == "drop"


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("dinov2_reg", {"dtype": "bfloat16"}, "the score of a map compares numbers"),
        ("dinov2_reg", {"maps": ["random"]}, "always judged: leave it out"),
        ("dinov2_reg", {"target": "self"}, "give some"),
        ("siglip", {}, "read from the patches alone"),
    ],
)
def test_maps_that_cannot_be_scored_are_refused_before_the_work(folder, name, settings, told):
    with pytest.raises(UsageError, match=told):
        explain(tiny_vit(name), folder, score=True, device="cpu", **settings)
