"""The study, from training to its verdicts, on models that are too small to mean anything."""

import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "examples" / "study"


@pytest.fixture(scope="module")
def main():
    """The command, as `python examples/study` runs it."""
    spec = spec_from_file_location("study_main", STUDY / "__main__.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def interrupt(*arguments, **settings):
    """Press Ctrl-C."""
    raise KeyboardInterrupt


def test_one_command_trains_audits_and_judges_and_resumes(main, tmp_path, capsys, monkeypatch):
    command = ["--preset", "smoke", "--out", str(tmp_path), "--jobs", "1", "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr("measuring.one_shot", interrupt)  # after the first model's audit
        with pytest.raises(KeyboardInterrupt):
            main(command)
    assert [path.name for path in tmp_path.glob("cells/*/audit")] == ["audit"]
    capsys.readouterr()
    main(command)
    told = capsys.readouterr().out
    assert "2 models, 2 of them to train, on cpu" in told
    assert re.search(r"2 blocks, V4 +1 models: [\d,]+ \(\+\d\.\d%\), \d+\.\d MFLOP", told)
    assert "| V4 | 2 | 64 | 100 | 100 | 0 | 0 | 100 | 2 |" in told  # patches alone, by design
    assert "Maps of V1-depth2-width24-shortcut-64-seed0: cannot tell which map to publish" in told
    assert told.count("**H") == 14
    assert (tmp_path / "findings.md").read_text() in told
    for name in ("capacity", "trade-off", "time"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 10_000
    cells = sorted(tmp_path.glob("cells/*"))
    records = [json.loads((cell / "cell.json").read_text()) for cell in cells]
    assert records[0]["parameters"] == pytest.approx(records[1]["parameters"], rel=0.01)
    assert records[0]["flops"] == records[1]["flops"]
    for cell in cells:  # one audit before training, one after it
        lines = (cell / "history" / "metrics.csv").read_text().splitlines()
        column = lines[0].split(",").index("vitscope/variance_share_residual_patches")
        assert sum(bool(line.split(",")[column]) for line in lines[1:]) == 2

    monkeypatch.setattr("measuring.train", None)  # nothing is trained again
    main(command)
    assert "2 models, 0 of them to train" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="a study of another preset: choose another folder"):
        main(["--preset", "cpu", *command[2:]])
