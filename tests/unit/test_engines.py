"""Engines hand out every item once, and say plainly what is missing where one cannot start."""

import subprocess
import sys
import threading
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore

from vitscope.engines.local import LocalEngine
from vitscope.engines.ranks import RanksEngine, detect_engine
from vitscope.errors import ResultError, UsageError, VitscopeError

RANK_VARIABLES = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29555",
}


def run_ranks(num_ranks, work):
    """What `work(engine)` gives in each of several ranks at once: a value or an error."""
    store = HashStore()
    outcomes = {}

    def run_rank(rank):
        try:
            outcomes[rank] = work(RanksEngine(rank, num_ranks, store))
        except VitscopeError as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run_rank, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
        assert not thread.is_alive()
    return [outcomes[rank] for rank in range(num_ranks)]


def square_all(engine, items):
    return list(engine.run(lambda: lambda item: item * item, items))


def test_the_local_engine_makes_one_worker_and_works_when_asked():
    made, worked = [], []

    def make_worker():
        made.append(True)
        return lambda item: worked.append(item) or -item

    results = LocalEngine().run(make_worker, [5, 3, 4])
    assert made == []
    assert next(results) == (0, -5)
    assert worked == [5]
    assert list(results) == [(1, -3), (2, -4)]
    assert made == [True]


def test_the_local_engine_raises_what_the_worker_raised():
    error = ResultError("of the worker")

    def fail(item):
        raise error

    with pytest.raises(ResultError) as caught:
        list(LocalEngine().run(lambda: fail, [1]))
    assert caught.value is error


@settings(max_examples=25, deadline=None)
@given(items=st.lists(st.integers(), max_size=12), num_ranks=st.integers(1, 5))
def test_ranks_share_items_out_and_each_is_had_once(items, num_ranks):
    shares = run_ranks(num_ranks, lambda engine: square_all(engine, items))
    together = sorted(pair for share in shares for pair in share)
    assert together == square_all(LocalEngine(), items)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_no_worker_is_made_where_no_item_falls():
    made = []

    def work(engine):
        def make_worker():
            made.append(threading.get_ident())
            return abs

        return list(engine.run(make_worker, [-1, -2]))

    assert run_ranks(4, work) == [[(0, 1)], [(1, 2)], [], []]
    assert len(set(made)) == len(made) == 2
    assert list(LocalEngine().run(pytest.fail, [])) == []


def test_the_lead_is_done_when_every_rank_is():
    finished = threading.Event()
    release = threading.Event()

    def work(engine):
        def slow(item):
            if not engine.is_lead:
                release.wait(timeout=300)
                finished.set()
            return item

        results = engine.run(lambda: slow, [0, 1])
        assert next(results) == ((0, 0) if engine.is_lead else (1, 1))
        if engine.is_lead:
            assert not finished.is_set()
            release.set()
        assert list(results) == []
        return finished.is_set()

    assert run_ranks(2, work) == [True, True]


def test_what_the_lead_prepares_before_a_barrier_is_there_after_it():
    prepared = []

    def work(engine):
        if engine.is_lead:
            prepared.append("folder")
        engine.barrier()
        seen = list(prepared)
        engine.barrier()
        return seen

    assert run_ranks(3, work) == [["folder"]] * 3


@pytest.mark.parametrize("failing", [0, 2])
def test_a_rank_that_fails_stops_the_others(failing):
    def work(engine):
        def worker(item):
            if item == failing:
                raise ResultError("of the worker")
            return item

        return list(engine.run(lambda: worker, [0, 1, 2]))

    outcomes = run_ranks(3, work)
    assert str(outcomes.pop(failing)) == "of the worker"
    for outcome in outcomes:
        assert isinstance(outcome, VitscopeError)
        assert str(outcome).startswith(f"rank {failing} of 3 failed")


def test_a_rank_whose_results_are_not_wanted_any_more_stops_the_others():
    def work(engine):
        results = engine.run(lambda: abs, [1, 2, 3])
        if engine.is_lead:
            next(results)
            results.close()
            return None
        return list(results)

    outcomes = run_ranks(2, work)
    assert outcomes[0] is None
    assert str(outcomes[1]).startswith("rank 0 of 2 failed")


@pytest.mark.parametrize("world_size", [None, "1"])
def test_one_process_is_an_engine_of_its_own(monkeypatch, world_size):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    engine = detect_engine()
    assert isinstance(engine, LocalEngine)
    assert engine.is_lead
    engine.barrier()


def test_half_an_environment_is_named(monkeypatch):
    for name, value in RANK_VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR")
    monkeypatch.setenv("RANK", "")
    with pytest.raises(UsageError, match=r"RANK and MASTER_ADDR not: start ranks with torchrun"):
        detect_engine()


def test_an_environment_that_cannot_be_is_named(monkeypatch):
    for name, value in RANK_VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "99999")
    with pytest.raises(VitscopeError, match=r"cannot be reached at 127\.0\.0\.1:99999"):
        detect_engine()


@pytest.mark.parametrize(
    ("local_rank", "num_gpus", "device"),
    [
        pytest.param("1", 2, 1, id="a GPU each"),
        pytest.param("3", 1, 0, id="each sees its own alone"),
    ],
)
def test_a_rank_takes_its_gpu(monkeypatch, local_rank, num_gpus, device):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    # With no such port, all ends before any other rank is waited for.
    for name, value in {**RANK_VARIABLES, "MASTER_PORT": "99999"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(VitscopeError, match="cannot be reached"):
        detect_engine()
    assert taken == [device]


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "vitscope.engines.ray", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'vitscope\[ray\]'"):
        import_module("vitscope.engines.ray")


def test_engines_but_ray_import_neither_torch_nor_ray():
    program = "import vitscope.engines.ranks, sys; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not {"torch", "ray"} & set(done.stdout.splitlines())
