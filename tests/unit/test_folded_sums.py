"""Sums whose moments lie on disk: grouping, full disks, linked files, and the memory they take."""

import errno
import gc
import math
import shutil
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from page_blocks import ROOT
from vitscope.errors import VitscopeError
from vitscope.files import storage
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.tensor_files import write_tensors
from vitscope.metrics import feature_sums, stores
from vitscope.metrics.feature_plan import make_plan
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.jackknife import NUM_BLOCKS
from vitscope.metrics.moments import PairMoments
from vitscope.metrics.stores import MomentStore, RowStore
from vitscope.metrics.sums import Batch

PLAN = make_plan(("patches",), has_skip=True, has_embedding=False, renormalize=False)
DIM = 3
FULL_AT = 4 * DIM * NUM_BLOCKS
"""Rows at which sums of this width are folded."""


def make_rows(n, seed=0, dim=DIM):
    """Features that go together, each with a mean of its own, and the block of each image."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, dim, generator=generator)
    features = {
        name: common + (1 + i) * torch.randn(n, dim, generator=generator) + 5 * i
        for i, name in enumerate(PLAN.kept)
    }
    return features, torch.randint(NUM_BLOCKS, (n,), generator=generator)


def feed(features, blocks, rows=slice(None), folder=None):
    sums = FeatureSums(PLAN, folder=folder)
    sums.update(
        Batch({name: value[rows] for name, value in features.items()}, blocks[rows].tolist())
    )
    return sums


def flat_estimates(sums):
    """Every number that follows from the sums; the order is that of the plan."""
    found = []
    for readout, parts in PLAN.comparisons.items():
        for cka in (sums.estimate_cka(readout, part) for part in parts):
            found += [cka.biased, cka.unbiased, cka.biased_if_unrelated, *(cka.ci95 or ())]
    for total, parts in PLAN.shares.items():
        for share in (sums.estimate_share(total, part) for part in parts):
            found += [share.value, *(share.ci95 or ())]
        for row in sums.estimate_gram_ledger(total).values():
            found += [x for share in row.values() for x in (share.biased, share.unbiased)]
    return np.array(found)


def is_folded(sums):
    return any(name.startswith("reference") for name in sums.save())


def gram_cka(x, y):
    """Unbiased CKA with explicit n x n matrices, in float64."""
    n = len(x)

    def hsic(a, b):
        a, b = (z @ z.T for z in (a - a.mean(axis=0), b - b.mean(axis=0)))
        np.fill_diagonal(a, 0)
        np.fill_diagonal(b, 0)
        ones = a.sum() * b.sum() / ((n - 1) * (n - 2))
        return (a * b).sum() + ones - 2 / (n - 2) * (a.sum(axis=0) @ b.sum(axis=0))

    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


def test_cka_of_moments_folded_many_times_equals_the_gram_matrix_form():
    n = 5 * FULL_AT + 17
    features, blocks = make_rows(n, seed=1)
    sums = FeatureSums(PLAN)
    for start in range(0, n, 32):
        rows = slice(start, start + 32)
        sums.update(Batch({k: v[rows] for k, v in features.items()}, blocks[rows].tolist()))
    assert is_folded(sums)
    rows = {name: value.double().numpy() for name, value in features.items()}
    for readout, parts in PLAN.comparisons.items():
        for part, pair in parts.items():
            x, y = (sum(rows[p] for p in PLAN.sums[name]) for name in pair)
            found = sums.estimate_cka(readout, part).unbiased
            # Moments are sums over rows of fourth powers: ten digits are left of sixteen.
            assert found == pytest.approx(gram_cka(x, y), abs=1e-10)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**16), sizes=st.lists(st.integers(20, 190), min_size=2, max_size=4))
def test_any_grouping_gives_the_same_estimates(seed, sizes):
    n = sum(sizes)
    features, blocks = make_rows(n, seed)
    ends = np.cumsum([0, *sizes])
    slices = [slice(a, b) for a, b in pairwise(ends)]
    whole = feed(features, blocks)
    left, right = FeatureSums(PLAN), feed(features, blocks, slices[-1])
    for part in slices:
        left.merge(feed(features, blocks, part))
    for part in reversed(slices[:-1]):
        before = feed(features, blocks, part)
        before.merge(right)
        right = before
    expected = flat_estimates(whole)
    for sums in (left, right):
        assert sums.num_images == n
        np.testing.assert_allclose(flat_estimates(sums), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**16), sizes=st.lists(st.integers(5, 130), min_size=1, max_size=5))
def test_the_same_parts_in_the_same_order_give_the_same_bits(seed, sizes):
    """Whoever made the parts, in whatever batches they are read back, saved or not."""
    features, blocks = make_rows(sum(sizes), seed)
    ends = np.cumsum([0, *sizes])

    def merge(save):
        with tempfile.TemporaryDirectory() as folder:
            merged = FeatureSums(PLAN, folder=Path(folder) / "merged")
            for k, (a, b) in enumerate(pairwise(ends)):
                home = Path(folder) / str(k)
                part = feed(features, blocks, slice(a, b), folder=home)
                if save:
                    tensors = part.save()
                    part = FeatureSums(PLAN)
                    part.load(tensors, home)
                merged.merge(part)
                # What has been taken in is needed no more.
                shutil.rmtree(home)
            return flat_estimates(merged)

    assert merge(save=False).tobytes() == merge(save=True).tobytes()


def test_a_fold_holds_the_moments_of_one_pair_and_few_rows(monkeypatch):
    """Counted are all moments alive whenever a pair is written, and the rows of every reading."""
    most, rows_read = [], []
    write, read = MomentStore.write, feature_sums.RowStore.iter_rows

    def spy_write(store, pair, moments):
        alive = (one for one in gc.get_objects() if type(one) is PairMoments)
        # Those of single blocks are views.
        most.append(len({one.cross.untyped_storage().data_ptr() for one in alive}))
        write(store, pair, moments)

    def spy_read(store, names):
        for rows, blocks in read(store, names):
            rows_read.append(len(blocks))
            yield rows, blocks

    monkeypatch.setattr(MomentStore, "write", spy_write)
    monkeypatch.setattr(feature_sums.RowStore, "iter_rows", spy_read)
    dim = 20
    features, blocks = make_rows(2 * 4 * dim * NUM_BLOCKS, dim=dim)
    sums = FeatureSums(PLAN)
    for start in range(0, len(blocks), 100):
        rows = slice(start, start + 100)
        sums.update(Batch({k: v[rows] for k, v in features.items()}, blocks[rows].tolist()))
    assert len(most) == 2 * len(PLAN.pairs)
    assert max(most) == 1
    assert max(rows_read) <= 600
    assert sum(rows_read) == len(blocks) * len(PLAN.pairs)


def test_the_disk_holds_no_more_once_rows_are_folded(tmp_path):
    """Every fold leaves as many bytes as the first, and rows never more than there are between."""
    sums, after_fold, between = FeatureSums(PLAN, folder=tmp_path), [], []
    half = FULL_AT // 2
    for seed in range(12):
        features, blocks = make_rows(half, seed)
        sums.update(Batch(features, blocks.tolist()))
        sums.save()
        held = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        (after_fold if seed % 2 else between).append(held)
    assert sums.num_images == 6 * FULL_AT
    assert is_folded(sums)
    assert len(set(after_fold)) == 1
    # Rows of the first batch and, from the second fold on, moments beside as many rows.
    assert len(set(between[1:])) == 1


def test_a_full_disk_leaves_the_sums_as_they_were(monkeypatch, tmp_path):
    features, blocks = make_rows(2 * FULL_AT, seed=3)
    sums = feed(features, blocks, slice(FULL_AT), folder=tmp_path)
    assert is_folded(sums)
    moments = {path: path.read_bytes() for path in tmp_path.glob("moments/*")}
    assert len(moments) == len(PLAN.pairs)
    written = []

    def write(path, tensors, metadata=None):
        if path.parent == tmp_path:  # rows
            write_tensors(path, tensors, metadata)
            return
        written.append(path)
        if len(written) == len(PLAN.pairs):
            with plain_disk_errors(path):  # as `write_tensors` does
                raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(b"")

    monkeypatch.setattr(stores, "write_tensors", write)
    rest = {name: value[FULL_AT:] for name, value in features.items()}
    with pytest.raises(VitscopeError, match="No space left on device"):
        sums.update(Batch(rest, blocks[FULL_AT:].tolist()))
    assert len(written) == len(PLAN.pairs)
    assert {path: path.read_bytes() for path in tmp_path.rglob("moments*/*")} == moments
    monkeypatch.undo()
    # Not a row is lost or counted twice either.
    whole = feed(features, blocks)
    np.testing.assert_allclose(flat_estimates(sums), flat_estimates(whole), rtol=1e-12, atol=1e-12)


def test_across_file_systems_rows_are_copied(monkeypatch, tmp_path):
    def refuse(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    features, blocks = make_rows(60)
    linked, copied = (FeatureSums(PLAN, folder=tmp_path / name) for name in ("linked", "copied"))
    part = feed(features, blocks, folder=tmp_path / "part")
    linked.merge(part)
    monkeypatch.setattr(storage.os, "link", refuse)
    copied.merge(part)
    (one,), (two,), (source,) = (
        list((tmp_path / name).glob("*.safetensors")) for name in ("linked", "copied", "part")
    )
    assert one.samefile(source)
    assert not two.samefile(source)
    assert two.read_bytes() == source.read_bytes()
    with pytest.raises(FileExistsError):
        storage.link_or_copy(source, two)


def test_links_take_no_other_file_away(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"a")
    target.write_bytes(b"b")
    with pytest.raises(FileExistsError):
        storage.link_or_copy(source, target)
    assert target.read_bytes() == b"b"


_MEASURE = """
import torch
from benchmarks.measuring import read_peak
from vitscope.metrics.feature_plan import make_plan
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.sums import Batch

