"""How batches come from the processes that read them.

- A batch that cannot be handed over ends its process, which the run notices; it is never lost
  while the run waits for it.
- Where the shared memory of the machine is too small for the batches that are read ahead (64 MB
  in a container, unless configured otherwise), they come through pipes instead.
"""

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
"""Batches that each process reads ahead."""

_SHARED = Path("/dev/shm")  # noqa: S108 - it is where torch puts what is shared
_PAGES = 2**16  # bytes for the small tensors of a batch, of which each takes a page of its own


def fits_shared_memory(num_workers: int, batch_bytes: int) -> bool:
    """Whether the batches that are read ahead fit into shared memory."""
    if not _SHARED.is_dir():
        return True
    # One more is at work, and one may be on its way to a device.
    at_once = num_workers * PREFETCHED + 2
    return shutil.disk_usage(_SHARED).free >= at_once * (batch_bytes + _PAGES)


class WorkerStart:
    """What a process that reads does first."""

    def __init__(self, *, by_pipe: bool) -> None:
        self._by_pipe = by_pipe

    def __call__(self, _: int) -> None:
        """Prepare this process."""
        # Ctrl-C reaches every process of a terminal; the run hears it and ends those that read.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # One that is stopped while it hands a batch over would complain of its broken pipe.
        # Nothing else is lost: what goes wrong with an image or a batch is raised in the run.
        sys.excepthook = lambda *_: None
        # Python prints what went wrong, forgets the batch and continues.
        Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]
        if self._by_pipe:
            ForkingPickler.register(Tensor, _reduce_to_array)


def _end(error: BaseException, _: object) -> None:
    if not isinstance(error, ConnectionError):  # nobody waits for it any more
        os._exit(1)


def _reduce_to_array(tensor: Tensor) -> tuple[Callable[[Any], Tensor], tuple[np.ndarray]]:
    return torch.from_numpy, (tensor.numpy(),)
