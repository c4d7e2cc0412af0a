"""What an engine is: it maps a function over items; and the one that does so in this process."""

from collections.abc import Callable, Generator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")
R = TypeVar("R")


@runtime_checkable
class Engine(Protocol):
    """Maps a function over items, each exactly once, in whichever order is quickest.

    Attributes:
        shares_files: Whether what a worker writes to a local disk is there for whoever asked. Where
            it is not, all that is to be kept must be in what the worker returns.
        is_lead: Whether this process finishes the work: one of all those that make the same calls.
    """

    @property
    def shares_files(self) -> bool: ...  # noqa: D102

    @property
    def is_lead(self) -> bool: ...  # noqa: D102

    def run(
        self, make_worker: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Generator[tuple[int, R], None, None]:
        """Work on the items that fall to this process, or on all of them.

        When the lead has had the last result, every item is done. Close the iterator, or use it up:
        one that is left half-used keeps its workers.
        """
        ...

    def barrier(self) -> None:
        """Wait until every process that makes the same calls has come this far."""
        ...


class LocalEngine:
    """Makes one worker and goes through the items in order, each when it is asked for."""

    shares_files = True
    is_lead = True

    def run(
        self, make_worker: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Generator[tuple[int, R], None, None]:
        """Work on all items, in order."""
        if items:
            worker = make_worker()
            for index, item in enumerate(items):
                yield index, worker(item)

    def barrier(self) -> None:
        """Nothing to wait for: there is one process."""
