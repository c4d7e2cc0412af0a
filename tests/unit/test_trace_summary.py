"""Shares by depth: ratios of sums with jackknife intervals, and what is said of them."""

import json
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from made_results import hold_audit, make_audit, make_trace, write_result
from reference_jackknife import busing_interval
from vitscope.figures import draw_figure
from vitscope.metrics.jackknife import Estimate, block_of
from vitscope.results.result_html import show_result
from vitscope.results.result_text import tell_half_depth
from vitscope.results.schema import AuditSummary, read_summary
from vitscope.results.summary import (
    make_rows,
    merge_traces,
    read_traces,
    summarize_traces,
    write_traces,
)
from vitscope.terminal import make_comparison, make_report

DEPTH, NUM_IMAGES = 3, 37


@pytest.fixture(scope="module")
def rows():
    """Made-up parts of images whose totals differ in size."""
    random = np.random.default_rng(3)
    total = random.uniform(0.05, 2, NUM_IMAGES)
    stays = np.array([1.0, 0.7, 0.4, 0.0]) + random.normal(0, 0.05, (NUM_IMAGES, DEPTH + 1))
    columns = {
        "patches": stays * total[:, None],
        "cls": (1 - stays) * total[:, None],
        "total": total,
        "gap": random.uniform(0, 1e-6, NUM_IMAGES),
        "through_values": random.normal(0.3, 0.1, (NUM_IMAGES, DEPTH)),
        "through_routing": random.normal(0.1, 0.1, (NUM_IMAGES, DEPTH)),
    }
    return [f"{number:016x}" for number in random.integers(0, 2**62, NUM_IMAGES)], columns


def test_a_share_is_a_ratio_of_sums_with_the_interval_of_one(rows, tmp_path):
    ids, columns = rows
    write_traces(tmp_path, make_rows(ids, columns))
    summary = summarize_traces(tmp_path)
    blocks = [block_of(image) for image in ids]
    found = {**summary.shares, **{k: getattr(summary, k) for k in columns if k[:7] == "through"}}
    assert set(found) == {"patches", "cls", "through_values", "through_routing"}
    for name, estimates in found.items():
        for values, estimate in zip(columns[name].T, estimates, strict=True):
            pairs = np.stack([values, columns["total"]], axis=1)
            assert estimate.value == pytest.approx(values.sum() / columns["total"].sum())
            expected = busing_interval(lambda p: p[:, 0].sum() / p[:, 1].sum(), pairs, blocks)
            assert estimate.ci95 == pytest.approx(expected)
    assert (summary.num_images, summary.half_depth) == (NUM_IMAGES, 2)
    assert summary.max_gap == columns["gap"].max()


def test_merged_tables_give_the_numbers_of_all_rows(rows, tmp_path):
    ids, columns = rows
    parts = []
    for name, some in (("a", slice(0, 9)), ("none", None), ("b", slice(9, None))):
        parts.append(tmp_path / name)
        parts[-1].mkdir()
        if some is not None:
            of_some = {key: values[some] for key, values in columns.items()}
            write_traces(parts[-1], make_rows(ids[some], of_some))
    merge_traces(tmp_path, parts)
    assert read_traces(tmp_path).equals(make_rows(ids, columns))
    assert read_traces(parts[1]) is summarize_traces(parts[1]) is None


@pytest.mark.parametrize(
    ("half_depth", "told"),
    [
        (None, "at every depth"),
        (0, "at no depth"),
        (1, "at depth 0 of 12 only"),
        (10, "up to depth 9 of 12"),
    ],
)
def test_half_depth_in_words(half_depth, told):
    trace = replace(make_trace(12, 0.5, 4), half_depth=half_depth)
    assert tell_half_depth(trace, 12) == told


def print_out(shown):
    console = Console(width=200, record=True, file=StringIO())
    console.print(shown)
    return console.export_text()


def test_terminal_and_notebook_say_it_in_a_sentence():
    summary = hold_audit("DINOv2 with registers", "S", 22.1, registers=4).audit
    told = "traced on 50 images: patches hold at least half of what becomes the output up to depth"
    assert told in print_out(make_report(summary))
    assert told in show_result(summary)
    untraced = replace(summary, trace=None)
    assert "traced" not in print_out(make_report(untraced))
    assert "traced" not in show_result(untraced)


def test_only_several_models_have_a_table_of_traces():
    small, large = (
        hold_audit("DINOv2 with registers", size, params, registers=4).audit
        for size, params in (("S", 22.1), ("g", 1136.5))
    )
    head = "patches hold half"
    one = print_out(make_comparison([small, replace(large, trace=None)]))
    assert head not in one
    lines = print_out(make_comparison([small, large])).partition(head)[2].splitlines()
    for summary in (small, large):
        (line,) = [line for line in lines if line.strip().startswith(summary.model.id)]
        share = summary.trace.shares["registers"][-2].value
        assert f"{share:.3f} ± 0.020" in line


def test_a_figure_leaves_out_who_was_not_traced_and_marks_the_half():
    traced = hold_audit("DINOv2 with registers", "g", 1136.5, registers=4)
    other = hold_audit("DINOv2", "S", 22.1).change(None, "trace")
    drawing = draw_figure("shares_by_depth", [traced, other])
    assert drawing.data.omitted == {
        "DINOv2 S": "no image was traced (audit with trace=50)",
    }
    (panel,) = drawing.figure.axes
    half = traced.audit.trace.half_depth
    assert [line.get_xdata()[0] for line in panel.lines if line.get_linestyle() == ":"] == [half]
    assert f"up to depth {half - 1} of 40 (DINOv2 with registers g)" in " ".join(drawing.data.notes)
    low, high = panel.get_ylim()
    ends = [100 * end for p in drawing.data.points for end in (p.number.low, p.number.high)]
    assert low < min(ends)
    assert max(ends) < high


def test_a_share_of_exactly_zero_is_no_upper_bound():
    zeros = (Estimate(0.0, (0.0, 0.0)),) * 13
    model = hold_audit("DINOv2", "S", 22.1).change(zeros, "trace", "shares", "cls")
    head, *rows = draw_figure("shares_by_depth", [model]).data.list_rows()
    found = [dict(zip(head, row, strict=True)) for row in rows]
    assert {row["value"] for row in found if row["term"] == "cls"} == {"0.0"}


def test_a_result_from_before_there_were_traces_is_read(tmp_path):
    summary, _ = make_audit()
    folder = write_result(tmp_path / "old", summary)
    content = json.loads((folder / "summary.json").read_text())
    del content["trace"]
    (folder / "summary.json").write_text(json.dumps(content))
    assert read_summary(folder, AuditSummary).trace is None


def test_images_of_a_single_block_have_no_interval(rows, tmp_path):
    ids, columns = rows
    two = {key: values[:2] for key, values in columns.items()}
    write_traces(tmp_path, make_rows([ids[0], ids[0]], two))
    assert {share.ci95 for share in summarize_traces(tmp_path).shares["patches"]} == {None}
