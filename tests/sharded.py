"""What the tests of audits in shards share: settings, and when two results are the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from vitscope import AuditConfig

NUM_IMAGES = 22
CONFIG = AuditConfig(batch_size=3, shard_size=4, dtype="float64", gallery=6)
VERIFIED = replace(CONFIG, verified=1.0)
"""The same, and what is known of verified images alone does not depend on the batches."""

ROUNDING = 1e-9
"""Of float64 sums in another order, of numbers between 1e-3 and 1e3."""


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


class SeenProgress(list):
    """Everything that `on_progress` was told."""

    def __call__(self, *progress):
        self.append(progress)


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
