"""Results named on the command line: wildcards, and what is not there."""

import subprocess
import sys

from vitscope.cli.use_results import find_folders


def test_results_that_are_not_there_are_refused_before_torch_is_imported(tmp_path):
    there, wildcard = str(tmp_path), str(tmp_path / "*")
    commands = [
        ["merge", there, wildcard, "--out", "out"],
        ["figures", wildcard, "--out", "out"],
        ["report", there, wildcard],
        ["serve", wildcard, "--model", "dinov2-small"],
    ]
    program = f"import sys\nfrom vitscope.cli import main\nprint([main(c) for c in {commands}])\n"
    program += "print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[2, 2, 2, 2]", "False"]
    assert done.stderr.count("/* does not exist: expected a result of vitscope") == 4


def test_wildcards_stand_for_the_results_that_they_match(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
    assert find_folders([tmp_path / "*", tmp_path]) == [tmp_path / "a", tmp_path / "b", tmp_path]
