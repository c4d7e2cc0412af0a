"""A reproduction resumes where it was left, and takes nothing for what it is not."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blank_figures import blank_figures
from reproductions import CONFIG, DONE, KEPT, NAME, plan, run, silent, start, statuses
from vitscope.errors import ModelUnreachableError, ResultError, UsageError, VitscopeError
from vitscope.files.json_files import read_json, write_json
from vitscope.files.locking import held_alone
from vitscope.models.base import hash_weights
from vitscope.reproduction.conclusion import draw_all_figures, judge_all_claims
from vitscope.reproduction.state import LOCK


def never_loaded():
    raise AssertionError("the model was loaded")


def test_what_is_finished_is_kept_without_loading_the_model(out, sets):
    (model,) = plan()
    unloadable = replace(model, load=never_loaded)
    assert statuses(out, sets, models=[unloadable]) == KEPT


def test_what_is_missing_is_made_again_and_the_rest_is_not_touched(out, sets):
    gone = out / "results" / NAME / "imagenet"
    before = (gone / "summary.json").read_bytes()
    untouched = (out / "results" / NAME / "maps" / "summary.json").stat().st_mtime_ns
    shutil.rmtree(gone)
    assert statuses(out, sets) == KEPT | {"imagenet": "done"}
    assert (gone / "summary.json").read_bytes() == before
    assert (out / "results" / NAME / "maps" / "summary.json").stat().st_mtime_ns == untouched


def test_the_second_set_is_remembered_over_a_run_without_it(out, sets):
    assert "imagenet" not in {s for s, o in run(out, sets, imagenet=None).items() if o.reason == ""}
    with pytest.raises(UsageError, match="imagenet was '16 images"):
        start(out, sets, imagenet="b")
    assert statuses(out, sets, imagenet="a") == KEPT


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ({"cls_term": "registers"}, "images"),
        ({"num_images": 30}, "images"),
        ({"layers": "all"}, "images"),
        ({"size": 40}, "images"),
        ({"draws": 3}, "one-shot"),
        ({"classifier": "both"}, "one-shot"),
        ({"limit": 2}, "one-shot"),
        ({"examples": 2}, "maps"),
    ],
)
def test_a_setting_refuses_the_stages_that_it_concerns(out, sets, change, stage):
    (name,) = change
    with pytest.raises(UsageError, match=rf"holds {stage} of {NAME} .*\({name} was "):
        start(out, sets, replace(CONFIG, **change))
    # And none but those: of a stage that is not finished any setting may be another.
    concerned = {"images": ["images", "imagenet"]}.get(stage, [stage])
    if name in {"cls_term", "size"}:
        concerned = [*DONE][: 3 if name == "cls_term" else 4]
    for each in concerned:
        shutil.rmtree(out / "results" / NAME / each)
    start(out, sets, replace(CONFIG, **change))


def test_what_changes_no_number_refuses_nothing(out, sets):
    other = replace(CONFIG, batch_size=5, readout="values")
    assert statuses(out, sets, other) == KEPT


def test_a_image_exchanged_for_one_of_its_size_is_noticed(out, sets, tmp_path):
    changed = Path(shutil.copytree(sets / "main", tmp_path / "changed"))
    assert statuses(out, sets, images=changed) == KEPT  # a set may move
    image = changed / "class-0" / "00.png"
    data = bytearray(image.read_bytes())
    data[-20] ^= 1
    image.write_bytes(data)
    with pytest.raises(UsageError, match="images was '48 images"):
        start(out, sets, images=changed)


def damage_summary(folder):
    (folder / "summary.json").write_text('{"schema_version": 5')


def damage_kind(folder):
    write_json(folder / "summary.json", read_json(folder / "summary.json") | {"kind": "audit"})


def lose_a_file(folder):
    next(path for path in folder.rglob("*.parquet")).unlink()


def change_the_weights_hash(folder):
    content = read_json(folder / "provenance.json") | {"weights_hash": "0" * 32}
    write_json(folder / "provenance.json", content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (damage_summary, "it is damaged"),
        (damage_kind, "it is damaged"),
        (lose_a_file, "it is damaged"),
        (change_the_weights_hash, "its model or weights are not the recorded ones"),
    ],
)
def test_a_damaged_result_is_made_again_and_that_is_told(out, sets, damage, told):
    damage(out / "results" / NAME / "one-shot")
    outcomes = run(out, sets)
    assert {s: o.status for s, o in outcomes.items()} == KEPT | {"one-shot": "done"}
    assert outcomes["one-shot"].reason.startswith(f"made again: {told}")
    assert statuses(out, sets) == KEPT


def test_a_file_of_the_users_in_a_damaged_result_is_not_removed(out, sets):
    letter = out / "results" / NAME / "one-shot" / "letter.txt"
    letter.write_text("dear")
    damage_summary(letter.parent)
    outcomes = run(out, sets)
    assert outcomes["one-shot"].status == "failed"
    assert "move them away" in outcomes["one-shot"].reason
    assert letter.read_text() == "dear"


def test_a_result_that_nobody_recorded_is_not_taken_for_ones_own(out, sets):
    home = out / "results" / "dinov2-base-reg"
    shutil.copytree(out / "results" / NAME / "one-shot", home / "one-shot")
    outcomes = start(out, sets, models=plan(sizes="b")).execute(silent)
    foreign = next(o for o in outcomes if o.stage == "one-shot")
    assert (foreign.status, "move them away" in foreign.reason) == ("failed", True)


def test_weights_from_another_file_make_everything_again(out, sets):
    (model,) = plan()
    outcomes = run(out, sets, models=[replace(model, weights="ibot.pth (5 bytes)")])
    assert {stage: o.status for stage, o in outcomes.items()} == DONE
    assert "are now of ibot.pth (5 bytes)" in outcomes["images"].reason
    # Where no file is at hand there is nothing to hold against what is finished.
    assert statuses(out, sets, models=[replace(model, weights="", load=never_loaded)]) == KEPT


def test_other_weights_from_the_same_place_make_everything_again(out, sets):
    (model,) = plan()
    (base,) = plan(sizes="b")
    other = replace(model, load=base.load)
    assert statuses(out, sets, models=[other]) == KEPT  # nothing is loaded, so nothing is noticed
    shutil.rmtree(out / "results" / NAME / "imagenet")
    outcomes = run(out, sets, models=[other])
    assert {stage: o.status for stage, o in outcomes.items()} == DONE
    assert outcomes["images"].reason == "made again: the model's weights have changed"


def fail_audits_of(monkeypatch, name):
    import vitscope.reproduction.run as module

    real = module.audit

    def audit(vit, images, *args, **kwargs):
        if Path(images).name == name:
            raise VitscopeError("out of memory")
        return real(vit, images, *args, **kwargs)

    monkeypatch.setattr(module, "audit", audit)


def read_reference(out):
    return read_json(out / "results" / NAME / "maps" / "summary.json")["reference"]


def test_maps_made_without_a_reference_are_made_again_with_one(sets, tmp_path, monkeypatch):
    out = tmp_path / "paper"
    with monkeypatch.context() as patched:
        fail_audits_of(patched, "main")
        first = run(out, sets, imagenet=None)
    assert (first["images"].status, first["maps"].status) == ("failed", "done")
    assert first["maps"].reason == "without a reference audit: there is none"
    assert read_reference(out) is None
    second = run(out, sets, imagenet=None)
    assert (second["images"].status, second["maps"].status) == ("done", "done")
    assert "an audit to compare it with exists now" in second["maps"].reason
    assert read_reference(out)["num_images"] == 48


def test_maps_are_kept_where_only_their_reference_was_lost(out, sets, monkeypatch):
    shutil.rmtree(out / "results" / NAME / "images")
    fail_audits_of(monkeypatch, "main")
    assert statuses(out, sets) == KEPT | {"images": "failed"}


def test_few_images_are_no_reference(sets, tmp_path):
    outcomes = run(tmp_path / "paper", sets, images="few", imagenet=None)
    assert outcomes["maps"].status == "done"
    assert "it has 8 images, and means need 20" in outcomes["maps"].reason
    assert statuses(tmp_path / "paper", sets, images="few", imagenet=None)["maps"] == "kept"


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": 1, "stages": {}}', "version 9", "path"])
def test_a_damaged_memory_is_one_clear_line(out, sets, damage):
    path = out / "reproduction.json"
    content = read_json(path)
    if damage == "version 9":
        write_json(path, content | {"version": 9})
    elif damage == "path":
        write_json(path, content | {"stages": {"../../x": {}}})
    else:
        path.write_text(damage)
    with pytest.raises(ResultError, match=r"cannot be read, so .* choose another folder"):
        start(out, sets)


def test_a_full_disk_loses_nothing_that_is_finished(sets, tmp_path, monkeypatch):
    import vitscope.reproduction.state as module

    out = tmp_path / "paper"
    real, calls = module.replace_json, []

    def fill_up(path, content):
        calls.append(path)
        if len(calls) > 2:  # before the second stage's result
            raise VitscopeError("cannot write: No space left on device")
        real(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(module, "replace_json", fill_up)
        with pytest.raises(VitscopeError, match="No space left"):
            start(out, sets).execute(silent)
    assert statuses(out, sets) == DONE | {"images": "kept", "imagenet": "kept"}


@pytest.mark.parametrize("exchanged", [False, True])
def test_finished_shards_are_gone_on_with_if_they_are_of_the_same(
    sets, tmp_path, monkeypatch, exchanged
):
    monkeypatch.setattr("vitscope.runs.audit_run._SHARD_IMAGES", 3)
    monkeypatch.setattr("vitscope.runs.audit_run._SHARD_BATCHES", 0)
    images = shutil.copytree(sets / "main", tmp_path / "sets" / "main")
    config = replace(CONFIG, batch_size=3)

    def reproduce(on_stage):
        work = start(tmp_path / "paper", tmp_path / "sets", config, imagenet=None)
        return work.execute(on_stage)

    def interrupt(*_stage):
        def advance(done, _):
            if done == 9:
                raise KeyboardInterrupt

        return advance

    with pytest.raises(KeyboardInterrupt):
        reproduce(interrupt)
    if exchanged:
        first, last = (sorted(images.rglob("*.*"))[k] for k in (0, -1))
        shutil.copyfile(last, first)
    seen = []
    outcomes = reproduce(lambda _, stage: lambda *progress: seen.append((stage, *progress)))
    assert {o.status for o in outcomes if o.stage == "images"} == {"done"}
    assert min(done for stage, done, _ in seen if stage == "images") == (3 if exchanged else 6)


def test_maps_that_were_interrupted_are_resumed(out, sets):
    shutil.rmtree(out / "results" / NAME / "maps")
    seen = []

    def interrupt(*_stage):
        def advance(*progress):
            seen.append(progress)
            if len(seen) == 2:
                raise KeyboardInterrupt

        return advance

    config = replace(CONFIG, examples=3)
    with pytest.raises(KeyboardInterrupt):
        start(out, sets, config).execute(interrupt)
    assert statuses(out, sets, config)["maps"] == "done"


def test_remains_of_a_killed_run_are_removed(out, sets):
    home = out / "results" / NAME
    shutil.rmtree(home / "maps")
    for name in (".maps.partial-0123456789abcdef", ".maps.old-0123456789abcdef"):
        (home / name / "maps").mkdir(parents=True)
    (out / ".reproduction.json.partial-0123456789abcdef").write_text("{")
    (out / ".figures.partial-0123456789abcdef").mkdir()
    (home / ".maps").mkdir()  # of somebody else
    assert statuses(out, sets)["maps"] == "done"
    assert {path.name for path in home.iterdir()} == {*DONE, ".maps"}
    assert {path.name for path in out.iterdir()} == {
        ".reproduction.lock",
        "reproduction.json",
        "results",
    }


def test_two_runs_do_not_write_into_one_folder(out, sets):
    second = start(out, sets)
    with held_alone(out, LOCK), pytest.raises(UsageError, match="another run is using"):
        second.execute(silent)
    assert {o.status for o in second.execute(silent)} == {"kept"}


def test_claims_and_figures_are_of_every_finished_model(out, sets):
    def unreachable():
        raise ModelUnreachableError("no network")

    (large,) = plan(sizes="l")
    later = start(out, sets, models=[replace(large, load=unreachable)])
    later.execute(silent)
    finding = next(f for f in judge_all_claims(later) if "small and base attend" in f.claim)
    assert "S 0." in finding.measured
    with blank_figures():
        folder = draw_all_figures(later, "", ["png"]).folder
    shown = {
        result["model"]
        for figure in read_json(folder / "index.json")["figures"]
        for result in figure["results"]
    }
    assert shown == {f"smoke/{NAME}"}
    # A set that is not given now is not claimed of.
    without = start(out, sets, models=[large], imagenet=None)
    findings = [f for f in judge_all_claims(without) if f.data == "ImageNet"]
    of_small = [f for f in findings if "small's and base's" in f.claim]
    assert {f.measured for f in findings} == {"not measured"}
    assert [f.reason.startswith("no second set of images was given") for f in of_small] == [True]


def test_one_set_given_twice_is_audited_once(sets, tmp_path):
    twin = Path(shutil.copytree(sets / "main", tmp_path / "twin"))
    given_twice = start(tmp_path / "paper", sets, imagenet=twin)
    assert given_twice.stages == ("images", "one-shot", "maps")
    assert "first over again" in given_twice.why_left_out("imagenet")


def test_masks_and_layers_reach_the_audit_of_the_main_set(sets, tmp_path):
    flat = tmp_path / "flat"
    masks = tmp_path / "masks"
    for folder in (flat, masks):
        folder.mkdir()
    for path in (sets / "main" / "class-0").iterdir():
        shutil.copy(path, flat / path.name)
        with Image.open(path) as image:
            numbers = np.zeros(image.size[::-1], dtype=np.uint8)
        numbers[: numbers.shape[0] // 2] = 1
        Image.fromarray(numbers).save(masks / path.name)
    config = replace(CONFIG, masks=str(masks), layers="all")
    out = tmp_path / "paper"
    outcomes = run(out, sets, config, images=flat)
    assert {stage: o.status for stage, o in outcomes.items()} == DONE
    summary = read_json(out / "results" / NAME / "images" / "summary.json")
    assert len(summary["layers"]) == summary["model"]["depth"]
    assert "num_segments" in summary["covariates"]["distributions"]
    assert summary["interdependence"]["over_layers"] is not None
    second = read_json(out / "results" / NAME / "imagenet" / "summary.json")
    assert "num_segments" not in second["covariates"]["distributions"]
    os.utime(next(masks.iterdir()), ns=(1, 1))
    with pytest.raises(UsageError, match="masks was '8 masks"):
        start(out, sets, config, images=flat)
    with pytest.raises(UsageError, match="has no mask"):
        start(tmp_path / "other", sets, replace(CONFIG, masks=str(sets)))


def test_weights_are_hashed_once_a_model(sets, tmp_path, monkeypatch):
    import vitscope.models.base
    import vitscope.runs.model_run

    hashed = []

    def count(module):
        hashed.append(module)
        return hash_weights(module)

    for module in (vitscope.runs.model_run, vitscope.models.base):
        monkeypatch.setattr(module, "hash_weights", count)
    assert statuses(tmp_path / "paper", sets) == DONE
    assert len(hashed) == 1
