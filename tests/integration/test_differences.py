"""Several audits compared: paired differences from the definitions, and what has no pair."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from audits import tiny_vit
from images import write_images
from reference_jackknife import busing_interval
from reference_shares import cka, read_rows, share, sum_terms
from vitscope import audit
from vitscope.errors import ResultError
from vitscope.figures import differences
from vitscope.figures.description import NothingToDrawError, Point
from vitscope.figures.differences import AuditPair, describe_differences, find_pairs
from vitscope.figures.intervals import Interval
from vitscope.figures.saved import load_results, tell_apart
from vitscope.files.tensor_files import read_tensors, write_tensors
from vitscope.metrics.jackknife import block_of
from vitscope.report.chapters import make_chapter
from vitscope.results import records
from vitscope.results.audit_result import AuditResult
from vitscope.results.paired_audits import ReplicatedAudit

SETTINGS = {"gallery": 0, "dtype": "float64", "num_workers": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models on the same images, in opposite order; one on others, and one on some of both."""
    root = tmp_path_factory.mktemp("compared")
    photos = sorted(write_images(root / "photos", 24).iterdir())
    audit(tiny_vit("dinov2"), photos, out=root / "results" / "a", **SETTINGS)
    audit(tiny_vit(), photos[::-1], out=root / "results" / "b", **SETTINGS)
    others = sorted(write_images(root / "others", 6, start=50).iterdir())
    audit(tiny_vit(), others, out=root / "others-result", name="others", **SETTINGS)
    some = [*others, *photos[:2:-1]]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(records, "SHARD_ROWS", 5)
        audit(tiny_vit(), some, out=root / "some-result", name="some", batch_size=4, **SETTINGS)
    return root


def describe(*folders):
    return describe_differences(tell_apart(load_results(list(folders))))


@pytest.mark.parametrize(("second", "n"), [("results/b", 24), ("some-result", 21)])
def test_differences_are_those_of_the_definition_whatever_the_order_of_images(folder, second, n):
    places = [folder / "results" / "a", folder / second]
    found = {point.term: point.number for point in describe(*places).points}
    audits = list(map(AuditResult.load, places))
    ids = [one.images["image_id"].to_pylist() for one in audits]
    assert ids[0] != ids[1]
    shared = [name for name in ids[0] if name in ids[1]]
    assert len(shared) == n
    orders = [[own.index(name) for name in shared] for own in ids]
    first, second = (
        {name: rows[order] for name, rows in read_rows(one).items() if name.startswith("term/")}
        for one, order in zip(audits, orders, strict=True)
    )
    blocks, everything = np.array([block_of(name) for name in shared]), np.arange(n)

    def of_cka(chosen):
        values = (
            cka(rows["term/patches"][chosen], sum_terms(rows)[chosen]) for rows in (second, first)
        )
        return np.subtract(*values)

    def of_share(chosen):
        values = (
            share(rows["term/patches"][chosen], sum_terms(rows)[chosen]) for rows in (second, first)
        )
        return np.subtract(*values)

    def of_registers(chosen):  # which only the second model has
        return share(second["term/registers"][chosen], sum_terms(second)[chosen])

    masses = [
        one.images["attention_mass_patches"].to_numpy()[order]
        for one, order in zip(audits, orders, strict=True)
    ]

    def of_mass(chosen):
        return (masses[1] - masses[0])[chosen].mean()

    for name, statistic in (
        ("cka_patches", of_cka),
        ("variance_share_patches", of_share),
        ("variance_share_registers", of_registers),
        ("attention_patches", of_mass),
    ):
        number = found[name]
        expected = busing_interval(statistic, everything, blocks)
        # float64 sums in another order, over an estimate that divides by small differences
        assert number.value == pytest.approx(statistic(everything), abs=1e-9), name
        assert (number.low, number.high) == pytest.approx(expected, abs=1e-8), name
        assert number.n == n


def test_results_are_paired_on_the_images_that_both_have(folder, monkeypatch):
    names = ("results/a", "results/b", "others-result", "some-result")
    first, second, others, some = results = tell_apart(
        load_results([folder / name for name in names])
    )
    data = describe_differences(results)
    pairs = {(point.model.label, point.panel): point.number.n for point in data.points}
    assert pairs == {(second.label, first.label): 24, (some.label, first.label): 21}
    assert data.notes[0].startswith("n = 21 to 24 images")
    notes = dict(note.rstrip(".").split(": ", 1) for note in data.notes)
    label = f"{some.label} less {first.label}"
    assert notes["Not all images are in both results"] == f"{label} (21 of 27 and 24)"
    told = f"{others.label} (at most 6)"
    assert notes["Fewer than 20 images in common with another result"] == told
    (without,) = [
        note
        for note in describe_differences([first, second, others]).notes
        if note.startswith("Without")
    ]
    assert without == f"Without another result of the same images: {others.label}."
    with pytest.raises(NothingToDrawError, match=r"no two .* the same images, or 20 in common"):
        describe_differences([others, some])
    monkeypatch.setattr(differences, "MIN_IMAGES", 6)
    notes = describe_differences(results).notes
    assert not any(note.startswith("Fewer than") for note in notes)
    assert notes[-1] == (
        "Not compared, because every result with 6 or more images in common is compared with "
        f"another: {told}."
    )


