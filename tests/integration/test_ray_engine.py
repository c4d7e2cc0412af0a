"""A Ray cluster of two nodes on this machine, whose workers and nodes die."""

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pytest

from ray_cluster import NODE, two_nodes
from vitscope.engines.local import LocalEngine
from vitscope.errors import NonFiniteError, UsageError, VitscopeError

pytest.importorskip("ray", reason="the extra ray is not installed")

import ray

import vitscope
from vitscope.engines.ray import Crew, RayEngine, _Pool

# What is defined here travels to the workers, which know no tests.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

HEAD = {
    # A node that is gone is noticed within five seconds, not half a minute.
    "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 10},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with two_nodes(tmp_path_factory, **HEAD) as cluster:
        yield cluster


@pytest.fixture
def engine(cluster):
    yield RayEngine(cluster.address)
    assert not ray.is_initialized()


class Worker:
    """Notes in a folder that it was made and what it was given; then does as it is told."""

    def __init__(self, folder, on_item):
        self.folder = folder
        self.on_item = on_item
        self.note("made", os.getpid())

    def note(self, what, number):
        (self.folder / f"{what}-{number}-{uuid4().hex}").touch()

    def __call__(self, item):
        self.note("tried", item)
        return self.on_item(item)


def maker_of(folder, on_item):
    return lambda: Worker(folder, on_item)


def read_notes(folder, what):
    return Counter(int(path.name.split("-")[1]) for path in folder.glob(f"{what}-*"))


def work_slowly(item):
    time.sleep(random.Random(item).uniform(0, 0.1))
    return {"item": item, "square": item * item, "rows": np.full(50_000, item)}


def never_end(item):
    time.sleep(600)


def kill_this_process():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def wait_until(reached):
    for _ in range(12_000):
        if reached():
            return
        time.sleep(0.05)
    pytest.fail("what was waited for did not come")


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def assert_no_worker_is_left(folder):
    workers = read_notes(folder, "made")
    assert workers
    wait_until(lambda: not any(map(is_alive, workers)))


def assert_same_as_local(results, num_items):
    expected = list(LocalEngine().run(lambda: work_slowly, range(num_items)))
    for (index, value), (position, other) in zip(sorted_pairs(results), expected, strict=True):
        assert index == position
        assert value.keys() == other.keys()
        assert value["square"] == other["square"]
        np.testing.assert_array_equal(value["rows"], other["rows"])


def sorted_pairs(results):
    return sorted(results, key=lambda pair: pair[0])


def test_all_workers_share_the_work_each_made_once(engine, tmp_path, capfd):
    def work(item):
        wait_until(lambda: len(read_notes(tmp_path, "made")) == 2)
        return work_slowly(item)

    on_terminate = signal.getsignal(signal.SIGTERM)
    results = list(engine.run(maker_of(tmp_path, work), range(20)))
    assert_same_as_local(results, 20)
    assert set(read_notes(tmp_path, "tried").values()) == {1}
    made = read_notes(tmp_path, "made")
    assert len(made) == 2
    assert set(made.values()) == {1}
    assert_no_worker_is_left(tmp_path)
    assert signal.getsignal(signal.SIGTERM) == on_terminate
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert capfd.readouterr() == ("", "")


def test_no_item_needs_no_cluster():
    assert list(RayEngine("127.0.0.1:1").run(pytest.fail, [])) == []


def test_a_connection_that_was_there_is_left_there_without_workers(cluster, tmp_path):
    def fail(item):
        raise UsageError("no such item")

    engine = RayEngine(num_workers=1)
    ray.init(cluster.address, log_to_driver=False)
    try:
        results = list(engine.run(maker_of(tmp_path, work_slowly), range(3)))
        assert_no_worker_is_left(tmp_path)
        with pytest.raises(UsageError, match=r"^no such item$"):
            list(engine.run(maker_of(tmp_path, fail), range(3)))
        assert_no_worker_is_left(tmp_path)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert_same_as_local(results, 3)
    assert len(read_notes(tmp_path, "made")) == 2


def test_a_worker_that_is_killed_is_replaced_and_its_item_done_once(engine, tmp_path):
    seen = tmp_path / "seen"

    def work(item):
        if item == 3 and not seen.exists():
            seen.touch()
            kill_this_process()
        return work_slowly(item)

    results = list(engine.run(maker_of(tmp_path, work), range(12)))
    assert_same_as_local(results, 12)
    assert read_notes(tmp_path, "tried") == Counter(dict.fromkeys(range(12), 1)) + Counter([3])
    assert_no_worker_is_left(tmp_path)


def test_an_item_that_kills_every_worker_is_named(engine, tmp_path):
    def work(item):
        if item == 2:
            kill_this_process()
        return item

    with pytest.raises(VitscopeError, match=r"^a Ray worker died 3 times with item 3 of 5: "):
        list(engine.run(maker_of(tmp_path, work), range(5)))
    assert read_notes(tmp_path, "tried")[2] == 3
    assert_no_worker_is_left(tmp_path)


def test_workers_that_die_before_they_are_ready_are_not_replaced_for_ever(engine, tmp_path):
    def make_worker():
        Worker(tmp_path, None)
        kill_this_process()

    with pytest.raises(VitscopeError, match=r"^a Ray worker died 3 times before it was ready"):
        list(engine.run(make_worker, range(1)))
    assert len(read_notes(tmp_path, "made")) == 3


def test_workers_that_die_beside_each_other_are_each_replaced(monkeypatch):
    """A node goes with four workers that load: none was replaced three times."""
    hired = []

    def hire():
        hired.append(len(hired))
        prepare = SimpleNamespace(remote=lambda *_, number=hired[-1]: ("prepare", number))
        return SimpleNamespace(
            prepare=prepare, run=SimpleNamespace(remote=lambda item: ("run", item))
        )

    def get(call):
        if call[0] == "prepare" and call[1] < 4:
            raise ray.exceptions.RayActorError
        return None if call[0] == "prepare" else call[1]

    kind = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=hire))
    acted = {"remote": lambda _: kind, "put": lambda given: given, "kill": lambda _: None}
    acted |= {"get": get, "wait": lambda calls, **_: (calls[:1], calls[1:])}
    monkeypatch.setattr("vitscope.engines.ray.ray", SimpleNamespace(**acted))
    assert list(_Pool(Worker, range(6), Crew(4, 1, 0)).run()) == [(n, n) for n in range(6)]
    assert len(hired) == 8


