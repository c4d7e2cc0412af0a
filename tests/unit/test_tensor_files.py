"""Tensors in files, on a disk that does not take them: no file of this process may grow."""

import resource
from contextlib import contextmanager

import pytest
import torch

from vitscope.errors import DiskError
from vitscope.files.storage import staged_folder
from vitscope.files.tensor_files import read_tensors, write_tensors
from vitscope.metrics.feature_plan import make_plan
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.stores import RowStore
from vitscope.metrics.sums import Batch

PLAN = make_plan(("patches",), has_skip=True, has_embedding=False, renormalize=False)
TENSORS = {"x": torch.arange(5000.0)}


@contextmanager
def full_disk():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal, so that the system says "File too large".
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def make_rows(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, 8, generator=generator) for name in PLAN.kept}


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path):
    path = tmp_path / "new" / "x.safetensors"
    with full_disk(), pytest.raises(DiskError, match=r"cannot write .*x\.safetensors: .+; no"):
        write_tensors(path, TENSORS)
    assert not path.exists()
    write_tensors(path, TENSORS)
    assert torch.equal(read_tensors(path)[0]["x"], TENSORS["x"])


def test_of_a_staged_folder_the_place_is_named_and_not_the_staging(tmp_path):
    def write():
        with staged_folder(tmp_path / "result") as staging:
            write_tensors(staging / "sums" / "x.safetensors", TENSORS)

    with full_disk(), pytest.raises(DiskError) as error:
        write()
    assert str(error.value).startswith(f"cannot write {tmp_path / 'result'}: ")
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_came_from_elsewhere_keeps_its_words(tmp_path):
    def fail():
        with staged_folder(tmp_path / "result"):
            raise DiskError("cannot write /there: full")

    with pytest.raises(DiskError, match=r"^cannot write /there: full$"):
        fail()


def test_rows_that_the_disk_does_not_take_are_kept_and_the_batch_is_not_taken_in(tmp_path):
    store = RowStore(tmp_path)
    store.append(make_rows(256, 0), [0] * 256)
    with full_disk(), pytest.raises(DiskError):
        store.append(make_rows(3, 1), [1] * 3)
    assert len(store) == 256
    store.append(make_rows(3, 1), [1] * 3)
    found = list(store.iter_rows(["term/patches"]))
    expected = torch.cat([make_rows(n, seed)["term/patches"] for n, seed in ((256, 0), (3, 1))])
    assert torch.equal(torch.cat([rows["term/patches"] for rows, _ in found]), expected)


def test_rows_that_cannot_be_linked_are_told_in_plain_words(tmp_path):
    (ours, theirs) = (RowStore(tmp_path / name) for name in ("ours", "theirs"))
    theirs.append(make_rows(3, 0), [0] * 3)
    (tmp_path / "ours").write_text("a file where the folder shall be")
    with pytest.raises(DiskError, match="cannot write"):
        ours.merge(theirs)


def test_sums_agree_with_each_other_after_a_failure(tmp_path):
    sums, whole = FeatureSums(PLAN, folder=tmp_path / "sums"), FeatureSums(PLAN)
    batches = [(make_rows(n, n), [i % 10 for i in range(n)]) for n in (256, 7)]
    sums.update(Batch(*batches[0]))
    with full_disk(), pytest.raises(DiskError):
        sums.update(Batch(*batches[1]))
    assert sums.num_images == 256
    sums.update(Batch(*batches[1]))
    for batch in batches:
        whole.update(Batch(*batch))
    assert sums.num_images == whole.num_images == 263
    for name in PLAN.sums:
        assert torch.equal(sums.compute_mean(name), whole.compute_mean(name))
    for readout, parts in PLAN.comparisons.items():
        for part in parts:
            assert sums.estimate_cka(readout, part) == whole.estimate_cka(readout, part)
    tensors = sums.save()
    saved = FeatureSums(PLAN)
    saved.load(tensors, tmp_path / "sums")
    assert saved.num_images == 263