@pytest.mark.parametrize(
    ("sets", "pairs"),
    [
        ([(0, 100), (0, 99), (0, 99)], [(0, 1), (0, 2)]),
        ([(0, 99), (0, 100), (0, 100)], [(0, 1), (0, 2)]),
        ([(0, 100), (80, 900), (80, 900)], [(0, 1), (1, 2)]),
        ([(0, 100), (81, 900), (0, 20), (0, 19)], [(0, 2)]),
        ([(0, 3), (0, 3), (0, 4)], [(0, 1)]),
    ],
)
def test_one_is_paired_with_the_first_that_shares_nearly_as_many_images_as_any(sets, pairs):
    found = [(place, SimpleNamespace(ids=range(*ids))) for place, ids in enumerate(sets)]
    assert [(pair.first[0], pair.other[0]) for pair in find_pairs(found)] == pairs


def test_of_a_part_of_the_images_sums_need_features(folder, tmp_path):
    part = Path(shutil.copytree(folder / "some-result", tmp_path / "part"))
    (part / "features").rename(tmp_path / "features")  # as if they had been dropped
    data = describe(folder / "results" / "a", part)
    terms = {point.term for point in data.points}
    assert "attention_patches" in terms
    assert not terms & {"cka_patches", "variance_share_patches"}
    assert sum("only if features are kept" in note for note in data.notes) == 1
    first = Path(shutil.copytree(folder / "results" / "a", tmp_path / "first"))
    for place in (first, part):
        table = pq.read_table(place / "images.parquet").select(records.IDENTITY)
        pq.write_table(table, place / "images.parquet")
    with pytest.raises(NothingToDrawError, match=r"results share, no number is defined$"):
        describe(first, part)
    left = "No number is defined on the images of both: "
    notes = describe(first, folder / "results" / "a", part).notes
    assert [note for note in notes if note.startswith(left)]


@pytest.mark.parametrize(
    ("shard", "longer"), [(1, None), (3, None), (3, "term/"), (0, "term/patches")]
)
def test_features_that_do_not_match_the_table_are_refused(folder, tmp_path, shard, longer):
    """A shard is missing, before or after the last image that counts, or has a row too many."""
    part = Path(shutil.copytree(folder / "some-result", tmp_path / "part"))
    result = AuditResult.load(part)
    path = records.shard_paths(part, result.summary.layer)[shard]
    tensors, _ = read_tensors(path)
    path.unlink()
    if longer is not None:
        of_terms = {name for name in tensors if name.startswith(longer)}
        more = {name: torch.cat([tensors[name], tensors[name][:1]]) for name in of_terms}
        write_tensors(path, tensors | more)
    ids = result.images["image_id"].to_pylist()
    with pytest.raises(ResultError, match=r"damaged \(its table does not match its features\)"):
        ReplicatedAudit(result, {*ids[:10]}).replicate_cka()


def test_results_that_agree_are_named(folder, tmp_path):
    again = Path(shutil.copytree(folder / "results" / "b", tmp_path / "again"))
    provenance = json.loads((again / "provenance.json").read_text())
    (again / "provenance.json").write_text(
        json.dumps(provenance | {"finished": "2026-01-02T03:04:05+00:00"})
    )
    with pytest.raises(NothingToDrawError) as found:
        describe(folder / "results" / "b", again)
    (told,) = [note for note in describe(folder / "results", again).notes if " agrees " in note]
    assert told == f"{found.value}."
    assert re.fullmatch(
        r"tiny/dinov2_reg \(2026-01-02\) agrees with tiny/dinov2_reg \(20\d\d-\d\d-\d\d\) on "
        r"24 images: no number of the last audited block differs by more than 0\.000001\.",
        told,
    )


@pytest.mark.parametrize(("term", "told"), [("x", "c agrees with b on 30 images"), ("y", "")])
def test_results_agree_only_in_the_same_numbers(term, told):
    first, *others = [
        (SimpleNamespace(label=name), SimpleNamespace(ids=range(30))) for name in "abc"
    ]
    pairs = [AuditPair(first, other) for other in others]
    for pair, name in zip(pairs, ("x", term), strict=True):
        vars(pair)["points"] = [Point(model=None, term=name, number=Interval(0.5, 0.4, 0.6))]
    assert pairs[1].tell_same(pairs[:1]).partition(":")[0] == told


def test_the_table_and_the_chart_have_every_difference(folder):
    results = tell_apart(load_results([folder / "results"]))
    (figure,) = make_chapter("compared", results)
    (rows,) = figure.table.sections
    assert figure.table.columns == ("number", "tiny/dinov2_reg less tiny/dinov2")
    told = {row[0]: row[1].numbers for row in rows}
    numbers = {p.x: (p.number.value, p.number.low, p.number.high) for p in figure.data.points}
    assert told == numbers
    (chart,) = figure.charts
    assert chart.title == "tiny/dinov2_reg less tiny/dinov2"
    drawn = chart.spec["data"]["values"]
    assert {row["x"]: (row["value"], row["low"], row["high"]) for row in drawn} == numbers
    # One name has two lines of 15 pixels, which a row must hold.
    assert "attention on patches, of patches and registers" in numbers
    assert chart.spec["height"] >= 30 * len(numbers)


def test_results_that_count_cls_elsewhere_are_not_subtracted(folder, tmp_path):
    other = Path(shutil.copytree(folder / "results" / "b", tmp_path / "c"))
    summary = json.loads((other / "summary.json").read_text())
    summary["settings"]["cls_term"] = "patches"
    (other / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(NothingToDrawError, match=r"where .* attention to itself is counted"):
        describe(folder / "results" / "a", other)
