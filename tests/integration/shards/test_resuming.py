"""An interrupted audit resumes to the same bits, or is refused; nothing is mixed or lost."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from audits import tiny_vit
from sharded import (
    CONFIG,
    NUM_IMAGES,
    SeenProgress,
    assert_identical,
    read_files,
    stop_after,
)
from vitscope import AuditResult, audit
from vitscope.errors import UsageError, VitscopeError
from vitscope.files.json_files import write_json
from vitscope.files.locking import held_alone
from vitscope.files.workspace import Workspace, place_of
from vitscope.images.image_set import ImageSet


@pytest.mark.parametrize("after", [5, 9, 21])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), VitscopeError("no disk")])
def test_an_interrupted_audit_goes_on_to_the_same_bits(images, whole, tmp_path, after, error):
    out, seen, resume = tmp_path / "r", SeenProgress(), after > 5
    stop = stop_after(after, error)
    with pytest.raises(type(error)) as stopped:
        audit(tiny_vit(), images, CONFIG, out=out, resume=resume, on_progress=stop)
    advice = "the same call resumes it" if resume else "give resume=True to resume"
    assert stopped.value.__notes__[-1] == f"{after // 4} of 6 shards are kept: {advice}"
    assert not out.exists()
    resumed = audit(
        tiny_vit(),
        images,
        CONFIG,
        out=out,
        resume=True,
        on_progress=seen,
    )
    assert_identical(resumed, whole)
    assert seen[0] == (after // 4 * 4, NUM_IMAGES)  # what was finished was not done again
    assert seen[-1] == (NUM_IMAGES, NUM_IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_nothing_stays_of_a_run_that_finished_no_shard(images, tmp_path):
    out = tmp_path / "new" / "r"
    with pytest.raises(KeyboardInterrupt):
        audit(tiny_vit(), images, CONFIG, out=out, on_progress=stop_after(1, KeyboardInterrupt()))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def unfinished(images, tmp_path):
    out = tmp_path / "r"
    with pytest.raises(KeyboardInterrupt):
        audit(tiny_vit(), images, CONFIG, out=out, on_progress=stop_after(9, KeyboardInterrupt()))
    return out


def test_an_unfinished_run_is_neither_mixed_nor_lost_unasked(images, unfinished, whole):
    with pytest.raises(UsageError, match=r"shards done: 2\): give resume=True to resume it"):
        audit(tiny_vit(), images, CONFIG, out=unfinished)
    other = replace(CONFIG, batch_size=2)
    with pytest.raises(UsageError, match="batch_size was 3 and now is 2"):
        audit(tiny_vit(), images, other, out=unfinished, resume=True)
    with pytest.raises(UsageError, match="the model's weights differ"):
        audit(tiny_vit("dinov2"), images, CONFIG, out=unfinished, resume=True)
    seen = SeenProgress()
    again = audit(
        tiny_vit(),
        images,
        CONFIG,
        out=unfinished,
        overwrite=True,
        on_progress=seen,
    )
    assert seen[0] == (3, NUM_IMAGES)
    assert_identical(again, whole)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 7}, "seed was 0 and now is 7"),
        ({"verified": 0.5}, "verified was"),
        ({"features": "drop"}, "features was"),
        ({"gallery": 0}, "gallery was"),
        ({"renormalize": True}, "result: renormalize was"),
        ({"cls_term": "registers"}, "groups was"),
        ({"layers": "all"}, "layers was"),
        ({"dtype": "float32"}, "dtype was"),
        ({"size": 48}, "model: grid was"),
        ({"draft": True}, "preprocessing: draft was"),
        ({"shard_size": 5}, "shard_size was"),
        ({"shard": (1, 2)}, "num_images was"),
        ({"limit": 21}, "num_images was 22 and now is 21"),
    ],
)
def test_every_setting_that_changes_a_number_is_noticed(images, unfinished, change, told):
    with pytest.raises(UsageError, match=f"different unfinished run .*{told}"):
        audit(tiny_vit(), images, replace(CONFIG, **change), out=unfinished, resume=True)


def test_another_preprocessing_is_noticed(images, unfinished):
    vit = tiny_vit()
    other = replace(vit.preprocessing, mean=(0.1, 0.2, 0.3))
    image_set = ImageSet.from_sources(images, other)
    with pytest.raises(UsageError, match="preprocessing: mean was"):
        audit(vit, image_set, CONFIG, out=unfinished, resume=True)


@pytest.mark.parametrize("change", [Path.unlink, Path.touch, lambda p: p.write_bytes(b"new")])
def test_images_that_went_or_were_changed_are_noticed(images, tmp_path, change):
    folder, out = tmp_path / "images", tmp_path / "r"
    shutil.copytree(images, folder)
    with pytest.raises(KeyboardInterrupt):
        audit(tiny_vit(), folder, CONFIG, out=out, on_progress=stop_after(9, KeyboardInterrupt()))
    change(min(folder.iterdir()))
    with pytest.raises(UsageError, match=r"the images differ or have changed|num_images"):
        audit(tiny_vit(), folder, CONFIG, out=out, resume=True)


def test_what_the_machine_chose_is_kept(images, tmp_path, monkeypatch):
    chosen = replace(CONFIG, batch_size="auto")
    out = tmp_path / "r"
    with monkeypatch.context() as patched:
        patched.setattr("vitscope.runs.resources.choose_batch_size", lambda *_: 3)
        with pytest.raises(KeyboardInterrupt):
            audit(
                tiny_vit(),
                images,
                chosen,
                out=out,
                on_progress=stop_after(9, KeyboardInterrupt()),
            )
    # Less of it is free today.
    monkeypatch.setattr(
        "vitscope.runs.resources.choose_batch_size",
        lambda *given: given[2].batch_size if given[2].batch_size != "auto" else 2,
    )
    result = audit(tiny_vit(), images, chosen, out=out, resume=True)
    assert result.provenance["config"]["batch_size"] == 3
    assert result.provenance["plan"]["batch_size"] == 3


def test_a_precision_that_was_chosen_is_kept(images, tmp_path, monkeypatch):
    chosen = replace(CONFIG, dtype="auto", device="cpu")
    out = tmp_path / "r"
    choices = iter(["bfloat16", "float32", "float32"])
    monkeypatch.setattr("vitscope.runs.resources.choose_dtype", lambda *_: next(choices))
    with pytest.raises(KeyboardInterrupt):
        audit(tiny_vit(), images, chosen, out=out, on_progress=stop_after(9, KeyboardInterrupt()))
    result = audit(tiny_vit(), images, chosen, out=out, resume=True)
    assert result.summary.model.dtype == "bfloat16"
    audit(tiny_vit(), images, chosen, out=out, resume=True)  # as it is
    # Of another run the choice is void.
    other = audit(
        tiny_vit(), images, replace(chosen, layers="all"), out=out, resume=True, overwrite=True
    )
    assert other.summary.model.dtype == "float32"


def test_what_is_no_part_does_not_stand_in_the_way(images, unfinished, whole):
    parts = Workspace(place_of(unfinished)).part(0).parent
    (parts / ".DS_Store").write_bytes(b"x")
    assert_identical(audit(tiny_vit(), images, CONFIG, out=unfinished, resume=True), whole)


def test_a_replacement_that_was_interrupted_is_gone_on_with(images, whole, tmp_path):
    earlier = whole.save(tmp_path / "r")
    config, seen = replace(CONFIG, batch_size=2), SeenProgress()
    with pytest.raises(KeyboardInterrupt):
        audit(
            tiny_vit(),
            images,
            config,
            out=earlier.folder,
            overwrite=True,
            on_progress=stop_after(9, KeyboardInterrupt()),
        )
    assert_identical(earlier, whole)
    audit(
        tiny_vit(),
        images,
        config,
        out=earlier.folder,
        overwrite=True,
        resume=True,
        on_progress=seen,
    )
    assert seen[0] == (8, NUM_IMAGES)
    assert earlier.provenance["plan"]["batch_size"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_what_a_run_left_that_was_killed_at_its_end_is_removed(images, whole, tmp_path):
    copy = whole.save(tmp_path / "r")
    left = Workspace(place_of(copy.folder))
    with left.new_part(0):
        pass
    write_json(left.folder / "plan.json", copy.provenance["plan"] | {"run": copy.provenance["run"]})
    seen = SeenProgress()
    audit(
        tiny_vit(),
        images,
        CONFIG,
        out=copy.folder,
        resume=True,
        on_progress=seen,
    )
    assert not seen
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_the_result_comes_back_that_a_killed_run_was_replacing(images, whole, tmp_path):
    whole.save(tmp_path / ".r.old-0123456789abcdef" / "old")
    with pytest.raises(UsageError, match="already holds a result"):
        audit(tiny_vit(), images, CONFIG, out=tmp_path / "r")
    assert_identical(AuditResult.load(tmp_path / "r"), whole)


def test_resuming_what_is_finished_leaves_it(images, whole, tmp_path):
    copy = whole.save(tmp_path / "r")
    before = read_files(copy.folder)
    kept = audit(tiny_vit(), images, CONFIG, out=copy.folder, resume=True)
    assert read_files(kept.folder) == before
    with pytest.raises(
        UsageError, match=r"holds a different result \(batch_size was 3 and now is 2"
    ):
        audit(tiny_vit(), images, replace(CONFIG, batch_size=2), out=copy.folder, resume=True)


def test_two_runs_into_one_folder_are_refused(images, tmp_path):
    out = tmp_path / "r"
    with (
        held_alone(place_of(out), ".lock"),
        pytest.raises(UsageError, match=f"another run is using {out}"),
    ):
        audit(tiny_vit(), images, CONFIG, out=out)


def test_what_a_killed_process_was_writing_is_not_taken_for_a_part(images, unfinished, whole):
    half = Workspace(place_of(unfinished)).part(2).with_name(".000002.partial-x")
    half.mkdir()
    (half / "images.parquet").write_bytes(b"PAR1")
    assert_identical(audit(tiny_vit(), images, CONFIG, out=unfinished, resume=True), whole)
