"""Several audits compared: paired differences from the definitions, and what has no pair."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from audits import tiny_vit
from images import write_images
from reference_jackknife import busing_interval
from reference_shares import cka, read_rows, share, sum_terms
from vitscope import audit
from vitscope.figures.description import NothingToDrawError
from vitscope.figures.differences import describe_differences
from vitscope.figures.saved import load_results, tell_apart
from vitscope.metrics.jackknife import block_of
from vitscope.report.chapters import COMPARED, ReportFigure
from vitscope.results.audit_result import AuditResult

SETTINGS = {"gallery": 0, "dtype": "float64", "num_workers": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models on the same images, in opposite order, and one on others."""
    root = tmp_path_factory.mktemp("compared")
    photos = sorted(write_images(root / "photos", 24).iterdir())
    audit(tiny_vit("dinov2"), photos, out=root / "results" / "a", **SETTINGS)
    audit(tiny_vit(), photos[::-1], out=root / "results" / "b", **SETTINGS)
    others = write_images(root / "others", 6, start=50)
    audit(tiny_vit(), others, out=root / "others-result", name="others", **SETTINGS)
    return root


def describe(*folders):
    return describe_differences(tell_apart(load_results(list(folders))))


def test_differences_are_those_of_the_definition_whatever_the_order_of_images(folder):
    places = [folder / "results" / name for name in ("a", "b")]
    found = {point.term: point.number for point in describe(*places).points}
    audits = list(map(AuditResult.load, places))
    ids = [one.images["image_id"].to_pylist() for one in audits]
    assert ids[0] != ids[1]
    order = [ids[1].index(name) for name in ids[0]]
    first, second = map(read_rows, audits)
    second = {name: rows[order] for name, rows in second.items()}
    blocks, everything = np.array([block_of(name) for name in ids[0]]), np.arange(len(ids[0]))

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

    masses = [one.images["attention_mass_patches"].to_numpy() for one in audits]

    def of_mass(chosen):
        return (masses[1][order] - masses[0])[chosen].mean()

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


def test_only_results_of_the_same_images_are_paired(folder):
    results = load_results([folder / "results", folder / "others-result"])
    data = describe_differences(tell_apart(results))
    assert {(point.model.label, point.panel) for point in data.points} == {
        (f"tiny/dinov2_reg ({results[1].run})", "tiny/dinov2")
    }
    assert data.notes[0].startswith("n = 24 images")
    (told,) = [note for note in data.notes if note.startswith("Without another result")]
    assert told == "Without another result of the same images: tiny/dinov2_reg (others)."
    with pytest.raises(NothingToDrawError, match="no two of the results have the same images"):
        describe(folder / "results" / "a", folder / "others-result")


def test_the_table_and_the_chart_have_every_difference(folder):
    results = tell_apart(load_results([folder / "results"]))
    (entry,) = COMPARED
    figure = ReportFigure.make(entry, results)
    (rows,) = figure.table.sections
    assert figure.table.columns == ("number", "tiny/dinov2_reg less tiny/dinov2")
    told = {row[0]: row[1].numbers for row in rows}
    numbers = {p.x: (p.number.value, p.number.low, p.number.high) for p in figure.data.points}
    assert told == numbers
    (chart,) = figure.charts
    assert chart.title == "tiny/dinov2_reg less tiny/dinov2"
    drawn = [row for rows in chart.spec["datasets"].values() for row in rows if "told" in row]
    assert {row["x"]: (row["value"], row["low"], row["high"]) for row in drawn} == numbers


def test_results_that_count_cls_elsewhere_are_not_subtracted(folder, tmp_path):
    other = Path(shutil.copytree(folder / "results" / "b", tmp_path / "c"))
    summary = json.loads((other / "summary.json").read_text())
    summary["settings"]["cls_term"] = "patches"
    (other / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(NothingToDrawError, match=r"where .* attention to itself is counted"):
        describe(folder / "results" / "a", other)
