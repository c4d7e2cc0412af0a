"""Names of runs: what tells results of one model apart, and the folder of the images."""

from pathlib import Path

import pytest

from made_results import change, make_audit, write_result
from vitscope.config import AuditConfig
from vitscope.errors import UsageError
from vitscope.figures.saved import load_results, tell_apart
from vitscope.files.printable import without_folders
from vitscope.images.addresses import name_set
from vitscope.images.paths import hide_parents
from vitscope.images.stores import StoredObject
from vitscope.results.saved_result import SavedResult

MORNING = "2026-01-02T03:04:05+00:00"


def label(folder, *runs):
    """Labels of runs of one model, each a model id and the name of the run."""
    for number, (model_id, name) in enumerate(runs):
        summary, columns = make_audit(n=30)
        write_result(
            folder / str(number), change(summary, model_id, "model", "id"), columns, name=name
        )
    return [result.label for result in tell_apart(load_results([folder]))]


@pytest.mark.parametrize(
    ("runs", "marks"),
    [
        ([("m", "cats"), ("m", "dogs")], ["(cats)", "(dogs)"]),
        ([("step-1", "x"), ("step-2", "x")], ["(step-1)", "(step-2)"]),
        ([("a", "x"), ("b", "y")], ["(a, x)", "(b, y)"]),
        ([("m", "x"), ("m", "x"), ("m", "y")], ["(x)", "(x, 2)", "(y)"]),
        ([("m", "x"), ("m", "x")], ["", "(2)"]),
        ([("m", "x")], [""]),
        ([("m", "\x1b[31m</b>"), ("m", "y")], ["(?[31m</b>)", "(y)"]),
    ],
)
def test_results_of_one_model_are_marked_by_what_differs(tmp_path, runs, marks):
    assert label(tmp_path, *runs) == [f"DINOv2 S {mark}".strip() for mark in marks]


@pytest.mark.parametrize(
    ("finished", "marks"),
    [
        (["2026-01-02T03:04:05+00:00", "2026-01-02T04:10:00+01:00"], ["03:04 UTC", "03:10 UTC"]),
        (
            ["2026-01-02T03:04:05+00:00", "2026-01-02T03:04:06+00:00"],
            ["03:04:05 UTC", "03:04:06 UTC"],
        ),
        (["2026-01-02T03:04:05+00:00", "2026-01-03T03:04:05+00:00"], ["2026-01-02", "2026-01-03"]),
        (["2026-01-02T03:04:05+00:00"] * 2, ["", "2"]),
        (["2026-01-02T03:04:05+00:00", "</b>"], ["", "2"]),
        (["2026-01-02T03:04:05+00:00", 3], ["", "2"]),
    ],
)
def test_runs_of_one_name_are_told_apart_by_when_they_finished(tmp_path, finished, marks):
    for number, when in enumerate(finished):
        write_result(tmp_path / str(number), *make_audit(n=30), name="x", finished=when)
    found = [one.label for one in tell_apart(load_results([tmp_path]))]
    assert found == [f"DINOv2 S ({mark})".removesuffix(" ()") for mark in marks]


def test_results_of_one_size_keep_the_order_in_which_they_are_given(tmp_path):
    for name in ("b", "a"):
        write_result(tmp_path / name, *make_audit(n=30, name=name))
    given = load_results([tmp_path / "b", tmp_path / "a"])
    assert [result.folder.name for result in given] == ["b", "a"]


def test_a_merged_result_has_the_names_of_its_parts(tmp_path):
    parts = [{"name": name} for name in ("a", "b", "a")]
    folder = write_result(tmp_path / "merged", *make_audit(n=30), merged_from=parts)
    assert SavedResult.load(folder).name == "a + b"


@pytest.mark.parametrize("name", ["", "  ", 3])
def test_a_name_without_words_is_refused(name):
    with pytest.raises(UsageError, match=f"name {name!r}: expected a few words"):
        AuditConfig(name=name)


def test_a_set_is_called_like_the_folder_that_has_all_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert name_set([Path("1.png")]) == tmp_path.name
    assert name_set([Path("photos/cats/1.png"), tmp_path / "photos/dogs/2.png"]) == "photos"
    assert name_set([Path("photos/cats/1.png"), Path("photos/cats/2.png")]) == "cats"
    stored = [StoredObject(f"s3://bucket/set/{number}.png") for number in range(2)]
    assert name_set(stored) == "set"
    assert name_set([*stored, Path("photos/1.png")]) == ""


@pytest.mark.parametrize(
    ("paths", "shown"),
    [
        (["/home/me/set/a/1.png", "/home/me/set/b/2.png"], ["set/a/1.png", "set/b/2.png"]),
        (["/data/a/1.png", "/home/b/2.png"], ["a/1.png", "b/2.png"]),
        (["set/1.png"], ["set/1.png"]),
        (["s3://bucket/set/1.png"], ["s3://bucket/set/1.png"]),
        ([], []),
    ],
)
def test_paths_are_shown_from_the_folder_of_the_set_on(paths, shown):
    assert hide_parents(paths) == shown


def test_the_name_of_the_home_folder_is_shown_nowhere(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    assert name_set([Path("/home/me/dog.jpg")]) == ""
    assert name_set([Path("/home/me/set/dog.jpg")]) == "set"
    assert hide_parents(["/home/me/a/1.png", "/home/me/2.png"]) == ["a/1.png", "2.png"]
    assert hide_parents(["/data/a/1.png", "/home/me/2.png"]) == ["a/1.png", "2.png"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/models/step-1", "step-1"),
        ("timm:vit@/home/me/step-1.pt", "timm:vit@step-1.pt"),
        ("of the audit /home/me/a, next to it", "of the audit a, next to it"),
        (r"C:\Users\me\step-1 and ~/models/x", "step-1 and x"),
        ("https://a.org/b/c, s3://a/b/c, a/b/c, 3/16 / 2, 1/8", None),
    ],
)
def test_folders_of_absolute_paths_are_left_out_of_texts(text, shown):
    assert without_folders(text) == (text if shown is None else shown)
