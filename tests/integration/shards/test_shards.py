"""Audits in shards: killed, short of disk or memory, cut into jobs, worked on elsewhere."""

import errno
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audits import assert_same_numbers, numbers, tiny_vit
from forks import Fork
from sharded import (
    CONFIG,
    NUM_IMAGES,
    ROUNDING,
    VERIFIED,
    ElsewhereEngine,
    assert_identical,
    stop_after,
)
from vitscope import AuditConfig, AuditResult, audit
from vitscope.errors import ImageReadError, ResultError, UsageError, VitscopeError
from vitscope.files.json_files import write_json
from vitscope.files.workspace import Workspace, place_of, unpack_folder
from vitscope.results.schema import DataSummary
from vitscope.runs import resources


@pytest.fixture(scope="module")
def verified(images):
    return audit(tiny_vit(), images, VERIFIED)


def resume(images, out):
    audit(tiny_vit(), images, CONFIG, out=out, resume=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_it_goes_on_to_the_same_bits(images, whole, tmp_path):
    begin = time.monotonic()
    assert Fork(resume, images, tmp_path / "timed").wait()[0] == 0
    needed = time.monotonic() - begin
    draw, kept = random.Random(0), 0
    kills = int(os.environ.get("VITSCOPE_TEST_KILLS", "3"))
    for k in range(kills):
        out = tmp_path / str(k)
        running = Fork(resume, images, out)
        time.sleep(draw.uniform(0.2, 1.0) * needed)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        parts = place_of(out) / "parts"
        kept += parts.is_dir() and any(p.name.isdecimal() for p in parts.iterdir())
        code, _, err = Fork(resume, images, out).wait()
        assert code == 0, err
        assert_identical(AuditResult.load(out), whole)
    assert kept > 0  # some of them had finished shards to resume from
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("write", [3, 6, 11, 14])
def test_a_full_disk_loses_nothing_that_was_finished(images, whole, tmp_path, monkeypatch, write):
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
            audit(tiny_vit(), images, CONFIG, out=out)
    assert not out.exists()
    assert_identical(audit(tiny_vit(), images, CONFIG, out=out, resume=True), whole)


def test_a_model_that_fails_half_way_can_be_gone_on_with(images, whole, tmp_path, monkeypatch):
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
            audit(tiny_vit(), images, CONFIG, out=out)
    assert Workspace(place_of(out)).find_done() == {0, 1}
    assert_identical(audit(tiny_vit(), images, CONFIG, out=out, resume=True), whole)


def set_pass_size(monkeypatch, count):
    num_tokens = tiny_vit().make_layout(*tiny_vit().preprocessing.size).num_tokens
    monkeypatch.setattr(resources, "CPU_TOKENS", count * num_tokens)


class TightMemory:
    """A device that holds so many images at a time."""

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
def test_a_batch_that_does_not_fit_is_halved(images, verified, tmp_path, monkeypatch, error):
    memory = TightMemory(monkeypatch, 2, error)
    config = replace(VERIFIED, batch_size=8, shard_size=22)
    result = audit(tiny_vit(), images, config, out=tmp_path / "r")
    assert result.images["image_id"].to_pylist() == verified.images["image_id"].to_pylist()
    assert_same_numbers(numbers(result), numbers(verified), ROUNDING)
    # 8 and 4 do not fit; from then on it is known.
    assert memory.sizes[:3] == [8, 4, 2]
    assert max(memory.sizes[3:]) == 2


def test_a_batch_goes_through_the_model_in_passes(images, verified, tmp_path, monkeypatch):
    set_pass_size(monkeypatch, 4)
    memory = TightMemory(monkeypatch, 4, AssertionError("more than a pass"))
    config = replace(VERIFIED, batch_size=7, shard_size=22)
    result = audit(tiny_vit(), images, config, out=tmp_path / "r")
    assert memory.sizes[:4] == [4, 3, 4, 3]
    assert_same_numbers(numbers(result), numbers(verified), ROUNDING)


def test_a_pass_that_does_not_fit_is_tried_once(images, verified, tmp_path, monkeypatch):
    set_pass_size(monkeypatch, 4)
    memory = TightMemory(monkeypatch, 2, MemoryError())
    config = replace(VERIFIED, batch_size=10, shard_size=22)
    result = audit(tiny_vit(), images, config, out=tmp_path / "r")
    assert memory.sizes[:6] == [4, 2, 2, 2, 2, 2]
    assert memory.sizes.count(4) == len(range(0, NUM_IMAGES, 22))
    assert_same_numbers(numbers(result), numbers(verified), ROUNDING)


def test_a_run_in_passes_goes_on_to_the_same_bits(images, tmp_path, monkeypatch):
    set_pass_size(monkeypatch, 2)
    memory = TightMemory(monkeypatch, 2, AssertionError("more than a pass"))
    config = replace(CONFIG, batch_size=5, shard_size=10, verified=0.3)
    whole = audit(tiny_vit(), images, config, out=tmp_path / "whole")
    assert memory.sizes[:3] == [2, 2, 1]
    with pytest.raises(KeyboardInterrupt):
        audit(
            tiny_vit(),
            images,
            config,
            out=tmp_path / "r",
            on_progress=stop_after(15, KeyboardInterrupt()),
        )
    assert Workspace(place_of(tmp_path / "r")).find_done() == {0}
    assert_identical(audit(tiny_vit(), images, config, out=tmp_path / "r", resume=True), whole)


def test_a_run_with_other_passes_is_not_gone_on_with(images, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        audit(
            tiny_vit(),
            images,
            CONFIG,
            out=tmp_path / "r",
            on_progress=stop_after(15, KeyboardInterrupt()),
        )
    set_pass_size(monkeypatch, 2)
    with pytest.raises(UsageError, match="pass_size was"):
        audit(tiny_vit(), images, CONFIG, out=tmp_path / "r", resume=True)


def test_memory_for_not_even_one_image_is_told(images, tmp_path, monkeypatch):
    TightMemory(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(VitscopeError, match="not enough memory on cpu for 1 image at a time"):
        audit(tiny_vit(), images, CONFIG, out=tmp_path / "r")


def test_images_that_cannot_be_read_are_counted_once(images, tmp_path):
    names = sorted(images.iterdir())
    broken = tmp_path / "images"
    broken.mkdir()
    for number, path in enumerate(names):
        # The second shard holds none that can be read.
        damaged = number in {1, 4, 5, 6, 7}
        (broken / path.name).write_bytes(b"not an image" if damaged else path.read_bytes())
    result = audit(tiny_vit(), broken, VERIFIED, out=tmp_path / "r")
    counts = DataSummary(num_images=NUM_IMAGES - 5, num_failed=5, num_repeated=0)
    assert result.summary.data == counts
    failed = [Path(path).name for path, _ in result.failures]
    assert failed == [names[k].name for k in (1, 4, 5, 6, 7)]
    good = [path for k, path in enumerate(names) if k not in {1, 4, 5, 6, 7}]
    assert_same_numbers(numbers(result), numbers(audit(tiny_vit(), good, VERIFIED)), ROUNDING)


def test_no_image_at_all_is_an_error_over_several_shards(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.png").write_bytes(b"no")
    with pytest.raises(ImageReadError, match="none of the 9 images could be read"):
        audit(tiny_vit(), folder, CONFIG, out=tmp_path / "r")


def test_shards_of_a_job_array_merge_to_the_whole(images, verified, tmp_path):
    names = sorted(images.iterdir())
    parts = [
        audit(tiny_vit(), names, replace(VERIFIED, shard=(k, 3)), out=tmp_path / str(k))
        for k in (1, 2, 3)
    ]
    assert [part.summary.data.num_images for part in parts] == [7, 7, 8]
    two = parts[0].merge(parts[2])
    assert two.missing_shards == ["2/3"]
    merged = two.merge(parts[1])
    assert merged.missing_shards == []
    assert_same_numbers(numbers(merged), numbers(verified), ROUNDING)
    with pytest.raises(ResultError, match="are repeated or also in another result"):
        merged.merge(parts[1])
    other = audit(tiny_vit(), names[:-1], replace(VERIFIED, shard=(3, 3)), out=tmp_path / "other")
    assert parts[0].merge(other).missing_shards is None
    assert verified.missing_shards == []
    for damage in ({"plan": {"names": 1, "shard": "2/x"}}, {"plan": 3}, {"merged_from": 5}):
        write_json(merged.folder / "provenance.json", damage)
        with pytest.raises(ResultError, match=r"provenance\.json is damaged"):
            _ = AuditResult(merged.folder).missing_shards


def test_more_shards_than_images_are_refused(images, tmp_path):
    with pytest.raises(UsageError, match="1/40 of 22 images holds none"):
        audit(tiny_vit(), images, AuditConfig(shard=(1, 40)), out=tmp_path / "r")


def test_workers_elsewhere_give_the_same_bits(images, whole, tmp_path):
    result = audit(tiny_vit(), images, CONFIG, out=tmp_path / "r", engine=ElsewhereEngine())
    assert_identical(result, whole)


def test_a_sent_file_stays_within_its_part(tmp_path):
    for name in ("../x", "/x", "a/../../x"):
        with pytest.raises(ResultError, match="expected names within a part"):
            unpack_folder({name: b""}, tmp_path)


def test_an_engine_needs_a_place(images):
    with pytest.raises(UsageError, match="resume and engines need `out`"):
        audit(tiny_vit(), images, CONFIG, resume=True)
