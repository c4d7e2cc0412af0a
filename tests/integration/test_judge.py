"""Judging maps of tiny models: numbers, resume, refusals, the command line."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from audits import assert_same_numbers, read_strictly, tiny_vit
from images import write_images
from vitscope import JudgeConfig, JudgeResult, explain, judge, wrap_model
from vitscope.adapters.timm import make_timm_adapter
from vitscope.cli import main
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.maps.targets import explain_direction
from vitscope.maps.token_maps import map_tokens
from vitscope.remedies.registry import parse_remedy
from vitscope.testing.tiny_timm import AVERAGED_TIMM, TINY_TIMM

NUM_IMAGES = 5
FEW = {"maps": ["traced"], "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), NUM_IMAGES)


@pytest.fixture(scope="module")
def result(folder):
    return judge(tiny_vit("vit"), folder, removals=["shuffle", "drop"], gallery=2, **FEW)


def read_rows(result):
    return {(row["image_id"], row["removal"], row["map"]): row for row in result.scores.to_pylist()}


def test_a_summary_is_the_means_of_its_table(result):
    summary, rows = read_strictly(result), read_rows(result)
    assert list(summary.removals) == ["shuffle", "drop"]
    names = ["attention", "centre", "edges", "traced"]
    assert list(summary.maps) == names
    for removal, maps in summary.removals.items():
        assert list(maps) == [*names, "oracle", "random"]
        for name, found in maps.items():
            own = [row for (_, *place), row in rows.items() if place == [removal, name]]
            assert len(own) == NUM_IMAGES
            for score, estimate in found.scores.items():
                values = np.array([row[score] for row in own])
                if score == "skill":  # a ratio of means
                    means = [maps[one].scores["gap"].value for one in (name, "random", "oracle")]
                    values = np.array([(means[0] - means[1]) / (means[2] - means[1])])
                if np.isnan(values).all():
                    assert np.isnan(estimate.value)
                else:
                    assert estimate.value == pytest.approx(np.nanmean(values), abs=1e-12)
            curve = np.mean([row["deletion_curve"] for row in own], axis=0)
            assert found.deletion == pytest.approx(curve)
        assert maps["oracle"].scores["skill"].value == pytest.approx(1)
        assert maps["random"].scores["skill"].value == pytest.approx(0)
        difference = maps["traced"].against_attention.difference.value
        gaps = [maps[name].scores["gap"].value for name in ("traced", "attention")]
        assert difference == pytest.approx(gaps[0] - gaps[1])
    assert summary.maps["traced"].seconds > 0


def test_the_ceiling_is_how_well_single_deletions_of_two_removals_agree(folder):
    vit = tiny_vit("vit")
    both = judge(vit, folder, removals=["mean", "drop"], maps=["single_deletion"], limit=2)
    rows = read_rows(both)
    found = {(one, removal): row["ceiling"] for (one, removal, _), row in rows.items()}
    for image in {image for image, _ in found}:
        assert found[image, "mean"] == pytest.approx(found[image, "drop"])
        # The map of single deletions by dropping is one of the two truths.
        assert rows[image, "mean", "single_deletion"]["rank"] == pytest.approx(
            found[image, "mean"], abs=1e-6
        )
    assert both.summary.ceiling["mean"].value == pytest.approx(np.mean([*found.values()]))
    assert judge(vit, folder, limit=2, **FEW).summary.ceiling == {}


def test_kept_images_have_the_maps_that_were_judged(result, folder):
    summary = result.summary
    assert len(summary.images) == 2
    vit = tiny_vit("vit")
    for index, image in enumerate(summary.images):
        maps = result.read_maps(index)
        assert list(maps.maps) == list(summary.maps)
        pixels = vit.preprocess(image.path).unsqueeze(0)
        expected = map_tokens(vit, pixels, ["attention"]).on_grid("attention")[0]
        np.testing.assert_allclose(maps["attention"], expected, atol=1e-6)
        own = read_rows(result)[image.image_id, "shuffle", "traced"]
        assert image.skill["traced"] == pytest.approx(own["skill"])
        assert maps.maps["traced"].about.total is not None


def test_no_number_of_an_image_depends_on_the_other_images(folder, result):
    vit = tiny_vit("vit")
    paths = sorted(folder.iterdir())
    some = judge(vit, paths[:3], references=folder, removals=["shuffle", "drop"], **FEW)
    assert some.summary.reference.source == "given"
    assert some.summary.reference.num_images == NUM_IMAGES
    whole, part = read_rows(result), read_rows(some)
    assert len({image for image, *_ in part}) == 3
    for place, row in part.items():
        assert_same_numbers(row, whole[place] | {"path": row["path"]}, 1e-5)


def test_too_few_images_name_no_map(result):
    verdict = result.summary.verdict
    assert verdict.best is None
    assert "5 images" in verdict.text
    assert "20" in verdict.text
    answers = [
        found.against_attention.answer
        for maps in result.summary.removals.values()
        for found in maps.values()
        if found.against_attention is not None
    ]
    assert set(answers) == {"cannot tell"}


def test_an_interrupted_run_resumes_to_the_same_numbers(folder, tmp_path, result):
    vit, out = tiny_vit("vit"), tmp_path / "judged"
    settings = {**FEW, "removals": ["shuffle", "drop"], "gallery": 2, "out": out}

    def stop(done, _):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        judge(vit, folder, on_progress=stop, resume=True, **settings)
    assert "of 5 images are kept: the same call resumes it" in "".join(caught.value.__notes__)
    assert not out.exists()
    with pytest.raises(UsageError, match="unfinished run"):
        judge(vit, folder, **settings)
    with pytest.raises(UsageError, match="seed"):
        judge(vit, folder, resume=True, seed=1, **settings)
    seen = []
    resumed = judge(vit, folder, resume=True, on_progress=lambda *now: seen.append(now), **settings)
    assert seen[-1] == (NUM_IMAGES, NUM_IMAGES)
    assert len(seen) < NUM_IMAGES
    for removal, maps in result.summary.removals.items():
        assert_same_numbers(maps, resumed.summary.removals[removal], 1e-12)
    assert JudgeResult.load(out).summary.verdict == result.summary.verdict
    with pytest.raises(UsageError, match="overwrite"):
        judge(vit, folder, **settings)
    seen.clear()
    kept = judge(vit, folder, resume=True, on_progress=lambda *now: seen.append(now), **settings)
    assert (kept.folder, seen) == (out, [])
    with pytest.raises(UsageError, match=r"holds a different result .seed was 0 and now is 1."):
        judge(vit, folder, resume=True, seed=1, **settings)
    with pytest.raises(UsageError, match="the references differ or have changed"):
        judge(vit, folder, resume=True, references=sorted(folder.iterdir())[:2], **settings)


def test_passes_are_told_within_an_image(folder):
    told, images = [], []
    judge(
        tiny_vit("vit"),
        folder,
        **FEW | {"limit": 2, "maps": ["tis"], "size": 32},
        on_progress=lambda done, _: images.append((done, len(told))),
        on_passes=lambda *now: told.append(now),
    )
    (of_first, total) = told[images[0][1] - 1]
    assert total == 2 * of_first
    first = [done for done, _ in told[: images[0][1]]]
    assert first == sorted(first)
    assert len(set(first)) > 5  # also while maps are made
    assert max(first) == of_first
    assert told[-1] == (total, total)


def test_masks_score_what_lies_on_objects(folder, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in folder.iterdir():
        with Image.open(path) as image:
            mask = np.zeros((image.height, image.width), np.uint8)
            mask[:, : image.width // 2] = 255
            Image.fromarray(mask).save(masks / path.name)
    found = judge(tiny_vit("vit"), folder, masks=masks, limit=2, **FEW).summary.plausibility
    for name in ("attention", "centre", "edges", "traced"):
        assert found[name]["mask_area"].value == pytest.approx(0.5, abs=0.01)
        assert 0 <= found[name]["mass_in_mask"].value <= 1
    # The centre's map is symmetric.
    assert found["centre"]["mass_in_mask"].value == pytest.approx(0.5, abs=0.01)


def test_an_image_without_a_mask_is_left_out_of_plausibility(folder, tmp_path):
    (first, second, *_) = sorted(folder.iterdir())
    with Image.open(first) as image:
        mask = np.full((image.height, image.width), 255, np.uint8)
        Image.fromarray(mask).save(tmp_path / first.name)
    made = judge(tiny_vit("vit"), [first, second], masks=tmp_path, **FEW)
    assert made.summary.data.num_images == 2
    assert made.summary.plausibility["traced"]["mask_area"].value == pytest.approx(1)
    Image.fromarray(mask[:-1]).save(tmp_path / first.name)
    made = judge(tiny_vit("vit"), [first, second], masks=tmp_path, **FEW)
    assert made.summary.data.num_images == 1
    ((path, reason),) = made.failures
    assert path.endswith(first.name)
    assert "mask" in reason


def test_sanity_tells_a_map_of_the_model_from_one_of_the_image(folder):
    found = judge(tiny_vit("vit"), folder, sanity=True, limit=2, gallery=0, **FEW).summary.sanity
    assert found["centre"]["randomised_all"].value == pytest.approx(1)
    assert found["attention"]["other_target"].value == pytest.approx(1)
    assert found["attention"]["randomised_all"].value < 0.9
    assert found["traced"]["other_target"].value < 0.9
    assert found["traced"]["sensitivity"].value > 0


def test_a_target_may_be_a_vector(folder):
    vit = tiny_vit("vit")
    width = vit.info.embed_dim
    made = judge(vit, folder, target=torch.ones(width), limit=2, **FEW)
    assert made.summary.target.startswith("vector ")
    other = judge(vit, folder, target=torch.arange(float(width)), limit=2, **FEW)
    assert other.summary.target != made.summary.target
    with pytest.raises(UsageError, match=f"expected {width}"):
        judge(vit, folder, target=torch.ones(width + 1), limit=2, **FEW)


def test_maps_that_do_not_exist_are_left_out_unless_asked_for(folder):
    vit = make_timm_adapter(TINY_TIMM["siglip"]())
    settings = {"limit": 2, "device": "cpu"}
    with pytest.raises(UnsupportedModelError, match="legrad"):
        judge(vit, folder, maps=["legrad"], **settings)
    averaged = wrap_model(AVERAGED_TIMM["vit_reg_gap"]())
    summary = judge(averaged, folder, maps=["traced", "rollout"], **settings).summary
    assert list(summary.maps) == ["centre", "edges", "traced", "rollout"]
    assert summary.layer is None
    assert any(note.startswith("attention is left out") for note in summary.model.notes)
    assert all(one.against_attention is None for one in summary.removals["shuffle"].values())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dtype": "bfloat16"}, "use float32"),
        ({"maps": ["nothing"]}, "no map is called 'nothing'"),
        ({"maps": "traced"}, "names such as"),
        ({"removals": ["burn"]}, "no removal is called 'burn'"),
        ({"removals": []}, "names such as"),
        ({"target": "beauty"}, "no target is called 'beauty'"),
        ({"renormalize": True}, "no effect"),
        ({"layer": 7}, "layer 7"),
        ({"limit": 1}, "judge two or more"),
        ({"maps": ["random"]}, "always judged"),
        ({"target": torch.zeros(32)}, "vector of zeros"),
        ({"target": "cosine", "maps": ["chefer"]}, "follows the gradient"),
    ],
)
def test_wrong_settings_are_refused(folder, settings, told):
    with pytest.raises(UsageError, match=told):
        judge(tiny_vit("vit"), folder, **settings)
    with pytest.raises(UsageError, match="out"):
        judge(tiny_vit("vit"), folder, resume=True)


def test_of_the_default_maps_those_that_a_target_has_not_are_left_out(folder):
    summary = judge(tiny_vit("vit"), folder, target="cosine", limit=2, gallery=0).summary
    assert "chefer" not in summary.maps
    assert {"attention", "rollout", "traced"} <= set(summary.maps)
    assert any(
        note.startswith("chefer is left out: chefer follows") for note in summary.model.notes
    )


def test_the_weights_are_hashed_once(folder, monkeypatch):
    hashed = []
    for module in ("vitscope.models.base", "vitscope.runs.model_run"):
        monkeypatch.setattr(f"{module}.hash_weights", lambda one: hashed.append(one) or "f00")
    judge(tiny_vit("vit"), folder, maps=["centre"], limit=2, gallery=0, device="cpu")
    assert len(hashed) == 1


def test_a_target_that_cannot_be_compared_is_not_resumed(folder, tmp_path):
    target = explain_direction(torch.ones(tiny_vit("vit").info.embed_dim))
    with pytest.raises(UsageError, match="resume needs a target by name or a vector"):
        judge(tiny_vit("vit"), folder, target=target, resume=True, out=tmp_path / "out")


def test_a_file_that_is_no_image_is_named(folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    made = judge(tiny_vit("vit"), [*sorted(folder.iterdir())[:2], tmp_path / "broken.png"], **FEW)
    assert made.summary.data.num_images == 2
    assert made.summary.data.num_failed == 1
    ((path, _),) = made.failures
    assert "broken.png" in path


def test_the_command_prints_a_table_and_one_sentence(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vitscope.load_model", lambda _: tiny_vit("vit"))
    out = tmp_path / "out"
    arguments = ["judge", str(folder), "--model", "dinov2-small", "--out", str(out)]
    assert main([*arguments, "--maps", "traced", "--limit", "2", "--removals", "drop"]) == 0
    printed = capsys.readouterr().out
    assert "Traced" in printed
    assert "verdict: cannot tell" in printed
    content = json.loads((out / "dinov2-small" / "summary.json").read_text())
    assert content["kind"] == "judgement"
    assert main([*arguments, "--maps", "traced", "--limit", "2"]) == 2
    assert main([*arguments, "--target", str(tmp_path / "absent.npy"), "--overwrite"]) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["judge", "--maps", "tracd"], "no map is called 'tracd'"),
        (["judge", "--maps", "oracle"], "are always judged"),
        (["judge", "--removals", "shuffel"], "no removal is called 'shuffel'"),
        (["judge", "--masks", "absent"], "cannot be searched for masks"),
        (["judge", "--references", "absent"], "absent"),
        (["judge", "--limit", "1"], "judge two or more"),
        (["explain", "--maps", "tracd"], "no map is called 'tracd'"),
        (["explain", "--maps", "traced", "--references", "absent"], "absent"),
        (["explain", "--judged", "absent"], "absent"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_loaded(
    folder, tmp_path, monkeypatch, capsys, arguments, told
):
    monkeypatch.setattr("vitscope.load_model", pytest.fail)
    command, *options = arguments
    out = ["--model", "dinov2-small", "--out", str(tmp_path / "out")]
    assert main([command, str(folder), *out, *options])
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("run", [judge, explain])
def test_unknown_maps_are_refused_before_a_model_is_loaded(folder, monkeypatch, run):
    monkeypatch.setattr("vitscope.adapters.registry.load_model", pytest.fail)
    with pytest.raises(UsageError, match="no map is called 'tracd'"):
        run("dinov2-small", folder, maps=["tracd"])


def test_config_and_keywords_are_combined(folder):
    made = judge(tiny_vit("vit"), folder, JudgeConfig(limit=2, removals=["mean"]), maps=["share"])
    assert list(made.summary.removals) == ["mean"]
    assert "share" in made.summary.maps
    assert pq.read_table(made.folder / "maps.parquet").num_rows == 2 * 4


def test_what_cannot_be_made_of_an_edited_model(folder):
    vit = tiny_vit("dinov2_reg")
    pixels = torch.stack([vit.preprocess(path) for path in sorted(folder.iterdir())[:3]])
    with parse_remedy("noise").fitted(vit, lambda: [pixels]).applied(vit) as edited:
        found = judge(edited, folder, limit=2, sanity=False).summary
        with pytest.raises(UnsupportedModelError, match="no trace goes through the edit noise"):
            map_tokens(edited, pixels[:1], ["traced"], references=pixels)
        with pytest.raises(UnsupportedModelError, match="another removal than 'drop'"):
            judge(edited, folder, limit=2, maps=["share"], removals=["drop"])
    assert "gradient_input" in found.maps
    assert not {"traced", "frozen"} & {*found.maps}
    assert any("no trace goes through the edit noise" in note for note in found.model.notes)
    with parse_remedy("skip:scale=0.5").applied(vit) as edited:
        found = judge(edited, folder, limit=2, sanity=False, removals=["shuffle", "drop"]).summary
    assert "traced" in found.maps
    assert any("it has no rule for many edits" in note for note in found.model.notes)
