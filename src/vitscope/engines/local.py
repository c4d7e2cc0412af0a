"""Everything in this process, one item after the other."""

from collections.abc import Callable, Generator, Sequence

from vitscope.engines.base import R, T


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