torch.set_num_threads(1)
plan = make_plan(("patches",), has_skip=True, has_embedding=False, renormalize=False)
generator = torch.Generator().manual_seed(0)
for num_rows in (2_000, 20_000):
    sums = FeatureSums(plan)
    for _ in range(num_rows // 250):
        rows = {name: torch.randn(250, 32, generator=generator) for name in plan.kept}
        sums.update(Batch(rows, [k % 10 for k in range(250)]))
    sums.estimate_cka("residual", "patches")
    sums.estimate_gram_ledger("residual")
    print(read_peak())
"""


def test_memory_does_not_grow_with_the_number_of_images():
    """20,000 rows of 32 numbers are 17 MiB for all features, and are folded 15 times."""
    command = [sys.executable, "-c", _MEASURE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    few, many = map(float, done.stdout.split())
    # Allocators round up: what comes and goes differs by a few MiB from run to run.
    assert many < few + 8


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 700), max_size=6), seed=st.integers(0, 2**16), data=st.data())
def test_stored_rows_come_back_in_order(sizes, seed, data):
    generator = torch.Generator().manual_seed(seed)
    rows, blocks = torch.empty(0, 2), torch.empty(0, dtype=torch.int64)
    with tempfile.TemporaryDirectory() as folder:
        store = RowStore(Path(folder))
        for size in sizes:
            batch = torch.randn(size, 2, generator=generator)
            members = torch.randint(3, (size,), generator=generator)
            store.append({"a": batch, "b": -batch}, members.tolist())
            rows, blocks = torch.cat([rows, batch]), torch.cat([blocks, members])
            if data.draw(st.booleans()):
                # Reading in between writes what is pending, and must not change what is there.
                list(store.iter_rows(["a"]))
        assert len(store) == len(rows)
        parts = list(store.iter_rows(["b"]))
        assert len(RowStore(Path(folder) / "new", saved=Path(folder))) == len(rows)
    assert torch.equal(torch.cat([torch.empty(0, 2), *(-part["b"] for part, _ in parts)]), rows)
    assert torch.cat([blocks[:0], *(part for _, part in parts)]).tolist() == blocks.tolist()
