"""Images of a set drawn, read in batches and by processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from encoded import NOISE, encode
from images import preprocess_image, touch
from vitscope.errors import UsageError, VitscopeError
from vitscope.images import image_set as images_module
from vitscope.images import stores as stores_module
from vitscope.images.decoding import decode_for_model, decode_image, image_id
from vitscope.images.image_set import ImageSet, iter_batches
from vitscope.images.preprocessing import Preprocessing
from vitscope.images.search import find_images

PREPROCESSING = Preprocessing(size=(8, 12), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    assert multiprocessing.active_children() == []


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    return path


def write_images(folder: Path, count: int, broken: tuple[int, ...] = ()) -> ImageSet:
    rng = np.random.default_rng(0)
    for i in range(count):
        data = encode(rng.integers(0, 256, (10, 14, 3), dtype=np.uint8), "PNG")
        (folder / f"{i:03}.png").write_bytes(data[: len(data) // 2] if i in broken else data)
    return ImageSet.from_sources([folder], PREPROCESSING)


# Drawing


def test_a_limit_draws_at_random_and_keeps_the_order(folder):
    touch(folder, *(f"{i:03}.jpg" for i in range(100)))
    everything = find_images([folder])
    draws = [
        ImageSet.from_sources([folder], PREPROCESSING, limit=20, seed=seed).addresses
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    for paths in draws:
        assert len(set(paths)) == 20
        assert list(paths) == sorted(paths)
        # Not from the front: that all 20 come from the first half has probability 1e-7.
        assert set(paths) & set(everything[50:])


@pytest.mark.parametrize("limit", [None, 3, 4, 10**9])
def test_a_limit_beyond_the_set_takes_all_of_it(folder, limit):
    paths = touch(folder, "a.jpg", "b.jpg", "c.jpg")
    images = ImageSet.from_sources([folder], PREPROCESSING, limit=limit)
    assert images.addresses == tuple(paths)
    assert len(images) == 3
    assert images.preprocessing is PREPROCESSING


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": -1}, {"seed": -1}])
def test_a_limit_or_seed_out_of_range_is_refused(folder, options):
    touch(folder, "a.jpg")
    with pytest.raises(UsageError, match="expected"):
        ImageSet.from_sources([folder], PREPROCESSING, **options)


# Batches


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_in_order_with_failures_apart(folder, num_workers):
    images = write_images(folder, 11, broken=(1, 4, 5, 6, 7))
    batches = list(iter_batches(images, batch_size=4, num_workers=num_workers))
    assert [batch.indices for batch in batches] == [[0, 2, 3], [], [8, 9, 10]]
    assert [[f.index for f in batch.failures] for batch in batches] == [[1], [4, 5, 6, 7], []]
    assert [batch.pixels.shape[0] for batch in batches] == [3, 0, 3]
    for batch in batches:
        assert batch.pixels.shape[1:] == (3, 8, 12)
        assert batch.pixels.dtype == torch.float32
        assert all("damaged or cut short" in failure.reason for failure in batch.failures)
        for row, index in enumerate(batch.indices):
            data = images.addresses[index].read_bytes()
            expected = preprocess_image(decode_image(data, background=255), PREPROCESSING)
            assert torch.equal(batch.pixels[row], expected)
            assert batch.ids[row] == image_id(data)


def test_the_background_is_the_preprocessings(folder):
    clear = encode(np.zeros((8, 12, 4), dtype=np.uint8), "PNG")
    (folder / "clear.png").write_bytes(clear)
    preprocessing = Preprocessing(size=(8, 12), mean=(0,) * 3, std=(1,) * 3, background=51)
    (batch,) = iter_batches(ImageSet.from_sources([folder], preprocessing), batch_size=1)
    assert torch.equal(batch.pixels, torch.full((1, 3, 8, 12), 51 / 255))


def test_what_cannot_be_opened_is_a_failure_of_that_image(folder, monkeypatch):
    (folder / "good.png").write_bytes(encode(NOISE, "PNG"))
    (folder / "large.png").write_bytes(bytes(10_000))
    os.mkfifo(folder / "pipe.png")
    (folder / "closed.png").write_bytes(encode(NOISE, "PNG"))
    monkeypatch.setattr(stores_module, "MAX_FILE_BYTES", 9_999)
    open_file = os.open

    def refuse_closed(path, *args, **options):
        if str(path).endswith("closed.png"):  # The superuser may read whatever it forbids.
            raise PermissionError(13, "Permission denied")
        return open_file(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse_closed)
    expected = {
        "good.png": None,
        "large.png": "too large: 10000 bytes, more than 9999",
        "pipe.png": "not a regular file",
        "closed.png": "cannot be read: Permission denied",
        "vanished.png": "cannot be read: No such file or directory",
        ".": "not a regular file",
        "null\0byte.png": "cannot be read: embedded null byte",
    }
    images = ImageSet(tuple(folder / name for name in expected), PREPROCESSING)
    (batch,) = iter_batches(images, batch_size=9)
    assert batch.indices == [0]
    assert [failure.reason for failure in batch.failures] == list(expected.values())[1:]


def test_a_image_for_which_memory_runs_out_is_a_failure(folder, monkeypatch):
    def run_out(image, preprocessing):
        raise MemoryError

    monkeypatch.setattr(images_module, "prepare_image", run_out)
    (batch,) = iter_batches(write_images(folder, 2), batch_size=2)
    assert ["not enough memory" in failure.reason for failure in batch.failures] == [True, True]


def test_the_callers_random_numbers_are_left_alone(folder):
    before = torch.random.get_rng_state()
    list(iter_batches(write_images(folder, 3), batch_size=2))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="pins where there is a CUDA device")
def test_pinning_without_a_device_does_nothing(folder):
    images = write_images(folder, 3)
    (plain,) = iter_batches(images, batch_size=3)
    (pinned,) = iter_batches(images, batch_size=3, pin_memory=True)
    assert torch.equal(pinned.pixels, plain.pixels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_pinning_with_a_device(folder, num_workers):
    images = write_images(folder, 3, broken=(1,))
    (plain,) = iter_batches(images, batch_size=3)
    (pinned,) = iter_batches(images, batch_size=3, num_workers=num_workers, pin_memory=True)
    assert pinned.pixels.is_pinned()
    assert torch.equal(pinned.pixels, plain.pixels)
    assert (pinned.indices, pinned.ids, pinned.failures) == (
        plain.indices,
        plain.ids,
        plain.failures,
    )


# Processes


def test_leaving_early_ends_the_processes(folder):
    batches = iter_batches(write_images(folder, 20), batch_size=1, num_workers=2)
    assert next(batches).indices == [0]
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_is_told_in_one_line(folder, monkeypatch):
    images = write_images(folder, 2)
    # The processes are forks of this one, and so is what they read with.
    monkeypatch.setattr(images_module, "decode_for_model", lambda *_, **__: os._exit(1))
    with pytest.raises(VitscopeError, match=r"reading images stopped \(.+\): free memory"):
        list(iter_batches(images, batch_size=1, num_workers=1))


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_processes_leave_ctrl_c_to_the_run(folder, monkeypatch):
    def interrupt_oneself(data, preprocessing):
        os.kill(os.getpid(), signal.SIGINT)
        return decode_for_model(data, preprocessing)

    images = write_images(folder, 2)
    monkeypatch.setattr(images_module, "decode_for_model", interrupt_oneself)
    (batch,) = iter_batches(images, batch_size=2, num_workers=1)
    assert batch.indices == [0, 1]


def test_ctrl_c_ends_a_run_and_its_processes(folder):
    write_images(folder, 60)
    script = f"""
        import sys, time
        from vitscope.images import image_set
        from vitscope.images.preprocessing import Preprocessing

        preprocessing = Preprocessing(size=(8, 8), mean=(0,) * 3, std=(1,) * 3)
        images = image_set.ImageSet.from_sources([{str(folder)!r}], preprocessing)
        read = image_set.read_image
        image_set.read_image = lambda address: (time.sleep(0.2), read(address))[1]
        try:
            for batch in image_set.iter_batches(images, batch_size=1, num_workers=2):
                print(batch.indices[0], flush=True)
        except KeyboardInterrupt:
            sys.exit(130)
    """
    # A group of its own, whose every process the terminal would interrupt.
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # As from a terminal: what is started in the background inherits an interrupt ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "0\n"
    os.killpg(process.pid, signal.SIGINT)
    _, complaints = process.communicate(timeout=20)
    assert process.returncode == 130
    assert complaints == ""
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
