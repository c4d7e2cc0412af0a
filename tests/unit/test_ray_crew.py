"""How what a Ray cluster has is shared out among workers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscope.errors import UsageError

pytest.importorskip("ray", reason="the extra ray is not installed")

from vitscope.engines.ray import Crew, RayEngine, plan_crew


@pytest.mark.parametrize(
    ("nodes", "num_workers", "crew"),
    [
        pytest.param([(16, 0)], None, Crew(1, 16, 0), id="one machine"),
        pytest.param([(16, 0)], 3, Crew(3, 5, 0), id="its processors shared by three"),
        pytest.param([(4, 0), (16, 0)], None, Crew(5, 4, 0), id="unequal machines"),
        pytest.param([(4, 0), (16, 0)], 2, Crew(2, 4, 0), id="unequal machines, two workers"),
        pytest.param([(0, 0), (8, 0)], None, Crew(1, 8, 0), id="a head that does not work"),
        pytest.param([(64, 8), (64, 8)], None, Crew(16, 8, 1), id="GPUs"),
        pytest.param([(64, 8), (16, 0)], None, Crew(8, 8, 1), id="a machine without GPUs beside"),
        pytest.param([(64, 8), (8, 4)], 3, Crew(3, 2, 1), id="fewer than there are GPUs"),
        pytest.param([(2, 4)], None, Crew(4, 0, 1), id="more GPUs than processors"),
        pytest.param([(2, 0)], 5, Crew(5, 1, 0), id="more than fit"),
        pytest.param([(0, 0)], 4, Crew(4, 1, 0), id="a cluster that grows when asked"),
    ],
)
def test_a_crew_fits_its_cluster(nodes, num_workers, crew):
    assert plan_crew(nodes, num_workers) == crew


@given(
    processors=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    num_workers=st.none() | st.integers(1, 60),
)
def test_workers_have_as_many_processors_as_lets_them_work_at_once(processors, num_workers):
    crew = plan_crew([(cpus, 0) for cpus in processors], num_workers)
    fitting = [sum(cpus // share for cpus in processors) for share in range(1, 41)]
    wanted = len(processors) if num_workers is None else num_workers
    possible = [n for n in range(1, min(processors) + 1) if fitting[n - 1] >= wanted]
    assert crew.num_cpus == max(possible, default=1)
    assert crew.num_workers == (num_workers or fitting[crew.num_cpus - 1])


def test_a_cluster_with_nothing_to_give_is_named():
    with pytest.raises(UsageError, match=r"neither GPUs nor processors now: add nodes"):
        plan_crew([(0, 0)], None)


def test_no_worker_is_no_engine():
    with pytest.raises(UsageError, match=r"num_workers 0: expected 1 or more"):
        RayEngine(num_workers=0)
