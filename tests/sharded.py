"""Shared by the tests of sharded audits: settings, and when two results are equal."""

from dataclasses import replace
from pathlib import Path

import pytest

from vitscope import AuditConfig

NUM_IMAGES = 22
CONFIG = AuditConfig(batch_size=3, shard_size=4, dtype="float64", gallery=6)
VERIFIED = replace(CONFIG, verified=1.0)
"""The same with every image verified, so that no number depends on the batches."""

ROUNDING = 1e-9
"""Rounding of float64 sums in another order, for numbers between 1e-3 and 1e3."""


def read_files(folder):
    """Every file except the provenance, which contains times."""
    found = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del found[Path("provenance.json")]
    return found


def assert_identical(result, expected):
    ours, theirs = read_files(result.folder), read_files(expected.folder)
    assert ours.keys() == theirs.keys()
    # Archives contain the time of writing.
    different = [p for p in ours if ours[p] != theirs[p] and p.suffix != ".npz"]
    assert not different


def stop_after(count, error):
    def on_progress(done, _):
        if done >= count:
            raise error

    return on_progress


class SeenProgress(list):
    """Records the calls of `on_progress`."""

    def __call__(self, *progress):
        self.append(progress)


class ElsewhereEngine:
    """Imitates remote workers: they share no files, and finish in another order."""

    shares_files = False
    is_lead = True

    def run(self, make_worker, items):
        cloudpickle = pytest.importorskip("cloudpickle")
        worker = cloudpickle.loads(cloudpickle.dumps(make_worker))()
        for index in reversed(range(len(items))):
            yield index, worker(cloudpickle.loads(cloudpickle.dumps(items[index])))

    def barrier(self):
        pass
