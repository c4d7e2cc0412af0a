"""An audit in shards: what is finished stays; what comes out does not depend on how it was made."""

import errno
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audits import assert_same_numbers, numbers, tiny_vit
from pictures import write_pictures
from vitscope import AuditConfig, AuditResult, audit
from vitscope.errors import ImageReadError, ResultError, UsageError, VitscopeError
from vitscope.files.json_files import write_json
from vitscope.files.locking import held_alone
from vitscope.files.packing import unpack_folder
from vitscope.files.workspace import Workspace, place_of
from vitscope.pictures.images import ImageSet

NUM_PICTURES = 22
CONFIG = AuditConfig(batch_size=3, shard_size=4, dtype="float64", gallery=6)
PROVEN = replace(CONFIG, proven=1.0)
"""The same, and what is known of proven pictures alone does not depend on the batches."""

ROUNDING = 1e-9
"""Of float64 sums in another order, of numbers between 1e-3 and 1e3."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), NUM_PICTURES)


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    return audit(tiny_vit(), pictures, CONFIG, out=tmp_path_factory.mktemp("whole") / "r")


@pytest.fixture(scope="module")
def proven(pictures):
    return audit(tiny_vit(), pictures, PROVEN)


def read_files(folder):
    """Every file but the provenance, which holds times."""
    found = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del found[Path("provenance.json")]
    return found


def assert_identical(result, expected):
    ours, theirs = read_files(result.folder), read_files(expected.folder)
    assert ours.keys() == theirs.keys()
    # Archives hold the time at which they were written.
    different = [p for p in ours if ours[p] != theirs[p] and p.suffix != ".npz"]
    assert not different


def stop_after(count, error):
    def on_progress(done, _):
        if done >= count:
            raise error

    return on_progress


@pytest.mark.parametrize("after", [5, 9, 21])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), VitscopeError("no disk")])
def test_an_interrupted_audit_goes_on_to_the_same_bits(pictures, whole, tmp_path, after, error):
    out, seen = tmp_path / "r", []
    with pytest.raises(type(error)) as stopped:
        audit(tiny_vit(), pictures, CONFIG, out=out, on_progress=stop_after(after, error))
    assert f"{after // 4} of 6 shards are kept" in stopped.value.__notes__[-1]
    assert not out.exists()
    resumed = audit(
        tiny_vit(),
        pictures,
        CONFIG,
        out=out,
        resume=True,
        on_progress=lambda *progress: seen.append(progress),
    )
    assert_identical(resumed, whole)
    assert seen[0] == (after // 4 * 4, NUM_PICTURES)  # what was finished was not done again
    assert seen[-1] == (NUM_PICTURES, NUM_PICTURES)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_nothing_stays_of_a_run_that_finished_no_shard(pictures, tmp_path):
    out = tmp_path / "new" / "r"
    with pytest.raises(KeyboardInterrupt):
        audit(tiny_vit(), pictures, CONFIG, out=out, on_progress=stop_after(1, KeyboardInterrupt()))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def unfinished(pictures, tmp_path):
    out = tmp_path / "r"
    with pytest.raises(KeyboardInterrupt):
        audit(tiny_vit(), pictures, CONFIG, out=out, on_progress=stop_after(9, KeyboardInterrupt()))
    return out


def test_an_unfinished_run_is_neither_mixed_nor_lost_unasked(pictures, unfinished, whole):
    with pytest.raises(UsageError, match=r"shards done: 2\): add --resume to go on"):
        audit(tiny_vit(), pictures, CONFIG, out=unfinished)
    other = replace(CONFIG, batch_size=2)
    with pytest.raises(UsageError, match="batch_size was 3 and now is 2"):
        audit(tiny_vit(), pictures, other, out=unfinished, resume=True)
    with pytest.raises(UsageError, match="model: "):
        audit(tiny_vit("dinov2"), pictures, CONFIG, out=unfinished, resume=True)
    seen = []
    again = audit(
        tiny_vit(),
        pictures,
        CONFIG,
        out=unfinished,
        overwrite=True,
        on_progress=lambda *progress: seen.append(progress),
    )
    assert seen[0] == (3, NUM_PICTURES)
    assert_identical(again, whole)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 7}, "seed was 0 and now is 7"),
        ({"proven": 0.5}, "proven was"),
        ({"features": "drop"}, "features was"),
        ({"gallery": 0}, "gallery was"),
        ({"renormalize": True}, "result: renormalize was"),
        ({"cls_term": "registers"}, "groups was"),
        ({"layers": "all"}, "layers was"),
        ({"dtype": "float32"}, "dtype was"),
        ({"size": "48"}, "model: input_size was"),
        ({"draft": True}, "preprocessing: draft was"),
        ({"shard_size": 5}, "shard_size was"),
        ({"shard": "1/2"}, "num_pictures was"),
        ({"limit": 21}, "num_pictures was 22 and now is 21"),
    ],
)
def test_every_setting_that_changes_a_number_is_noticed(pictures, unfinished, change, told):
    with pytest.raises(UsageError, match=f"unfinished run of something else .*{told}"):
        audit(tiny_vit(), pictures, replace(CONFIG, **change), out=unfinished, resume=True)


def test_another_preprocessing_is_noticed(pictures, unfinished):
    vit = tiny_vit()
    other = replace(vit.preprocessing, mean=(0.1, 0.2, 0.3))
    images = ImageSet.from_sources(pictures, other)
    with pytest.raises(UsageError, match="preprocessing: mean was"):
        audit(vit, images, CONFIG, out=unfinished, resume=True)


@pytest.mark.parametrize("change", [Path.unlink, Path.touch, lambda p: p.write_bytes(b"new")])
def test_pictures_that_went_or_were_changed_are_noticed(pictures, tmp_path, change):
    folder, out = tmp_path / "pictures", tmp_path / "r"
    shutil.copytree(pictures, folder)
    with pytest.raises(KeyboardInterrupt):
        audit(tiny_vit(), folder, CONFIG, out=out, on_progress=stop_after(9, KeyboardInterrupt()))
    change(min(folder.iterdir()))
    with pytest.raises(UsageError, match=r"its pictures are others, or were changed|num_pictures"):
        audit(tiny_vit(), folder, CONFIG, out=out, resume=True)


def test_what_the_machine_chose_is_kept(pictures, tmp_path, monkeypatch):
    chosen = replace(CONFIG, batch_size="auto")
    out = tmp_path / "r"
    with monkeypatch.context() as patched:
        patched.setattr("vitscope.runs.resources.choose_batch_size", lambda *_: 3)
        with pytest.raises(KeyboardInterrupt):
            audit(
                tiny_vit(),
                pictures,
                chosen,
                out=out,
                on_progress=stop_after(9, KeyboardInterrupt()),
            )
    # Less of it is free today.
    monkeypatch.setattr(
        "vitscope.runs.resources.choose_batch_size",
        lambda *given: given[2].batch_size if given[2].batch_size != "auto" else 2,
    )
    result = audit(tiny_vit(), pictures, chosen, out=out, resume=True)
    assert result.provenance["config"]["batch_size"] == 3
    assert result.provenance["plan"]["batch_size"] == 3


def test_a_precision_that_was_chosen_is_kept(pictures, tmp_path, monkeypatch):
    chosen = replace(CONFIG, dtype="auto", device="cpu")
    out = tmp_path / "r"
    choices = iter(["bfloat16", "float32", "float32"])
    monkeypatch.setattr("vitscope.runs.resources.choose_dtype", lambda *_: next(choices))
    with pytest.raises(KeyboardInterrupt):
        audit(tiny_vit(), pictures, chosen, out=out, on_progress=stop_after(9, KeyboardInterrupt()))
    result = audit(tiny_vit(), pictures, chosen, out=out, resume=True)
    assert result.summary["model"]["dtype"] == "bfloat16"
    audit(tiny_vit(), pictures, chosen, out=out, resume=True)  # as it is
    # Of another run the choice is void.
    other = audit(
        tiny_vit(), pictures, replace(chosen, layers="all"), out=out, resume=True, overwrite=True
    )
    assert other.summary["model"]["dtype"] == "float32"


def test_what_is_no_part_does_not_stand_in_the_way(pictures, unfinished, whole):
    parts = Workspace(place_of(unfinished)).part(0).parent
    (parts / ".DS_Store").write_bytes(b"x")
    assert_identical(audit(tiny_vit(), pictures, CONFIG, out=unfinished, resume=True), whole)


def test_a_replacement_that_was_interrupted_is_gone_on_with(pictures, whole, tmp_path):
    earlier = whole.save(tmp_path / "r")
    config, seen = replace(CONFIG, batch_size=2), []
    with pytest.raises(KeyboardInterrupt):
        audit(
            tiny_vit(),
            pictures,
            config,
            out=earlier.folder,
            overwrite=True,
            on_progress=stop_after(9, KeyboardInterrupt()),
        )
    assert_identical(earlier, whole)
    audit(
        tiny_vit(),
        pictures,
        config,
        out=earlier.folder,
        overwrite=True,
        resume=True,
        on_progress=lambda *progress: seen.append(progress),
    )
    assert seen[0] == (8, NUM_PICTURES)
    assert earlier.provenance["plan"]["batch_size"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_what_a_run_left_that_was_killed_at_its_end_is_removed(pictures, whole, tmp_path):
    copy = whole.save(tmp_path / "r")
    left = Workspace(place_of(copy.folder))
    with left.new_part(0):
        pass
    write_json(left.folder / "plan.json", copy.provenance["plan"] | {"run": copy.provenance["run"]})
    seen = []
    audit(
        tiny_vit(),
        pictures,
        CONFIG,
        out=copy.folder,
        resume=True,
        on_progress=lambda *progress: seen.append(progress),
    )
    assert not seen
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_the_result_comes_back_that_a_killed_run_was_replacing(pictures, whole, tmp_path):
    whole.save(tmp_path / ".r.old-x" / "old")
    with pytest.raises(UsageError, match="already holds a result"):
        audit(tiny_vit(), pictures, CONFIG, out=tmp_path / "r")
    assert_identical(AuditResult.load(tmp_path / "r"), whole)


def test_resuming_what_is_finished_leaves_it(pictures, whole, tmp_path):
    copy = whole.save(tmp_path / "r")
    before = read_files(copy.folder)
    kept = audit(tiny_vit(), pictures, CONFIG, out=copy.folder, resume=True)
    assert read_files(kept.folder) == before
    with pytest.raises(UsageError, match=r"something else .* was 3 and now is 2"):
        audit(tiny_vit(), pictures, replace(CONFIG, batch_size=2), out=copy.folder, resume=True)


def test_two_runs_into_one_folder_are_refused(pictures, tmp_path):
    out = tmp_path / "r"
    with (
        held_alone(place_of(out), ".lock"),
        pytest.raises(UsageError, match=f"another run is at work in {out}"),
    ):
        audit(tiny_vit(), pictures, CONFIG, out=out)


def test_what_a_killed_process_was_writing_is_not_taken_for_a_part(pictures, unfinished, whole):
    half = Workspace(place_of(unfinished)).part(2).with_name(".000002.partial-x")
    half.mkdir()
    (half / "images.parquet").write_bytes(b"PAR1")
    assert_identical(audit(tiny_vit(), pictures, CONFIG, out=unfinished, resume=True), whole)


TESTS = Path(__file__).parents[1]

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from audits import tiny_vit
from vitscope import AuditConfig, audit
from vitscope.files.workspace import place_of

pictures, out, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
config = AuditConfig(batch_size=3, shard_size=4, dtype="float64", gallery=6)

def start(folder):
    child = os.fork()
    if child == 0:
        audit(tiny_vit(), pictures, config, out=folder, resume=True)
        os._exit(0)
    return child

begin = time.monotonic()
assert os.waitpid(start(out / "timed"), 0)[1] == 0
needed = time.monotonic() - begin
draw, kept = random.Random(0), 0
for k in range(kills):
    child = start(out / str(k))
    time.sleep(draw.uniform(0.2, 1.0) * needed)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    parts = place_of(out / str(k)) / "parts"
    kept += parts.is_dir() and any(p.name.isdecimal() for p in parts.iterdir())
    assert os.waitpid(start(out / str(k)), 0)[1] == 0
print(kept)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_it_goes_on_to_the_same_bits(pictures, whole, tmp_path):
    kills = int(os.environ.get("VITSCOPE_TEST_KILLS", "6"))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(pictures), str(tmp_path), str(kills)],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0  # some of them had finished shards to go on from
    for k in range(kills):
        assert_identical(AuditResult.load(tmp_path / str(k)), whole)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("write", [3, 6, 11, 14])
def test_a_full_disk_loses_nothing_that_was_finished(pictures, whole, tmp_path, monkeypatch, write):
    from vitscope.files import tensor_files

    count = 0
    save = tensor_files.save_file

    def fill(*args, **kwargs):
        nonlocal count
        count += 1
        if count > write:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args, **kwargs)

    out = tmp_path / "r"
    with monkeypatch.context() as patched:
        patched.setattr(tensor_files, "save_file", fill)
        with pytest.raises(VitscopeError, match="No space left on device"):
            audit(tiny_vit(), pictures, CONFIG, out=out)
    assert not out.exists()
    assert_identical(audit(tiny_vit(), pictures, CONFIG, out=out, resume=True), whole)


def test_a_model_that_fails_half_way_can_be_gone_on_with(pictures, whole, tmp_path, monkeypatch):
    from vitscope.runs import part_writer

    decompose, calls = part_writer.decompose_layers, []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("device-side assert triggered")
        return decompose(*args, **kwargs)

    out = tmp_path / "r"
    with monkeypatch.context() as patched:
        patched.setattr(part_writer, "decompose_layers", fail)
        with pytest.raises(RuntimeError, match="device-side"):
            audit(tiny_vit(), pictures, CONFIG, out=out)
    assert Workspace(place_of(out)).find_done() == {0, 1}
    assert_identical(audit(tiny_vit(), pictures, CONFIG, out=out, resume=True), whole)


class TightMemory:
    """A device that holds so many pictures at a time."""

    def __init__(self, monkeypatch, most, error):
        from vitscope.runs import part_writer

        self.sizes = []
        decompose = part_writer.decompose_layers

        def run(vit, pixels, *args, **kwargs):
            self.sizes.append(len(pixels))
            if len(pixels) > most:
                raise error
            return decompose(vit, pixels, *args, **kwargs)

        monkeypatch.setattr(part_writer, "decompose_layers", run)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_a_batch_that_does_not_fit_is_halved(pictures, proven, tmp_path, monkeypatch, error):
    memory = TightMemory(monkeypatch, 2, error)
    config = replace(PROVEN, batch_size=8, shard_size=22)
    result = audit(tiny_vit(), pictures, config, out=tmp_path / "r")
    assert result.images["image_id"].to_pylist() == proven.images["image_id"].to_pylist()
    assert_same_numbers(numbers(result), numbers(proven), ROUNDING)
    # 8 and 4 do not fit; from then on it is known.
    assert memory.sizes[:3] == [8, 4, 2]
    assert max(memory.sizes[3:]) == 2


def test_memory_for_not_even_one_picture_is_told(pictures, tmp_path, monkeypatch):
    TightMemory(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(VitscopeError, match="not enough memory on cpu for 1 pictures at a time"):
        audit(tiny_vit(), pictures, CONFIG, out=tmp_path / "r")


def test_pictures_that_cannot_be_read_are_counted_once(pictures, tmp_path):
    names = sorted(pictures.iterdir())
    broken = tmp_path / "pictures"
    broken.mkdir()
    for number, path in enumerate(names):
        # The second shard holds none that can be read.
        damaged = number in {1, 4, 5, 6, 7}
        (broken / path.name).write_bytes(b"not a picture" if damaged else path.read_bytes())
    result = audit(tiny_vit(), broken, PROVEN, out=tmp_path / "r")
    assert result.summary["data"] == {"num_images": NUM_PICTURES - 5, "num_failed": 5}
    failed = [Path(path).name for path, _ in result.failures]
    assert failed == [names[k].name for k in (1, 4, 5, 6, 7)]
    good = [path for k, path in enumerate(names) if k not in {1, 4, 5, 6, 7}]
    assert_same_numbers(numbers(result), numbers(audit(tiny_vit(), good, PROVEN)), ROUNDING)


def test_no_picture_at_all_is_an_error_over_several_shards(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.png").write_bytes(b"no")
    with pytest.raises(ImageReadError, match="none of the 9 pictures could be read"):
        audit(tiny_vit(), folder, CONFIG, out=tmp_path / "r")


def test_shards_of_a_job_array_merge_to_the_whole(pictures, proven, tmp_path):
    names = sorted(pictures.iterdir())
    parts = [
        audit(tiny_vit(), names, replace(PROVEN, shard=f"{k}/3"), out=tmp_path / str(k))
        for k in (1, 2, 3)
    ]
    assert [part.summary["data"]["num_images"] for part in parts] == [7, 7, 8]
    two = parts[0].merge(parts[2])
    assert two.missing_shards == ["2/3"]
    merged = two.merge(parts[1])
    assert merged.missing_shards == []
    assert_same_numbers(numbers(merged), numbers(proven), ROUNDING)
    with pytest.raises(ResultError, match="are in the other result too"):
        merged.merge(parts[1])
    other = audit(tiny_vit(), names[:-1], replace(PROVEN, shard="3/3"), out=tmp_path / "other")
    assert parts[0].merge(other).missing_shards is None
    assert proven.missing_shards == []


def test_files_of_the_same_bytes_in_two_shards_count_twice(pictures, tmp_path):
    names = [*sorted(pictures.iterdir())[:5], tmp_path / "again.png"]
    names[-1].write_bytes(names[0].read_bytes())
    first, second = (
        audit(tiny_vit(), names, replace(CONFIG, shard=f"{k}/2"), out=tmp_path / str(k))
        for k in (1, 2)
    )
    assert first.merge(second).summary["data"]["num_images"] == 6


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "1/2/3", "-1/3", ""])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(UsageError, match="expected one of 1/N to N/N"):
        AuditConfig(shard=shard)


def test_more_shards_than_pictures_are_refused(pictures, tmp_path):
    with pytest.raises(UsageError, match="1/40 of 22 pictures holds none"):
        audit(tiny_vit(), pictures, AuditConfig(shard="1/40"), out=tmp_path / "r")


class ElsewhereEngine:
    """Workers far away: they share no files, and are done in another order."""

    shares_files = False
    is_lead = True

    def run(self, make_worker, items):
        cloudpickle = pytest.importorskip("cloudpickle")
        worker = cloudpickle.loads(cloudpickle.dumps(make_worker))()
        for index in reversed(range(len(items))):
            yield index, worker(cloudpickle.loads(cloudpickle.dumps(items[index])))

    def barrier(self):
        pass


def test_workers_elsewhere_give_the_same_bits(pictures, whole, tmp_path):
    result = audit(tiny_vit(), pictures, CONFIG, out=tmp_path / "r", engine=ElsewhereEngine())
    assert_identical(result, whole)


def test_a_sent_file_stays_within_its_part(tmp_path):
    for name in ("../x", "/x", "a/../../x"):
        with pytest.raises(ResultError, match="expected names within a part"):
            unpack_folder({name: b""}, tmp_path)


def test_an_engine_needs_a_place(pictures):
    with pytest.raises(UsageError, match="resume and engines need `out`"):
        audit(tiny_vit(), pictures, CONFIG, resume=True)
