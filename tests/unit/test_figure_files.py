"""Figures on disk: whole or not at all, the same bytes again, whatever a result holds."""

import csv
import json
import math
import random
import xml.etree.ElementTree as ET
from dataclasses import fields, is_dataclass, replace

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from blank_figures import blank_figures, draw_some
from made_numbers import distribution
from made_results import (
    change,
    hold_audit,
    make_audit,
    make_one_shot,
    write_result,
)
from vitscope.cli import main
from vitscope.errors import ResultError, UsageError, VitscopeError
from vitscope.figures import NothingToDrawError, draw_figure, draw_figures, load_results
from vitscope.figures.draw import FORMATS, save_figure
from vitscope.figures.questions import plan_figures
from vitscope.figures.rendering import style
from vitscope.metrics.estimates import CkaEstimate, Directions
from vitscope.metrics.jackknife import Estimate
from vitscope.results.schema_numbers import CovariateSummary

KEPT = ("model", "preprocessing", "ledger", "share", "p", "max_gap")
"""What a summary holds that is never undefined."""
HOSTILE = "$\\frac{$ <script>alert(1)</script>\n\n日本 _x [a](b) `c` &amp; \x1b[31m" + "z" * 300


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """One model with registers and one without."""
    root = tmp_path_factory.mktemp("few")
    write_result(root / "a", *make_audit("DINOv2", "S", 22.1))
    write_result(root / "b", *make_audit("DINOv2 with registers", "g", 1136.5, registers=4))
    write_result(root / "c", make_one_shot("DINOv2", "S", 22.1))
    return root


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Figures of a model with registers and of one whose shares and similarities are undefined."""
    root = tmp_path_factory.mktemp("drawn")
    summary, columns = make_audit()
    undefined = change(
        summary, float("nan"), "layers", -1, "variance_share", "residual", "skip", "value"
    )
    write_result(root / "a", replace(undefined, layer_similarity=()), columns)
    write_result(root / "b", *make_audit("DINOv2 with registers", registers=4))
    with blank_figures():
        return draw_figures([root], root / "out", formats=("svg",))


@pytest.fixture
def quick_figures():
    with blank_figures():
        yield


def assert_all_finite(figure):
    for line in figure.findobj(Line2D):
        assert np.isfinite(line.get_xydata().astype(float)).all()
    for patch in figure.findobj(Rectangle):
        assert np.isfinite(patch.get_bbox().get_points()).all()
    for image in figure.findobj(AxesImage):
        assert np.isfinite(np.ma.compressed(image.get_array())).all()
    for panel in figure.axes:
        for collection in panel.collections:
            for path in collection.get_paths():
                assert np.isfinite(path.vertices).all()
    written = " ".join(text.get_text() for text in figure.findobj(Text)).lower()
    assert "nan" not in written.split()
    assert "none" not in written.split()


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6), rate=st.floats(0.02, 0.9))
def test_whatever_number_is_undefined_no_figure_shows_it_or_breaks(tmp_path_factory, seed, rate):
    root = tmp_path_factory.mktemp("gaps")
    chance = random.Random(seed)

    def spoil(tree):
        if is_dataclass(tree):
            found = {field.name: getattr(tree, field.name) for field in fields(tree)}
            return replace(tree, **{k: spoil(v) if k not in KEPT else v for k, v in found.items()})
        if isinstance(tree, dict):
            return {key: spoil(value) for key, value in tree.items()}
        if isinstance(tree, tuple) and not (tree and isinstance(tree[0], float)):
            return tuple(map(spoil, tree))
        return math.nan if isinstance(tree, float) and chance.random() < rate else tree

    registers = chance.choice([0, 4])
    summary, columns = make_audit("DINOv2", "S", 22.1, registers=registers, n=30)
    columns["patch_share"][chance.randrange(30)] = math.nan
    write_result(root / "audit", spoil(summary), columns)
    for figure in draw_some(load_results([root])).values():
        assert_all_finite(figure)
        figure.draw_without_rendering()


def test_a_summary_without_any_defined_number_gives_no_figure(tmp_path):
    """Every number of one image alone is undefined, and what a layer may lack is not there."""
    summary, columns = make_audit("DINOv2", "S", 22.1, n=30)
    layer = summary.last
    nothing = distribution([])
    bare = replace(
        layer,
        attention_mass=dict.fromkeys(layer.attention_mass, nothing),
        contribution_norm=dict.fromkeys(layer.contribution_norm, nothing),
        variance_share={
            total: dict.fromkeys(shares, Estimate(math.nan, None))
            for total, shares in layer.variance_share.items()
        },
        cka={
            readout: dict.fromkeys(ckas, CkaEstimate(math.nan, math.nan, None, math.nan))
            for readout, ckas in layer.cka.items()
        },
        gram_ledger={},
        directions=Directions(num_directions=10, effective_rank={}, pairs={}),
        anatomy=None,
    )
    covariates = CovariateSummary(distributions={}, correlations={}, regressions={})
    summary = replace(
        summary,
        layers=(bare,),
        layer_similarity=(),
        high_norm_tokens=(),
        trace=None,
        covariates=covariates,
    )
    write_result(tmp_path / "bare", summary, columns)
    found = draw_figures([tmp_path / "bare"], tmp_path / "out", formats=("svg",))
    assert found.files == []
    assert all(found.skipped.values())
    assert "## Not drawn" in (tmp_path / "out" / "index.md").read_text()


@pytest.mark.parametrize("name", ["fig2a", "fig2b_anatomy__DINOv2-S", "interdependence"])
def test_the_same_results_give_the_same_bytes_whatever_the_reader_prefers(few, tmp_path, name):
    results = load_results([few])
    (first,) = draw_some(results, name).values()
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
        (second,) = draw_some(results, name).values()
        for kind in FORMATS:
            save_figure(second, tmp_path / f"second.{kind}")
    for kind in FORMATS:
        save_figure(first, tmp_path / f"first.{kind}")
        first_bytes, second_bytes = (
            (tmp_path / f"{one}.{kind}").read_bytes() for one in ("first", "second")
        )
        assert first_bytes == second_bytes, kind


def test_the_index_tells_what_every_figure_came_from(drawn):
    index = json.loads((drawn.folder / "index.json").read_text())
    assert [figure["name"] for figure in index["figures"]] == [f.name for f in drawn.drawn]
    assert index["skipped"] == dict(drawn.skipped)
    by_name = {figure["name"]: figure for figure in index["figures"]}
    shown = {
        "folder": "b",
        "run": "",
        "kind": "audit",
        "model": "made/dinov2-with-registers-s",
        "num_images": 400,
        "weights_hash": "abc123",
        "settings": "",
    }
    assert by_name["fig2a_patch_share"]["results"] == [shown]
    assert by_name["fig2a_patch_share"]["omitted"] == {"DINOv2 S": "no registers"}
    assert by_name["variance_share"]["omitted"] == {"DINOv2 S": "its variance shares are undefined"}
    assert "no result of the kind 'explanation'" in index["skipped"]["fig4_maps"]
    listed = {file for figure in index["figures"] for file in figure["files"]}
    assert listed == {path.name for path in drawn.files}
    tables = {figure["table"] for figure in index["figures"]}
    assert tables == {f"{figure['name']}.csv" for figure in index["figures"]}
    there = {path.name for path in drawn.folder.iterdir()}
    assert listed | tables | {"index.md", "index.json", "captions.tex"} == there


def test_the_numbers_of_a_figure_lie_beside_it(drawn):
    with (drawn.folder / "variance_share.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    summary, _ = make_audit("DINOv2 with registers", registers=4)
    shares = summary.last.variance_share["residual"]
    found = {row["term"]: (float(row["value"]), float(row["low"])) for row in rows}
    assert found == {term: (one.value, one.ci95[0]) for term, one in shares.items()}
    assert {(row["model"], row["n"]) for row in rows} == {("DINOv2 with registers S", "400")}


def test_hostile_names_are_shown_as_plain_text(tmp_path):
    registers = make_audit(HOSTILE, HOSTILE, 22.1, registers=4, n=30, name=HOSTILE)
    write_result(tmp_path / "a", *registers)
    one_shot = make_one_shot(HOSTILE, HOSTILE, 22.1, name=HOSTILE)
    one_shot = replace(one_shot, accuracy={HOSTILE: one_shot.accuracy["nearest"]})
    write_result(tmp_path / "c", one_shot)
    found = draw_figures([tmp_path], tmp_path / "out", formats=("svg",))
    assert len(found.drawn) > 12
    for path in found.files:
        tags = {element.tag.rpartition("}")[2] for element in ET.parse(path).iter()}
        assert not tags & {"script", "foreignObject", "a", "text"}
        assert path.name.isascii()
    page = (tmp_path / "out" / "index.md").read_text()
    assert "<script" not in page
    assert "[a](b)" not in page


def test_a_dollar_sign_starts_no_formula(tmp_path):
    write_result(tmp_path / "a", *make_audit("a$x_1$b", "$S$", 22.1, registers=4, n=30))
    for figure in draw_some(load_results([tmp_path])).values():
        for text in figure.findobj(Text):
            assert not mpl.cbook.is_math_text(text.get_text())


def test_a_name_that_begins_with_an_underscore_is_in_the_legend(tmp_path):
    write_result(tmp_path / "a", *make_audit("_mine", "S", 22.1, n=30))
    (figure,) = draw_some(load_results([tmp_path]), "fig3a").values()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [" _mine"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema_version": 1}', "was written with schema 1, this version reads 5"),
        ('{"schema_version": 5}', "is a result of kind None"),
        ('{"schema_version": 5, "kind": "poem"}', "is a result of kind 'poem'"),
        ("[]", "was written with schema None"),
        ("{", "cannot be read"),
    ],
)
def test_what_is_no_result_of_this_schema_is_refused(few, tmp_path, content, message):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "summary.json").write_text(content)
    with pytest.raises(ResultError, match=message):
        draw_figures([few, tmp_path / "bad"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_table_costs_its_own_figures_alone(tmp_path):
    write_result(tmp_path / "a", *make_audit("DINOv2 with registers", "S", 22.1, registers=4))
    (tmp_path / "a" / "images.parquet").write_bytes(b"not a table")
    with pytest.raises(NothingToDrawError, match=r"images\.parquet is damaged"):
        draw_figure("patch_share", load_results([tmp_path / "a"]))
    assert set(draw_some(load_results([tmp_path]), ("fig2a", "variance"))) == {"variance_share"}


def test_results_are_searched_for_and_counted_once(few):
    results = load_results([few, few / "a", few / "." / "a"])
    assert [result.folder.name for result in results] == ["a", "b", "c"]


def test_what_is_still_being_written_is_not_a_result(few, tmp_path):
    write_result(tmp_path / ".out.partial-1" / "a", *make_audit())
    with pytest.raises(UsageError, match="is not a result and holds none"):
        load_results([tmp_path])


def test_one_model_twice_is_refused(few, tmp_path):
    write_result(tmp_path / "again", *make_audit("DINOv2", "S", 22.1), name="")
    advice = "a --name of its own .with --overwrite, for --resume keeps the name of a finished"
    command = f"draw them separately, as in `vitscope figures {tmp_path}/.* --out DIR`"
    with pytest.raises(UsageError, match=f"both of DINOv2 S, .* {advice} .*{command}"):
        draw_figures([few, tmp_path / "again"], tmp_path / "out")


@pytest.mark.usefixtures("quick_figures")
def test_two_runs_of_one_model_are_drawn_under_their_names(tmp_path):
    for name in ("cats", "dogs"):
        write_result(tmp_path / name, *make_audit("DINOv2", "S", 22.1), name=name)
    drawn = draw_figures([tmp_path], tmp_path / "out", formats=("svg",))
    labels = ["DINOv2 S (cats)", "DINOv2 S (dogs)"]
    of_all = {figure.name: figure for figure in drawn.drawn}
    for name in ("variance_share", "fig5a_norms", "fig5b_layer_similarity"):
        assert [result.label for result in of_all[name].shown] == labels
        rows = of_all[name].table.read_text(encoding="utf-8").splitlines()
        assert {label in row for row in rows[1:] for label in labels} == {True, False}
    latex = (drawn.folder / "captions.tex").read_text(encoding="utf-8")
    assert set(latex) - set(map(chr, range(128))) <= set("–…“”’")  # which pdfLaTeX knows
    for label, name in zip(labels, ("cats", "dogs"), strict=True):
        own = latex[: latex.index(rf"\label{{fig:directions__DINOv2-S-{name}}}")]
        assert own.rpartition(r"\caption")[2].startswith(f"{{{label}: ")
    index = (drawn.folder / "index.json").read_text()
    assert str(tmp_path) not in index + (drawn.folder / "index.md").read_text()
    write_result(tmp_path / "again", *make_audit("DINOv2", "S", 22.1), name="cats")
    told = "both of DINOv2 S and called 'cats', and would be one point"
    with pytest.raises(UsageError, match=told):
        draw_figures([tmp_path / "again", tmp_path / "cats"], tmp_path / "out2")


@pytest.mark.usefixtures("quick_figures")
def test_figures_are_replaced_only_when_asked_and_nothing_else_ever(few, tmp_path):
    out = tmp_path / "out"
    draw_figures([few / "c"], out, formats=("svg", "png"))
    with pytest.raises(UsageError, match="already holds figures"):
        draw_figures([few / "c"], out)
    draw_figures([few / "c"], out, formats=("svg",), overwrite=True)
    assert not list(out.glob("*.png"))
    (out / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="was not written by vitscope"):
        draw_figures([few / "c"], out, overwrite=True)
    assert (out / "letter.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="is inside the result"):
        draw_figures([few], few / "c" / "figures")


def test_nothing_is_left_where_the_disk_refuses(few, tmp_path, monkeypatch):
    def refuse(figure, path):
        save_figure(figure, path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitscope.figures.draw.save_figure", refuse)
    with pytest.raises(VitscopeError, match="No space left"):
        draw_figures([few / "c"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_text_in_a_pdf_can_be_edited(shipped_fonttype, monkeypatch, tmp_path):
    """As journals ask: TrueType fonts, not outlines."""
    monkeypatch.setitem(style._SETTINGS, "pdf.fonttype", shipped_fonttype)
    figure = draw_figure("variance_share", [hold_audit()]).figure
    save_figure(figure, tmp_path / "share.pdf")
    page = (tmp_path / "share.pdf").read_bytes()
    assert b"/FontFile2" in page
    assert b"/Type3" not in page


@pytest.mark.parametrize("formats", [(), ("gif",), ("png", "../x")])
def test_unknown_formats_are_refused(few, tmp_path, formats):
    with pytest.raises(UsageError, match="expected one of png, pdf, svg"):
        draw_figures([few], tmp_path / "out", formats=formats)


def test_two_hundred_models_keep_their_files_apart(tmp_path):
    for place in range(3):
        summary, columns = make_audit("mine", None, 20.0 + place, n=30, name="x/" + "y" * 90)
        name = summary.model.id + (str(place) if place else "")
        summary = change(summary, name, "model", "id")
        write_result(tmp_path / str(place), summary, columns)
    names = [name for name, _ in plan_figures(load_results([tmp_path]))]
    assert len(names) == len({name.casefold() for name in names})


@pytest.mark.usefixtures("quick_figures")
def test_the_command_says_what_it_drew_and_what_not(few, tmp_path, capsys):
    arguments = ["figures", str(few / "c"), "--out", str(tmp_path / "out"), "--format", "svg"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "fig3b_one_shot_nearest_top5: 1 result" in told
    (line,) = (line for line in told.splitlines() if "not drawn" in line)
    assert line.endswith(f"not drawn: {tmp_path / 'out' / 'index.md'} says why")
    page = (tmp_path / "out" / "index.md").read_text(encoding="utf-8")
    assert "- fig2a_patch_share: no result of the kind 'audit'" in page
    assert f"figures written to {tmp_path / 'out'}" in " ".join(told.split())
    assert main(arguments) == 2
    assert "already holds figures" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    one = [*arguments, "--overwrite", "--only", "fig2a", "--only", "nearest_top5"]
    assert main(one) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.svg")} == {
        "fig3b_one_shot_nearest_top5.svg"
    }
    assert "1 not drawn" in capsys.readouterr().out.splitlines()[-2]
    assert main([*one, "--only", "fig99"]) == 2
    assert "no figure has 'fig99' in its name: expected part of fig2a_" in capsys.readouterr().err
    layers = [str(few), "--out", str(tmp_path / "layers"), "--only", "sources_by_layer"]
    assert main(["figures", *layers]) == 0
    page = (tmp_path / "layers" / "index.md").read_text(encoding="utf-8")
    assert "only one layer was audited (audit with --layers all)" in page
    with pytest.raises(UsageError, match="no figure has 'fig99' in its name"):
        draw_figures([few], tmp_path / "none", only="fig99")  # a text is one part
    assert main(["figures", "--out", str(tmp_path / "other")]) == 2
    assert "RESULTS requires an argument" in capsys.readouterr().err