def test_a_node_that_goes_takes_no_item_with_it(cluster, engine, tmp_path):
    node = cluster.add_node(**NODE)
    node_id = node.node_id
    reached = tmp_path / "reached"

    def work(item):
        if ray.get_runtime_context().get_node_id() == node_id:
            reached.touch()
            never_end(item)
        wait_until(reached.exists)
        return work_slowly(item)

    def remove_node():
        wait_until(reached.exists)
        cluster.remove_node(node, allow_graceful=False)

    remover = threading.Thread(target=remove_node)
    remover.start()
    results = list(engine.run(maker_of(tmp_path, work), range(10)))
    remover.join()
    assert_same_as_local(results, 10)
    assert sorted(read_notes(tmp_path, "tried").values()) == [1] * 9 + [2]
    assert_no_worker_is_left(tmp_path)


def test_what_a_worker_raises_comes_as_it_was_and_ends_the_rest(engine, tmp_path):
    def work(item):
        if item == 1:
            raise NonFiniteError("the output of layer 3 is not finite", image=7)
        never_end(item)

    with pytest.raises(NonFiniteError, match=r"^the output of layer 3 is not finite$") as caught:
        list(engine.run(maker_of(tmp_path, work), range(4)))
    assert type(caught.value) is NonFiniteError
    assert caught.value.image == 7
    assert read_notes(tmp_path, "tried")[1] == 1
    assert_no_worker_is_left(tmp_path)


def test_a_worker_that_cannot_be_made_says_why(engine):
    def make_worker():
        raise UsageError("no such model")

    with pytest.raises(UsageError, match=r"^no such model$"):
        list(engine.run(make_worker, range(4)))


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_ctrl_c_leaves_no_worker_behind(engine, tmp_path):
    def interrupt():
        wait_until(lambda: read_notes(tmp_path, "tried"))
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        list(engine.run(maker_of(tmp_path, never_end), range(4)))
    interrupter.join()
    assert_no_worker_is_left(tmp_path)


def test_results_that_are_not_wanted_any_more_are_not_worked_on(engine, tmp_path):
    def work(item):
        return item if item == 0 else never_end(item)

    results = engine.run(maker_of(tmp_path, work), range(4))
    assert next(results) == (0, 0)
    results.close()
    assert_no_worker_is_left(tmp_path)


def test_a_node_without_vitscope_is_named(cluster, engine, tmp_path):
    package = tmp_path / "vitscope"
    package.mkdir()
    (package / "__init__.py").write_text("raise ModuleNotFoundError(name='vitscope')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    node = cluster.add_node(**NODE, env_vars={"PYTHONPATH": path})
    with pytest.raises(VitscopeError, match=r"^Ray node .* has no vitscope, this process has"):
        list(engine.run(maker_of(tmp_path, never_end), range(3)))
    cluster.remove_node(node)


def test_a_node_with_another_version_is_named(engine, monkeypatch):
    version = vitscope.__version__
    monkeypatch.setattr(vitscope, "__version__", "0.0.1")
    expected = rf"^Ray node .* has vitscope {version}, this process has vitscope 0\.0\.1: install"
    with pytest.raises(VitscopeError, match=expected):
        list(engine.run(lambda: abs, range(2)))


def test_an_address_without_a_cluster_is_named():
    with pytest.raises(VitscopeError, match=r"^nothing answers at 127\.0\.0\.1:1 \("):
        list(RayEngine("127.0.0.1:1").run(lambda: abs, [1]))
