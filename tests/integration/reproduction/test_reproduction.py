"""The whole reproduction in little: offline, resumable, and going on where a model fails."""

import csv
import re
from dataclasses import replace

import pytest
import torch

from audits import tiny_vit
from blank_figures import blank_figures
from reproductions import plan, silent
from vitscope.cli import main
from vitscope.config import ReproductionConfig, RunConfig
from vitscope.errors import ModelUnreachableError, UsageError
from vitscope.files.json_files import read_json
from vitscope.reproduction.planned_models import plan_reproduction
from vitscope.reproduction.run import Reproduction, choose_size
from vitscope.reproduction.smoke import write_smoke_images
from vitscope.reproduction.state import ReproductionState
from vitscope.weights.catalogue import CATALOGUE

CONFIG = ReproductionConfig(draws=4)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_smoke_images(tmp_path_factory.mktemp("smoke") / "images")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The command as a person runs it, on two recipes."""
    out = tmp_path_factory.mktemp("smoke") / "paper"
    arguments = ["reproduce", "--smoke", "--out", str(out), "--draws", "2"]
    arguments += ["--families", "dinov2,dinov2-reg", "--sizes", "s,g"]
    with blank_figures():
        code = main(arguments)
    return code, out


def test_smoke_leaves_every_figure_and_the_claims(smoke):
    code, out = smoke
    assert code == 0
    drawn = {path.name for path in (out / "figures").glob("*.png")}
    for number in ("2a", "2b", "3a", "3b", "4", "5a", "5b", "6", "7", "8", "9"):
        assert any(name.startswith(f"fig{number}_") for name in drawn), number
    for name in ("gram_ledger", "directions", "covariates", "high_norm_grid", "variance_share"):
        assert any(file.startswith(name) for file in drawn), name
    assert not (out / "figures-imagenet").exists()  # the same images over again
    assert (out / "claims" / "../report.html").read_text(encoding="utf-8").count("<h2>DINOv2") == 4
    assert "(../report.html)" in (out / "claims" / "claims.md").read_text(encoding="utf-8")
    assert not (out / "report-imagenet.html").exists()
    with (out / "claims" / "claims.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["answer"] for row in rows} <= {"agrees", "disagrees", "cannot tell"}
    of_imagenet = [row for row in rows if row["data"] == "ImageNet"]
    assert of_imagenet
    for row in of_imagenet:
        assert row["answer"] == "cannot tell"
        again = "the second set of images is the first over again" in row["reason"]
        assert again or "no audit on ImageNet of DINOv2 with registers L" in row["reason"]
    assert sum("the second set" in row["reason"] for row in of_imagenet) == 2
    # No model stands for iBOT or DeiT III here: nothing is claimed of them.
    assert all(row["answer"] == "cannot tell" for row in rows if "iBOT" in row["claim"])
    assert all(row["reason"] for row in rows if row["answer"] != "agrees")
    assert "NaN" not in (out / "claims" / "claims.json").read_text(encoding="utf-8")


def test_smoke_of_a_recipe_that_projects_its_output(tmp_path):
    arguments = ["--out", str(tmp_path / "paper"), "--draws", "2", "--families", "clip"]
    with blank_figures():
        assert main(["reproduce", "--smoke", *arguments, "--sizes", "l"]) == 0
    (path,) = (tmp_path / "paper" / "results").glob("*/images/summary.json")
    assert read_json(path)["model"]["recipe"] == "CLIP (OpenAI)"


def test_smoke_says_that_its_weights_are_random(smoke):
    _, out = smoke
    summaries = sorted((out / "results").glob("*/images/summary.json"))
    assert len(summaries) == 4
    for path in summaries:
        model = read_json(path)["model"]
        assert model["id"].startswith("smoke/")
        assert any("random weights" in note for note in model["notes"])


def test_planted_outliers_are_found_and_the_rest_is_clean(smoke):
    _, out = smoke

    def outliers(name):
        summary = read_json(out / "results" / name / "images" / "summary.json")
        return [row["fraction"] for row in summary["high_norm_tokens"]]

    assert outliers("dinov2-giant")[0] == pytest.approx(3 / 64)
    assert set(outliers("dinov2-small")) == set(outliers("dinov2-giant-reg")) == {None}


def test_a_model_that_fails_is_reported_and_the_others_go_on(images, tmp_path):
    def unreachable():
        raise ModelUnreachableError("no network")

    def broken():
        raise RuntimeError("of the library's\nown making")

    small, base = plan(sizes="s,b")
    models = [replace(small, load=unreachable), replace(small, name="odd", load=broken), base]
    run = Reproduction(models, tmp_path / "paper", CONFIG, images=images)
    outcomes = {(o.model, o.stage): o for o in run.execute(silent)}
    assert outcomes["dinov2-small-reg", "images"].status == "failed"
    assert outcomes["dinov2-small-reg", "images"].reason == "no network"
    assert "RuntimeError: of the library's own making" in outcomes["odd", "maps"].reason
    assert outcomes["dinov2-base-reg", "images"].status == "done"
    assert outcomes["dinov2-base-reg", "one-shot"].status == "skipped"
    assert "--imagenet" in outcomes["dinov2-base-reg", "one-shot"].reason
    saved = ReproductionState(tmp_path / "paper").outcomes
    assert list(saved) == list(outcomes.values())


def test_unlabelled_images_are_audited_and_not_classified(images, tmp_path):
    flat = images / "class-0"
    run = Reproduction(plan(), tmp_path / "paper", CONFIG, images=images, imagenet=flat)
    outcomes = {o.stage: o for o in run.execute(silent)}
    assert outcomes["imagenet"].status == "done"
    assert outcomes["one-shot"].status == "skipped"


def test_a_folder_of_something_else_is_left_alone(images, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="not empty"):
        Reproduction(plan(sizes="s,b"), tmp_path, CONFIG, images=images)


def test_choices_the_paper_left_open_reach_every_result(images, tmp_path):
    settings = replace(CONFIG, cls_term="registers", renormalize=True, size=(40, 48), num_images=24)
    run = Reproduction(plan(), tmp_path / "p", settings, images=images, imagenet=images)
    reasons = {outcome.stage: outcome.reason for outcome in run.execute(silent)}
    assert reasons["images"] == reasons["one-shot"] == ""
    assert reasons["maps"].startswith("without a reference audit: [CLS]'s attention to itself")
    for stage in run.stages:
        folder = run.result_folder("dinov2-small-reg", stage)
        config = read_json(folder / "provenance.json")["config"]
        assert config["size"] == [40, 48], stage
        if stage != "maps":
            assert (config["cls_term"], config["renormalize"]) == ("registers", True), stage
    summary = read_json(run.result_folder("dinov2-small-reg", "images") / "summary.json")
    assert set(summary["layers"][-1]["attention_mass"]) == {"registers", "patches"}
    assert summary["data"]["num_images"] == 24


def test_sizes_are_rounded_to_whole_patches_where_a_model_takes_them():
    asked = RunConfig(size=(45, 34))
    assert choose_size(tiny_vit("dinov2_reg"), asked) == (48, 32)
    assert choose_size(tiny_vit("vit"), asked) is None  # built for one size alone
    assert choose_size(tiny_vit("dinov2_reg"), RunConfig()) is None


def test_weights_fetched_by_hand_are_found_by_name(tmp_path):
    (before,) = plan_reproduction(["ibot"], ["s"], tmp_path)
    assert before.state == "by hand"
    timm = pytest.importorskip("timm")
    module = timm.create_model("vit_small_patch16_224", num_classes=0)
    torch.save(
        {"state_dict": {f"module.backbone.{k}": v for k, v in module.state_dict().items()}},
        tmp_path / "ibot-small.pth",
    )
    (planned,) = plan_reproduction(["ibot"], ["s"], tmp_path)
    assert (planned.state, planned.download_mb) == ("at hand", 0)
    vit = planned.load()
    assert (vit.info.id, vit.info.recipe, vit.info.size) == ("ibot-small", "iBOT", "S")
    with pytest.raises(UsageError, match="is not a folder"):
        plan_reproduction(["ibot"], ["s"], tmp_path / "nowhere")


def test_the_plan_is_shown_before_anything_runs(capsys, monkeypatch, images, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = main(
        [
            "reproduce",
            "--images",
            str(images),
            "--families",
            "dinov2-reg",
            "--sizes",
            "b",
            "--out",
            str(tmp_path / "paper"),
        ]
    )
    captured = capsys.readouterr()
    assert code == 1  # nothing can be fetched
    entry = CATALOGUE["dinov2-base-reg"]
    for words in ("The plan", entry.repository, f"{entry.download_mb} MB", "not cached", "0 of 2"):
        assert words in captured.out, words
    assert re.search(r"failed.*cannot be fetched", captured.out)
    assert "no model could be audited" in captured.err


def test_without_images_one_line_says_what_to_do(capsys):
    assert main(["reproduce"]) == 2
    assert "--images FOLDER" in capsys.readouterr().err
