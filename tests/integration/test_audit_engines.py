"""One audit on several processes: a Ray cluster whose workers die, and the ranks of torchrun."""

import os
import signal
import sys
from dataclasses import replace

import pytest

from audits import assert_same_numbers, numbers, tiny_vit
from containers import make_image_column, write_parquet
from forks import run_torchrun
from images import write_images
from ray_cluster import two_nodes
from sharded import SeenProgress
from vitscope import AuditConfig, AuditResult, audit
from vitscope.errors import ImbalanceError

NUM_IMAGES = 20
CONFIG = AuditConfig(batch_size=2, shard_size=4, dtype="float64", gallery=4, trace=6)
ROUNDING = 1e-12
"""Of float64 sums of the same order, in processes with another number of threads."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), NUM_IMAGES)


@pytest.fixture(scope="module")
def local(images, tmp_path_factory):
    return audit(tiny_vit(), images, CONFIG, out=tmp_path_factory.mktemp("local") / "r")


def assert_same(result, expected):
    assert_same_numbers(numbers(result), numbers(expected), ROUNDING)
    ours, theirs = result.images.to_pydict(), expected.images.to_pydict()
    assert ours["image_id"] == theirs["image_id"]
    assert ours["path"] == theirs["path"]
    assert result.gallery.images == expected.gallery.images
    assert result.summary.trace.num_images == 6
    assert_same_numbers(result.summary.trace, expected.summary.trace, ROUNDING)


class Dying:
    """The model's forward; the first worker that comes to it a second time is killed there."""

    def __init__(self, run, mark):
        self.run = run
        self.mark = mark
        self.lead = os.getpid()
        self.calls = 0

    def __call__(self, pixels):
        self.calls += os.getpid() != self.lead
        if self.calls == 2 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.run(pixels)


class Unbalanced:
    """A forward that is not the one the adapter takes apart."""

    def __init__(self, run):
        self.run = run

    def __call__(self, pixels):
        return self.run(pixels) + 1


@pytest.fixture(scope="module")
def ray_engine(tmp_path_factory):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    from vitscope.engines.ray import RayEngine

    # What is defined here travels to the workers, which know no tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with two_nodes(tmp_path_factory) as cluster:
        yield RayEngine(cluster.address)


def test_two_nodes_and_a_worker_that_is_killed_give_the_same_numbers(
    ray_engine, images, local, tmp_path
):
    vit, mark = tiny_vit(), tmp_path / "killed"
    vit = replace(vit, run=Dying(vit.run, mark))
    seen = SeenProgress()
    result = audit(
        vit,
        images,
        CONFIG,
        out=tmp_path / "r",
        engine=ray_engine,
        on_progress=seen,
    )
    assert mark.exists()
    assert_same(result, local)
    assert seen == [(4 * k, NUM_IMAGES) for k in range(1, 6)]


def test_what_a_worker_refuses_is_refused_here(ray_engine, images, tmp_path):
    vit = tiny_vit()
    vit = replace(vit, run=Unbalanced(vit.run))
    with pytest.raises(ImbalanceError, match="embedding readout"):
        audit(vit, images, CONFIG, out=tmp_path / "r", engine=ray_engine)
    assert not list(tmp_path.iterdir())


RANK = """
import os
import sys
from pathlib import Path
from audits import tiny_vit
from vitscope import AuditConfig, audit
from vitscope.engines.ranks import detect_engine
from vitscope.runs import resources
from vitscope.runs.traced_images import TracedImages

rank, folder, home = int(os.environ["RANK"]), *map(Path, sys.argv[1:])
# Each device would have another choice: that of the lead counts.
choose = resources.choose_batch_size
free = {0: 2, 1: 1}[rank]
resources.choose_batch_size = lambda *given: (
    free if given[2].batch_size == "auto" else choose(*given)
)
config = AuditConfig(shard_size=4, dtype="float64", gallery=4, trace=6)
if rank > 0:  # the lead alone traces
    TracedImages.check = TracedImages.write = None
engine = detect_engine()
images = sorted(folder.iterdir())
for given, out in (
    (images, "of files"),
    ([home / "table.parquet"], "of a table"),
    (images if rank == 0 else images[:-1], "refused"),
):
    result = audit(tiny_vit(), given, config, out=home / "out" / out, engine=engine)
    assert result.summary.data.num_images == 20
    # At once: the other rank writes to the same pipe.
    os.write(1, f"rank {rank} finished {out}\\n".encode())
"""


@pytest.fixture(scope="module")
def ranks(images, tmp_path_factory):
    """Three audits on two ranks of one torchrun, for starting one takes a second."""
    home = tmp_path_factory.mktemp("ranks")
    contents = [path.read_bytes() for path in sorted(images.iterdir())]
    column = make_image_column([*contents, *contents[:5]])  # a shard of copies alone, and another
    write_parquet(home / "table.parquet", {"image": column})
    (home / "rank.py").write_text(RANK)
    return home / "out", *run_torchrun(home / "rank.py", images, home)


@pytest.mark.parametrize("name", ["of files", "of a table"])
def test_the_ranks_of_torchrun_give_the_same_numbers(ranks, local, name):
    out, _, told, err = ranks
    assert {f"rank {rank} finished {name}" for rank in (0, 1)} <= set(told.splitlines()), err
    result = AuditResult.load(out / name)
    assert_same_numbers(numbers(result), numbers(local), ROUNDING)
    if name == "of files":
        assert_same(result, local)
    else:
        assert result.summary.data.num_repeated == 5
        assert result.images["image_id"].to_pylist() == local.images["image_id"].to_pylist()


def test_a_rank_that_sees_other_images_is_refused(ranks):
    out, code, _, err = ranks
    assert code != 0
    assert "differs from the leading one (num_images was 20 and now is 19" in err
    # Of the finished ones nothing is left but the results.
    assert {p.name for p in out.iterdir() if "refused" not in p.name} == {"of files", "of a table"}
    assert not (out / "refused").exists()
