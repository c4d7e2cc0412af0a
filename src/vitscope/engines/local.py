"""The engine interface, and the engine that runs in this process."""

from collections.abc import Callable, Generator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")
R = TypeVar("R")


@runtime_checkable
class Engine(Protocol):
    """Maps a function over items, each exactly once, in any order."""

    @property
    def shares_files(self) -> bool:
        """Whether the caller can read what workers write; else only what they return is kept."""
        ...

    @property
    def is_lead(self) -> bool:
        """Whether this process finishes the work; one of all that make the same calls."""
        ...

    def run(
        self, make_worker: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Generator[tuple[int, R], None, None]:
        """Process this process's items; exhaust or close the iterator, or workers stay alive."""
        ...

    def barrier(self) -> None:
        """Wait for all processes that make the same calls."""
        ...


class LocalEngine:
    """Processes items one by one, in order, as results are requested."""

    shares_files = True
    is_lead = True

    def run(
        self, make_worker: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Generator[tuple[int, R], None, None]:
        """Process all items, in order."""
        if items:
            worker = make_worker()
            for index, item in enumerate(items):
                yield index, worker(item)

    def barrier(self) -> None:
        """Do nothing: there is only one process."""
