"""Batches of processes that read: none is lost, however little shared memory there is."""

import ctypes
import os
import signal
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from encoded import NOISE, encode
from forks import Fork
from vitscope.errors import VitscopeError
from vitscope.images import image_set as images_module
from vitscope.images.image_set import ImageSet, iter_batches
from vitscope.images.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def images(tmp_path):
    for number in range(12):
        content = b"no" if number == 5 else encode(NOISE, "PNG") + bytes([number])
        (tmp_path / f"{number:02d}.png").write_bytes(content)
    return ImageSet.from_sources(tmp_path, PREPROCESSING)


@pytest.fixture
def at_most_a_minute():
    """A run that waits for what never comes fails, rather than wait with it."""

    def give_up(*_):
        raise AssertionError("still waiting for a batch")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_batch_that_cannot_be_handed_over_stops_the_run(images, monkeypatch, at_most_a_minute):
    dumps, run = ForkingPickler.dumps, os.getpid()

    def fail(value, protocol=None):
        if os.getpid() != run:  # as torch does where /dev/shm is full
            raise RuntimeError("unable to allocate shared memory(shm): No space left on device")
        return dumps(value, protocol)

    monkeypatch.setattr(ForkingPickler, "dumps", fail)
    with pytest.raises(VitscopeError, match=r"reading images stopped .*/dev/shm"):
        list(iter_batches(images, batch_size=2, num_workers=2))


def test_batches_through_pipes_are_the_same(images, monkeypatch):
    plain = list(iter_batches(images, batch_size=5))
    for fits in (True, False):
        monkeypatch.setattr(images_module, "fits_shared_memory", lambda *_, fits=fits: fits)
        batches = list(iter_batches(images, batch_size=5, num_workers=2))
        assert all(batch.pixels.is_shared() == fits for batch in batches)
        for batch, expected in zip(batches, plain, strict=True):
            assert torch.equal(batch.pixels, expected.pixels)
            assert (batch.indices, batch.ids) == (expected.indices, expected.ids)
            assert batch.failures == expected.failures
            assert batch.covariates.keys() == expected.covariates.keys()
            for name, values in batch.covariates.items():
                assert torch.equal(values, expected.covariates[name])
            batch.pixels.zero_()  # they are the run's own


def count_in_small_memory(images, size):
    small = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"]
    # Without the first, all other processes would have it too.
    mounts = (["mount", "--make-rprivate", "/"], small)
    new_mounts = 0x20000  # CLONE_NEWNS
    if ctypes.CDLL(None).unshare(new_mounts) or any(subprocess.run(m).returncode for m in mounts):
        return "not permitted"
    num_read = sum(len(batch.ids) for batch in iter_batches(images, batch_size=2, num_workers=2))
    sys.stdout.write(str(num_read))
    return None


@pytest.mark.parametrize("size", ["64k", "4m"])
def test_a_run_goes_well_where_shared_memory_is_small(images, size):
    _, told, err = Fork(count_in_small_memory, images, size).wait()
    if "not permitted" in err:
        pytest.skip("mounting a small /dev/shm is not permitted here")
    assert told == "11", err
