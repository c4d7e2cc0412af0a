"""What vitscope wrote is known by its indexes: nothing else is replaced, none of it is audited."""

import json
import shutil

import pytest

from blank_figures import blank_figures
from images import write_classes, write_images
from made_results import make_one_shot, write_result
from vitscope.cli import main
from vitscope.errors import UsageError
from vitscope.figures.draw import draw_figures
from vitscope.files.own_files import INDEX, check_figures_target, is_figures
from vitscope.files.storage import is_result
from vitscope.images.labels import find_classes
from vitscope.images.search import find_images
from vitscope.reproduction.claims import judge_claims, write_claims


@pytest.fixture(scope="module", autouse=True)
def quick_figures():
    with blank_figures():
        yield


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A result and its figures."""
    folder = tmp_path_factory.mktemp("drawn")
    made = write_result(folder / "one-shot", make_one_shot())  # few figures show one
    draw_figures([made], folder / "figures", formats=["svg"])
    return folder


@pytest.fixture
def made(drawn, tmp_path):
    return shutil.copytree(drawn / "one-shot", tmp_path / "made")


@pytest.fixture
def figures(drawn, tmp_path):
    return shutil.copytree(drawn / "figures", tmp_path / "figures")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["notes.md", "mine.png", "mine.pdf", "mine.svg", "mine.json"])
def test_a_file_of_the_users_among_figures_is_never_replaced(made, figures, name):
    (figures / name).write_text("mine")
    before = contents(figures)
    with pytest.raises(UsageError, match=f"also holds {name}, which was not written by vitscope"):
        draw_figures([made], figures, formats=["svg"], overwrite=True)
    assert contents(figures) == before
    (figures / name).unlink()
    draw_figures([made], figures, formats=["png"], overwrite=True)
    assert not list(figures.glob("*.svg"))


@pytest.mark.parametrize("name", ["index.md", "fig3b_one_shot_nearest_top1.svg"])
def test_a_figure_or_page_that_was_changed_is_never_replaced(made, figures, name, capsys):
    assert (figures / name).is_file()
    (figures / name).write_text("edited by hand")
    options = ["figures", str(made), "--out", str(figures), "--format", "svg", "--overwrite"]
    assert main(options) == 2
    assert f"also holds {name}, which was not written by vitscope or was changed since" in (
        capsys.readouterr().err
    )
    assert (figures / name).read_text() == "edited by hand"


def test_an_index_that_lists_no_digests_vouches_for_nothing(figures):
    index = json.loads((figures / INDEX).read_text())
    del index["digests"]
    (figures / INDEX).write_text(json.dumps(index))
    assert not is_figures(figures)
    with pytest.raises(UsageError, match="also holds"):
        check_figures_target(figures, overwrite=True)


def test_a_table_of_claims_that_was_changed_is_never_replaced(tmp_path):
    folder = tmp_path / "claims"
    write_claims(folder, judge_claims([]))
    write_claims(folder, judge_claims([]))
    (folder / "claims.md").write_text("with my remarks")
    with pytest.raises(UsageError, match=r"also holds claims\.md"):
        write_claims(folder, judge_claims([]))
    assert (folder / "claims.md").read_text() == "with my remarks"


@pytest.mark.parametrize(
    "name", ["gallery/labels.csv", "maps/mine.npz", "layers/notes.json", "sums/000/copy.parquet"]
)
def test_a_result_that_holds_a_file_of_the_users_is_never_replaced(tmp_path, name):
    folder = tmp_path / "result"
    (folder / name).parent.mkdir(parents=True)
    (folder / "summary.json").write_text('{"schema_version": 2, "kind": "audit"}')
    for path in ("features/011/000000.safetensors", "sums/011/moments/001.safetensors"):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_bytes(b"")
    assert is_result(folder)
    (folder / name).write_text("mine")
    assert not is_result(folder)


def test_own_results_and_figures_are_no_images(made, figures, tmp_path):
    photos = write_images(tmp_path / "photos", 3)
    expected = find_images(photos)
    assert expected.notes == ()
    figures.rename(photos / "figures")
    made.rename(photos / "one-shot")
    draw_figures([photos / "one-shot"], photos / "deep" / "png", formats=["png"])
    found = find_images(photos)
    assert tuple(found) == tuple(expected)
    assert set(found.skipped) == {photos / n for n in ("one-shot", "figures", "deep/png")}
    (note,) = found.notes
    assert note.startswith("3 folders written by vitscope skipped in the search for images: ")
    # A photograph among them is one, also in the place of a figure.
    mine = [
        photos / "deep" / "png" / name for name in ("mine.png", "fig3b_one_shot_nearest_top1.png")
    ]
    for path in mine:
        path.write_bytes((photos / "0000.png").read_bytes())
    assert set(find_images(photos)) == {*expected, *mine}
    with pytest.raises(UsageError, match=r"names no image: .* none of which vitscope wrote"):
        find_images(photos / "one-shot")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", '{"schema_version": 2, "kind": "holiday"}'),
        ("summary.json", '{"schema_version": 2, "kind": "audit"}'),
        ("summary.json", "{"),
        ("index.json", '{"kind": "figures", "digests": {"0000.png": "0", "../0001.png": 3}}'),
        ("index.json", '{"kind": "figures", "digests": ["0000.png"]}'),
        ("index.json", '["0000.png"]'),
    ],
)
def test_photographs_beside_a_file_of_that_name_are_images(tmp_path, name, content):
    photos = write_images(tmp_path / "photos", 3)
    (photos / name).write_text(content)
    assert len(find_images(photos)) == 3


def test_own_folders_are_no_classes(made, figures, tmp_path):
    folder = write_classes(tmp_path / "classes", 3)
    expected = find_classes(folder)
    made.rename(folder / "result")
    (folder / "explained").mkdir()
    draw_figures([folder / "result"], folder / "explained" / "figures", formats=["png"])
    figures.rename(folder / "class 0" / "figures")
    found = find_classes(folder)
    assert found.classes == expected.classes
    assert found.too_small == expected.too_small == ()
    assert found.num_unlabelled == 0
    assert "3 folders written by vitscope skipped" in found.notes[0]
