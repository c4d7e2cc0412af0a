"""What is cited of a verdict: all that it rests on, in text that no reader takes for markup."""

from dataclasses import replace

import pytest

from made_judgements import make_judgement
from made_results import make_audit, make_one_shot, write_result
from vitscope import AuditResult
from vitscope.cli import main
from vitscope.errors import UsageError
from vitscope.images.paths import name_folder
from vitscope.results.citation_text import cite
from vitscope.results.saved_result import SavedResult

PROVENANCE = {"versions": {"vitscope": "1.2.3"}, "finished": "2026-11-29T10:00:00+00:00"}
PATHS = ("/home/me/photos/cats/1.png", "/home/me/photos/dogs/2.png")


def cite_audit(**of_model):
    summary = make_audit(n=60)[0]
    model = replace(summary.model, **of_model)
    return summary, cite(replace(summary, model=model), PROVENANCE, PATHS)


def test_a_citation_has_all_that_a_verdict_rests_on():
    summary, found = cite_audit(id="a/model")
    verdict = summary.last.verdict.text
    for words in ("vitscope 1.2.3", "a/model", "60 images of photos", f"layer {summary.layer}"):
        assert all(words in text for text in (found.sentence, found.bibtex, found.card))
    assert verdict in found.sentence
    assert "year = {2026}" in found.bibtex
    assert "Settings: default." in found.sentence
    assert "/home/me" not in found.sentence + found.bibtex + found.card


def find_key(citation):
    return citation.bibtex.partition(",")[0]


def test_two_runs_of_one_model_on_one_day_have_two_keys():
    summary = make_audit(n=60)[0]
    found = {name: cite(summary, PROVENANCE, PATHS, name) for name in ("cats", "dogs {}")}
    assert "60 images of photos (run cats): " in found["cats"].sentence
    assert "| run | cats |" in found["cats"].card
    assert "(run dogs ())" in found["dogs {}"].bibtex
    trained = cite(summary, PROVENANCE | {"weights_hash": "abc"}, PATHS, "cats")
    changed = replace(summary, settings=replace(summary.settings, renormalize=True))
    renormalized = cite(changed, PROVENANCE, PATHS, "cats")
    assert len({find_key(one) for one in (*found.values(), trained, renormalized)}) == 4
    assert find_key(cite(summary, PROVENANCE, (), "cats")) == find_key(found["cats"])


def test_names_are_no_markup():
    _, found = cite_audit(id="x}_%\\ | `<b>`\n", notes=("a | b\nc",))
    assert r"x)\_\%\textbackslash{}" in found.bibtex
    assert found.bibtex.startswith("@misc{vitscope-x-")
    # BibTeX counts braces, those after a backslash too.
    assert found.bibtex.count("{") == found.bibtex.count("}")
    assert "<b>" not in found.card
    rows = found.card.strip().split("\n")[2:]
    assert all(row.startswith("| ") and row.endswith(" |") for row in rows)
    assert [row.replace(r"\|", "").count("|") for row in rows] == [3] * len(rows)


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (PATHS, "photos"),
        (["/a/b/1.png"], "b"),
        (["s3://bucket/set/1.png", "s3://bucket/set/2.png"], "set"),
        (["/a/1.png", "/b/1.png"], ""),
        (["1.png"], ""),
        ([], ""),
    ],
)
def test_images_are_named_by_the_folder_that_has_them_all(paths, name):
    assert name_folder(paths) == name


def test_a_citation_says_so_where_the_version_is_not_known():
    found = cite(make_audit(n=60)[0], {}, [])
    assert "vitscope of unknown version" in found.sentence
    assert "year" not in found.bibtex.split("@inproceedings")[0]


def test_a_result_is_cited_from_python_and_from_the_terminal(tmp_path, capsys):
    summary, _ = make_audit(n=2)
    folder = write_result(tmp_path / "audit", summary, {"path": PATHS}, name="trial")
    found = AuditResult.load(folder).cite()
    assert found == cite(summary, {"weights_hash": "abc123"}, PATHS, "trial")
    assert main(["cite", str(folder)]) == 0
    assert capsys.readouterr().out == f"{found.sentence}\n\n{found.bibtex}\n{found.card}\n"


def test_a_judgement_is_cited_and_other_kinds_are_refused(tmp_path):
    judged, other = write_result(tmp_path / "judged", make_judgement()), tmp_path / "other"
    assert "on the maps of" in SavedResult.load(judged).cite().sentence
    write_result(other, make_one_shot())
    with pytest.raises(UsageError, match="kind 'one-shot', which has no verdict to cite"):
        SavedResult.load(other).cite()
