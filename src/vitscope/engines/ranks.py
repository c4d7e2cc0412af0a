"""Items shared among the processes of torchrun, which wait by its key-value store.

Unlike a collective barrier, that has no timeout and ends at once if a rank fails.
"""

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from vitscope.engines.local import Engine, LocalEngine, R, T
from vitscope.errors import UsageError, VitscopeError

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

_FAILED = "vitscope failed"
_POLL_SECONDS = 0.1
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def detect_engine() -> Engine:
    """Choose the engine of this process: a torchrun rank, or this process alone."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return LocalEngine()
    return RanksEngine.from_environment()


class RanksEngine:
    """Rank r of w processes every w-th item from r on; rank 0 leads; all make the same calls."""

    shares_files = True

    def __init__(self, rank: int, num_ranks: int, store: "Store") -> None:
        self.is_lead = rank == 0
        self._rank = rank
        self._num_ranks = num_ranks
        self._store = store
        self._num_barriers = 0

    @classmethod
    def from_environment(cls) -> "RanksEngine":
        """Join the ranks that torchrun started, and select this rank's GPU if there is one."""
        missing = [name for name in _VARIABLES if not os.environ.get(name)]
        if missing:
            raise UsageError(
                f"WORLD_SIZE is set, but {' and '.join(missing)} not: start ranks with torchrun, "
                "or unset WORLD_SIZE"
            )
        import torch
        from torch.distributed import DistError
        from torch.distributed.rendezvous import rendezvous

        if torch.cuda.is_available():
            # Some launchers let each rank see only its own GPU, as number 0.
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        try:
            store, rank, num_ranks = next(rendezvous("env://"))
        except (DistError, ValueError) as error:
            raise VitscopeError(
                f"the other ranks cannot be reached at {os.environ['MASTER_ADDR']}:"
                f"{os.environ['MASTER_PORT']}: start them all with torchrun"
            ) from error
        return cls(rank, num_ranks, store)

    def run(
        self, make_worker: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Generator[tuple[int, R], None, None]:
        """Process the items of this rank, in order; then wait for the others."""
        own = range(self._rank, len(items), self._num_ranks)
        try:
            if own:
                worker = make_worker()
                for index in own:
                    self._check_others()
                    yield index, worker(items[index])
            self.barrier()
        except BaseException:
            # Report this failure, not that the store may be gone along with its rank.
            with suppress(VitscopeError), _plain_errors():
                # Only the first failure is stored: an empty value stands for none.
                self._store.compare_set(_FAILED, "", str(self._rank))
            raise

    def barrier(self) -> None:
        """Wait for all ranks."""
        self._num_barriers += 1
        arrived, left = (f"vitscope {word} {self._num_barriers}" for word in ("arrived", "left"))
        self._count(arrived, 1)
        self._wait_for_all(arrived)
        self._count(left, 1)
        if self.is_lead:
            # Without torchrun the store lives in the lead's process: if it ended before the others
            # had looked, they would see a failure.
            self._wait_for_all(left)

    def _wait_for_all(self, counter: str) -> None:
        while self._count(counter, 0) < self._num_ranks:
            self._check_others()
            time.sleep(_POLL_SECONDS)

    def _count(self, counter: str, more: int) -> int:
        with _plain_errors():
            return self._store.add(counter, more)

    def _check_others(self) -> None:
        with _plain_errors():
            failed = self._store.get(_FAILED).decode() if self._store.check([_FAILED]) else None
        if failed is not None:
            raise VitscopeError(
                f"rank {failed} of {self._num_ranks} failed, so this one stops too: see the "
                f"message of rank {failed}"
            )


@contextmanager
def _plain_errors() -> Iterator[None]:
    from torch.distributed import DistError

    try:
        yield
    except DistError as error:
        raise VitscopeError(
            "the other ranks can no longer be reached: see the first rank's message"
        ) from error
