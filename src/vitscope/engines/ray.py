"""Items over a Ray cluster: actors that hold a model, and one item at a time for each.

Ray Core, not Ray Data. There are few items, each takes minutes, and what comes of one is a folder
of tables and sums; a worker holds a model of up to billions of parameters. Ray Data is made for the
opposite, streams of many small rows through functions: results would pass as rows through blocks of
the object store, and a lost block would be had again by running all that led to it. Here a lost
item is handed out again, and nothing else is.

Workers share no disk with the process that asked: what they return is all there is of them. Its
arrays are read-only, as they lie in the object store.

Ray neither opens a dashboard nor reports on its use, and what workers print stays in Ray's logs.
Under `uv run` Ray makes the environment of every worker anew from the working folder, which it
first uploads: set `RAY_ENABLE_UV_RUN_RUNTIME_ENV=0` where vitscope is installed on the nodes.
"""

import logging
import os
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

from vitscope.engines.local import R, T
from vitscope.errors import UsageError, VitscopeError

try:
    import ray
except ModuleNotFoundError as missing:
    raise UsageError(
        "the engine ray needs the package ray, which is not installed: pip install 'vitscope[ray]'"
    ) from missing
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
"""The worker, its node or its result is gone: not a word about what the item itself does."""

_MOST_LOSSES = 3


class RayEngine:
    """Hands items out to actors of a Ray cluster; a worker that dies is replaced.

    Each item is handed out up to three times, should workers die over it. What the function itself
    raises is not tried again, and is raised here as it was there.
    """

    shares_files = False
    is_lead = True

    def __init__(self, address: str | None = None, num_workers: int | None = None) -> None:
        # The cluster is not connected to yet.
        if num_workers is not None and num_workers < 1:
            raise UsageError(f"num_workers {num_workers}: expected 1 or more")
        self._address = address
        self._num_workers = num_workers

    def run(
        self, make_worker: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Generator[tuple[int, R], None, None]:
        """Work on all items; workers are gone when it ends, however it ends."""
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
        """Nothing to wait for: one process asks, and no other makes the same calls."""


class Crew(NamedTuple):
    """How many workers there are, and what each takes of its node.

    Attributes:
        num_workers: Workers, 1 or more.
        num_cpus: Processors of each; Ray tells the libraries in it to use as many threads.
        num_gpus: GPUs of each, 0 or 1.
    """

    num_workers: int
    num_cpus: int
    num_gpus: int


def plan_crew(nodes: Sequence[tuple[int, int]], num_workers: int | None) -> Crew:
    """Share out what the nodes have, the same to every worker."""
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
    """The nodes of the cluster that this process is connected to."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    return [(int(have.get("CPU", 0)), int(have.get("GPU", 0))) for have in resources]


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    _check_reachable(address)
    # Ray takes the terminate signal for itself; here it goes on meaning what it meant.
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
        # Ray itself would try for many minutes.
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise VitscopeError(
            f"nothing answers at {address} ({_first_line(error)}): give the address that ray start "
            "--head showed"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _define_actor() -> Any:
    # Within a function, a class travels by value: a node without vitscope can still say so.
    class VitscopeWorker:
        @staticmethod
        def find_version() -> str | None:
            from importlib import import_module

            try:
                # Looked for as it runs: no floor of the house, but what is installed here.
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


@dataclass(frozen=True)
class _Call:
    """What an actor was last asked for: item `index`, or to get ready if that is None."""

    actor: Any
    index: int | None
    losses: int = 0
    """How many actors before this one died as they got ready."""


class _Pool(Generic[T, R]):
    """The actors of one run, and who has which item."""

    def __init__(
        self, make_worker: Callable[[], Callable[[T], R]], items: Sequence[T], crew: Crew
    ) -> None:
        actor = _define_actor()
        self._version: str = actor.find_version()
        actor_class: Any = ray.remote(actor)
        self._actor_class = actor_class.options(num_cpus=crew.num_cpus, num_gpus=crew.num_gpus)
        self._num_actors = min(crew.num_workers, len(items))
        # Within a list, so that the actor fetches it only after it has found vitscope.
        self._makers = [ray.put(make_worker)]
        self._items = items
        self._queue = deque(range(len(items)))
        self._losses: Counter[int] = Counter()
        self._calls: dict[Any, _Call] = {}

    def run(self) -> Generator[tuple[int, R], None, None]:
        for _ in range(self._num_actors):
            self._hire()
        unfinished = len(self._items)
        while unfinished:
            (done,), _ = ray.wait(list(self._calls), num_returns=1)
            # It stays among the calls, and so is dismissed, should the run end here.
            call = self._calls[done]
            try:
                value = ray.get(done)
            except RayTaskError as error:
                raise error.cause from error
            except _LOSSES:
                del self._calls[done]
                self._replace(call)
                continue
            except RayError as error:
                raise VitscopeError(f"Ray failed: {_first_line(error)}") from error
            if call.index is None and value is not None:
                raise VitscopeError(
                    f"{value}, this process has vitscope {self._version}: install the same version "
                    "on every node"
                )
            del self._calls[done]
            self._hand_out(call.actor)
            if call.index is not None:
                unfinished -= 1
                yield call.index, value

    def dismiss_all(self) -> None:
        for call in self._calls.values():
            ray.kill(call.actor)

    def _hire(self, losses: int = 0) -> None:
        actor = self._actor_class.remote()
        self._calls[actor.prepare.remote(self._makers, self._version)] = _Call(actor, None, losses)

    def _hand_out(self, actor: Any) -> None:
        if self._queue:
            index = self._queue.popleft()
            self._calls[actor.run.remote(self._items[index])] = _Call(actor, index)
        else:
            # Others may want its GPU.
            ray.kill(actor)

    def _replace(self, call: _Call) -> None:
        # It may be out of reach only, and at work.
        ray.kill(call.actor)
        losses = 0
        if call.index is None:
            losses = call.losses + 1
            if losses == _MOST_LOSSES:
                raise VitscopeError(
                    f"a Ray worker died {losses} times before it was ready: see Ray's logs, and "
                    "whether the nodes have the memory to load the model"
                )
        else:
            self._losses[call.index] += 1
            if self._losses[call.index] == _MOST_LOSSES:
                raise VitscopeError(
                    f"item {call.index} of {len(self._items)} was lost {_MOST_LOSSES} times with "
                    "the Ray worker that had it: see Ray's logs, and whether the nodes have the "
                    "memory for it; smaller batches need less"
                )
            self._queue.appendleft(call.index)
        if self._queue:
            self._hire(losses)
