"""The smoke run resumes too, and writes into nothing that is not its own."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from blank_figures import blank_figures
from vitscope.cli import main


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("smoke") / "paper"
    assert smoke_again(out) == 0
    return out


def smoke_again(out, *arguments):
    options = ["--smoke", "--out", str(out), "--draws", "2"]
    options += ["--families", "dinov2-reg", "--sizes", "s"]
    with blank_figures():
        return main(["reproduce", *(arguments or options)])


def test_smoke_goes_on_too_and_leaves_its_images_as_they_are(smoke, capsys):
    image = smoke / "smoke-images" / "class-0" / "00.png"
    before = image.stat().st_mtime_ns
    options = ["--config", str(smoke / "run.toml")]
    assert smoke_again(smoke, *options) == 0
    assert "kept" in capsys.readouterr().out
    assert smoke_again(smoke, *options, "--quiet", "--families", "deit3") == 0
    assert capsys.readouterr() == ("", "")
    assert 'families = "deit3"' in (smoke / "run.toml").read_text()
    assert image.stat().st_mtime_ns == before


def test_smoke_writes_nothing_into_a_folder_of_something_else(out, tmp_path, capsys):
    before = {path.name for path in out.iterdir()}
    assert smoke_again(out) == 2
    assert "give --smoke another folder" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == before
    letters = tmp_path / "letters"
    (letters / "smoke-images").mkdir(parents=True)
    photograph = letters / "smoke-images" / "ours.png"
    Image.new("RGB", (8, 8)).save(photograph)
    assert smoke_again(letters) == 2
    (letters / "letter.txt").write_text("dear")
    assert smoke_again(letters) == 2
    assert {path.name for path in letters.iterdir()} == {"smoke-images", "letter.txt"}
    assert photograph.exists()


def test_a_foreign_file_among_the_figures_costs_the_figures_alone(smoke, tmp_path, capsys):
    out = Path(shutil.copytree(smoke, tmp_path / "paper"))
    shutil.rmtree(out / "claims")
    (out / "figures" / "letter.txt").write_text("dear")
    assert smoke_again(out) == 1
    captured = capsys.readouterr()
    assert (out / "claims" / "claims.csv").exists()
    assert "you measured" in captured.out
    assert len(captured.err.strip().splitlines()[-1:]) == 1
    assert "figures also holds letter.txt" in captured.err
    assert (out / "figures" / "letter.txt").read_text() == "dear"
