"""Transfer of batches from reading processes, by shared memory or by pipes if it is small."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

PREFETCHED = 2
"""Number of batches that each process prefetches."""

_SHARED = Path("/dev/shm")  # noqa: S108 - where torch puts shared tensors
_PAGES = 2**16  # bytes for the small tensors of a batch, each of which takes a page


def fits_shared_memory(num_workers: int, batch_bytes: int) -> bool:
    """Whether the prefetched batches fit into shared memory."""
    if not _SHARED.is_dir():
        return True
    # One more is in progress, and one may be on its way to a device.
    at_once = num_workers * PREFETCHED + 2
    return shutil.disk_usage(_SHARED).free >= at_once * (batch_bytes + _PAGES)


class WorkerStart:
    """Prepares a reading process."""

    def __init__(self, *, by_pipe: bool) -> None:
        self._by_pipe = by_pipe

    def __call__(self, _: int) -> None:
        """Prepare this process."""
        # Ctrl-C reaches all processes of a terminal; the run handles it and ends the reading ones.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # A process stopped during a transfer would report a broken pipe. Nothing else is lost:
        # errors of images and batches are raised in the run.
        sys.excepthook = lambda *_: None
        # By default Python prints the error, drops the batch and continues.
        Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]
        if self._by_pipe:
            ForkingPickler.register(Tensor, _reduce_to_array)


def _end(error: BaseException, _: object) -> None:
    if not isinstance(error, ConnectionError):  # the receiver is gone
        os._exit(1)


def _reduce_to_array(tensor: Tensor) -> tuple[Callable[[Any], Tensor], tuple[np.ndarray]]:
    return torch.from_numpy, (tensor.numpy(),)
