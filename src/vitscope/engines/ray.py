"""Map items over a Ray cluster: each actor holds a model and processes one item at a time.

Ray Core, not Ray Data: there are few items, each of minutes, and only a lost item is done again.
"""

import logging
import os
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple

from vitscope.engines.local import R, T
from vitscope.errors import UsageError, VitscopeError
from vitscope.extras import require_package

try:
    import ray
except ModuleNotFoundError:
    require_package("ray", "ray", needed_by="the engine ray")
    raise
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

_LOSSES = (NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError)
"""Losses of a worker, its node or its result; they say nothing about the item itself."""

_MOST_LOSSES = 3


class RayEngine:
    """Maps items over actors of a Ray cluster; one that dies is replaced, up to twice per item."""

    shares_files = False
    is_lead = True

    def __init__(self, address: str | None = None, num_workers: int | None = None) -> None:
        # Connects only when it runs.
        if num_workers is not None and num_workers < 1:
            raise UsageError(f"num_workers {num_workers}: expected 1 or more")
        self._address = address
        self._num_workers = num_workers

    def run(
        self, make_worker: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Generator[tuple[int, R], None, None]:
        """Process all items; the workers are stopped at the end, however it ends."""
        if not items:
            return
        with _connected(self._address):
            crew = plan_crew(list_nodes(), self._num_workers)
            pool = _Pool(make_worker, items, crew)
            try:
                yield from pool.run()
            finally:
                pool.dismiss_all()

    def barrier(self) -> None:
        """Do nothing: no other process makes the same calls."""


class Crew(NamedTuple):
    """Number of workers and resources of each."""

    num_workers: int  # number of workers, at least 1
    num_cpus: int  # CPUs per worker; Ray limits its libraries to as many threads
    num_gpus: int  # GPUs per worker, 0 or 1


def plan_crew(nodes: Sequence[tuple[int, int]], num_workers: int | None) -> Crew:
    """Divide the nodes' resources equally among the workers."""
    with_gpus = [(cpus, gpus) for cpus, gpus in nodes if gpus]
    if with_gpus:
        num_cpus = min(cpus // gpus for cpus, gpus in with_gpus)
        return Crew(num_workers or sum(gpus for _, gpus in with_gpus), num_cpus, 1)
    processors = [cpus for cpus, _ in nodes if cpus]
    if not processors:
        if num_workers is None:
            raise UsageError(
                "the Ray cluster has neither GPUs nor processors now: add nodes, or give the "
                "number of workers to wait for"
            )
        return Crew(num_workers, 1, 0)

    def count_fitting(num_cpus: int) -> int:
        return sum(cpus // num_cpus for cpus in processors)

    wanted = num_workers or len(processors)
    shares = (n for n in range(min(processors), 1, -1) if count_fitting(n) >= wanted)
    num_cpus = next(shares, 1)
    return Crew(num_workers or count_fitting(num_cpus), num_cpus, 0)


def list_nodes() -> list[tuple[int, int]]:
    """List the (CPUs, GPUs) of the connected cluster's nodes."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    return [(int(have.get("CPU", 0)), int(have.get("GPU", 0))) for have in resources]


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    _check_reachable(address)
    # Ray replaces the SIGTERM handler; keep the caller's.
    on_terminate = signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise VitscopeError(
            f"the Ray cluster {'on this machine' if address is None else address} cannot be used "
            f"({_first_line(error)}): check the address, or start one with ray start --head"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    host, colon, port = (address or "").rpartition(":")
    if not (colon and port.isdecimal()) or "://" in host:
        return
    try:
        # Ray itself would retry for many minutes.
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise VitscopeError(
            f"nothing answers at {address} ({_first_line(error)}): give the address that ray start "
            "--head showed"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _define_actor() -> Any:
    # A class inside a function is pickled by value, so a node without vitscope can report that.
    class VitscopeWorker:
        @staticmethod
        def find_version() -> str | None:
            from importlib import import_module

            try:
                # Imported at run time: this must be the version installed on the node.
                return str(import_module("vitscope").__version__)
            except ModuleNotFoundError:
                return None

        def prepare(self, makers: list[Any], expected: str) -> str | None:
            import platform

            import ray

            version = self.find_version()
            if version != expected:
                found = "no vitscope" if version is None else f"vitscope {version}"
                return f"Ray node {platform.node()} has {found}"
            self.work = ray.get(makers[0])()
            return None

        def run(self, item: Any) -> Any:
            return self.work(item)

    return VitscopeWorker


class _Pool(Generic[T, R]):
    """The actors of one run, and the item that each has."""

    def __init__(
        self, make_worker: Callable[[], Callable[[T], R]], items: Sequence[T], crew: Crew
    ) -> None:
        actor = _define_actor()
        self._version: str = actor.find_version()
        actor_class: Any = ray.remote(actor)
        self._actor_class = actor_class.options(num_cpus=crew.num_cpus, num_gpus=crew.num_gpus)
        self._num_actors = min(crew.num_workers, len(items))
        # In a list, so that the actor fetches it only after it has checked for vitscope.
        self._makers = [ray.put(make_worker)]
        self._items = items
        self._queue = deque(range(len(items)))
        self._losses: Counter[int] = Counter()
        # Each actor with the item that it has, or None while it gets ready, and how many before it
        # died getting ready.
        self._calls: dict[Any, tuple[Any, int | None, int]] = {}

    def run(self) -> Generator[tuple[int, R], None, None]:
        for _ in range(self._num_actors):
            self._hire()
        unfinished = len(self._items)
        while unfinished:
            (done,), _ = ray.wait(list(self._calls), num_returns=1)
            # Keep it in `_calls`, so that its actor is dismissed if the run ends here.
            actor, index, losses = self._calls[done]
            try:
                value = ray.get(done)
            except RayTaskError as error:
                raise error.cause from error
            except _LOSSES:
                del self._calls[done]
                self._replace(actor, index, losses)
                continue
            except RayError as error:
                raise VitscopeError(f"Ray failed: {_first_line(error)}") from error
            if index is None and value is not None:
                raise VitscopeError(
                    f"{value}, this process has vitscope {self._version}: install the same version "
                    "on every node"
                )
            del self._calls[done]
            self._hand_out(actor)
            if index is not None:
                unfinished -= 1
                yield index, value

    def dismiss_all(self) -> None:
        for actor, _, _ in self._calls.values():
            ray.kill(actor)

    def _hire(self, losses: int = 0) -> None:
        actor = self._actor_class.remote()
        self._calls[actor.prepare.remote(self._makers, self._version)] = actor, None, losses

    def _hand_out(self, actor: Any) -> None:
        if self._queue:
            index = self._queue.popleft()
            self._calls[actor.run.remote(self._items[index])] = actor, index, 0
        else:
            ray.kill(actor)  # frees its GPU for others

    def _replace(self, actor: Any, index: int | None, losses: int) -> None:
        ray.kill(actor)  # it may only be unreachable and still running
        if index is None:
            losses = lost = losses + 1
            when, memory = "before it was ready", "memory to load the model"
        else:
            self._queue.appendleft(index)
            self._losses[index] += 1
            losses, lost = 0, self._losses[index]
            when = f"with item {index + 1} of {len(self._items)}"
            memory = "memory for it; smaller batches need less"
        if lost == _MOST_LOSSES:
            raise VitscopeError(
                f"a Ray worker died {lost} times {when}: see Ray's logs, and whether the nodes "
                f"have the {memory}"
            )
        if self._queue:
            self._hire(losses)
