"""Two processes that torchrun starts."""

import json

from forks import run_torchrun

PROGRAM = """
import json, os, sys
from pathlib import Path
from vitscope.engines.ranks import detect_engine

folder = Path(sys.argv[1])
engine = detect_engine()
if engine.is_lead:
    folder.joinpath("prepared").mkdir()
engine.barrier()
rank = os.environ["RANK"]

def make_worker():
    with open(folder / f"made-{rank}", "x"):
        pass
    def work(item):
        if str(item) == sys.argv[2]:
            raise ValueError(f"item {item}")
        folder.joinpath("prepared", str(item)).write_text(rank)
        return item * item
    return work

own = list(engine.run(make_worker, list(range(5))))
if engine.is_lead:
    done = sorted(int(path.name) for path in folder.joinpath("prepared").iterdir())
    folder.joinpath("result.json").write_text(json.dumps([own, done]))
engine.barrier()
"""


def run_program(folder, failing):
    program = folder / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    return run_torchrun(program, folder, failing)


def test_two_processes_share_the_work_and_the_lead_ends_last(tmp_path):
    code, _, err = run_program(tmp_path, "none")
    assert code == 0, err
    own, together = json.loads((tmp_path / "result.json").read_text())
    assert own == [[0, 0], [2, 4], [4, 16]]
    assert together == [0, 1, 2, 3, 4]
    ranks = [(tmp_path / "prepared" / str(item)).read_text() for item in range(5)]
    assert ranks == ["0", "1", "0", "1", "0"]
    assert sorted(path.name for path in tmp_path.glob("made-*")) == ["made-0", "made-1"]


def test_a_process_that_fails_ends_the_other(tmp_path):
    code, _, err = run_program(tmp_path, "3")
    assert code != 0
    assert "ValueError: item 3" in err
    assert not (tmp_path / "result.json").exists()
    # The other stopped when it was asked to, not when torchrun lost patience.
    assert "SIGKILL" not in err
