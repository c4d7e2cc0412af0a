"""Several audited layers: at which one patch integration breaks, in words, tables and figures."""

from io import StringIO

import altair as alt
import pytest
from matplotlib.colors import to_hex
from rich.console import Console

from made_results import hold_audit, hold_layers
from vitscope.figures import NothingToDrawError, draw_figure
from vitscope.figures.layers import NUMBERS
from vitscope.figures.rendering.style import TERM_COLOURS, FigureStyle, drawn_in, read_style
from vitscope.report.chapters import make_chapter
from vitscope.report.verdicts import describe_verdict
from vitscope.results.layer_text import tabulate_layers, tell_layers
from vitscope.results.result_html import show_result
from vitscope.terminal import make_report

HOLDS, WEAKENED, BROKEN = 0.95, 0.7, 0.2
LAYERS = {0: None, 1: HOLDS, 2: HOLDS, 3: HOLDS, 4: WEAKENED, 5: BROKEN, 6: BROKEN}


def run(first, last, share):
    return dict.fromkeys(range(first, last + 1), share)


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        (
            run(0, 8, HOLDS) | run(9, 11, BROKEN),
            "patch integration holds up to layer 8 and is broken from layer 9 on",
        ),
        (run(0, 11, HOLDS), "patch integration holds at every layer"),
        ({3: BROKEN, 7: BROKEN}, "patch integration is broken at every audited layer"),
        (
            {3: HOLDS, 7: HOLDS, 11: BROKEN},
            "of the 3 audited layers, patch integration holds up to layer 7 and is broken at "
            "layer 11",
        ),
        (
            {0: None, **run(1, 6, HOLDS), 7: WEAKENED, 8: WEAKENED, **run(9, 11, BROKEN)},
            "patch integration holds at layers 1 to 6, is weakened at layers 7 and 8 and is broken "
            "from layer 9 on; cannot tell at layer 0 (no variation)",
        ),
        (
            run(0, 2, HOLDS) | run(3, 5, BROKEN) | {6: HOLDS} | run(7, 11, BROKEN),
            "patch integration holds at layers 0 to 2 and 6 and is broken at layers 3 to 5 and 7 "
            "to 11",
        ),
        # What lies between audited layers is not claimed.
        (
            {0: HOLDS, 4: BROKEN, 6: BROKEN, 8: BROKEN, 11: HOLDS},
            "of the 5 audited layers, patch integration holds at layers 0 and 11 and is broken at "
            "layers 4 to 8",
        ),
        ({3: None, 11: None}, "cannot tell at any audited layer (no variation)"),
    ],
)
def test_one_sentence_says_where_it_breaks(shares, told):
    assert tell_layers(hold_layers(shares).audit) == told


def test_too_few_images_tell_nothing_at_any_layer():
    audit = hold_layers(run(0, 11, HOLDS), n=40).audit
    assert tell_layers(audit) == "cannot tell at any layer (not enough images)"


def test_terminal_notebook_and_report_have_one_table():
    shares = {3: HOLDS, 7: 0.5, 11: BROKEN}
    model = hold_layers(shares, "DINOv2 with registers", registers=4)
    table = tabulate_layers(model.audit)
    assert [" ".join(cell.split()) for cell in table.columns] == [
        *("layer", "patches", "registers", "[CLS] itself", "skip connection"),
        *("CKA(r, patches)", "verdict"),
    ]
    (rows,) = table.sections
    assert rows == [
        ("3", "95.0 ± 2.0", *["1.7"] * 3, "0.950 ± 0.030", "holds"),
        ("7", "50.0 ± 2.0", *["16.7"] * 3, "0.500 ± 0.030", "borderline"),
        ("11", "20.0 ± 2.0", *["26.7"] * 3, "0.200 ± 0.030", "broken"),
    ]
    assert describe_verdict(model)["table"] == table
    console = Console(width=80, record=True, file=StringIO())
    console.print(make_report(model.audit))
    printed = console.export_text()
    found = [line.split() for line in printed.splitlines()]
    for row in (["layer", "patches", "registers"], *(" ".join(row).split() for row in rows)):
        assert row in [line[: len(row)] for line in found]
    assert " ".join(table.title.split()[:12]) in " ".join(printed.split())
    assert table.title in show_result(model.audit)
    assert tabulate_layers(hold_audit().audit) is None


def test_a_source_that_one_layer_lacks_is_a_dash():
    model = hold_layers({0: None, 11: HOLDS})
    (first, _) = tabulate_layers(model.audit).sections[0]
    assert first == ("0", "–", "–", "–", "–", "no variation")


def test_the_figure_has_a_line_for_each_source_and_a_symbol_for_each_layer():
    model = hold_layers(LAYERS)
    with drawn_in(FigureStyle(read_style("dark_background"))):
        drawing = draw_figure("sources_by_layer", [model])
    shares, attention, cka = drawing.figure.axes
    lines = {to_hex(line.get_color()).upper(): line for line in shares.lines}
    assert set(lines) == {TERM_COLOURS[term] for term in ("patches", "cls", "skip")}
    patches = lines[TERM_COLOURS["patches"]]
    assert patches.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    expected = [100 * share for share in LAYERS.values() if share is not None]
    assert patches.get_ydata() == pytest.approx(expected)
    masses = [100 * layer.attention_mass["patches"].mean for layer in model.audit.layers]
    assert any(line.get_ydata() == pytest.approx(masses) for line in attention.lines)
    assert max(line.get_ydata().max() for line in cka.lines) == HOLDS
    for panel in drawing.figure.axes:
        assert [text.get_text() for text in panel.texts] == list("?●●●▲✕✕")
        assert [text.get_position()[0] for text in panel.texts] == [*LAYERS]
        assert {text.get_color() for text in panel.texts} == {"white"}
    told = " ".join(drawing.data.remarks)
    assert f"DINOv2 S: {tell_layers(model.audit)}. Above each panel" in told
    assert "verdict of each layer: ● holds, ▲ weakened, ✕ broken, ? cannot tell." in told


def test_models_stand_below_each_other_with_the_layers_and_sources_that_each_has():
    plain = hold_layers({3: HOLDS, 7: HOLDS, 11: BROKEN})
    registers = hold_layers(run(0, 11, HOLDS), "DINOv2 with registers", registers=4)
    drawing = draw_figure("sources_by_layer", [plain, hold_audit("iBOT"), registers])
    assert drawing.data.omitted == {
        "iBOT S": "only one layer was audited (audit with layers='all')"
    }
    panels = drawing.figure.axes
    assert [panel.get_title(loc="left") for panel in panels[::3]] == [
        "DINOv2 S",
        "DINOv2 with registers S",
    ]
    assert panels[0].get_xticks().tolist() == [3, 7, 11]
    assert [len(panel.lines) for panel in panels] == [3, 2, 3, 4, 3, 4]
    for one, other in zip(panels[:3], panels[3:], strict=True):
        assert one.get_ylim() == other.get_ylim()


def test_numbers_that_no_layer_has_leave_their_panel_empty():
    drawing = draw_figure("sources_by_layer", [hold_layers({3: None, 11: None})])
    shares, attention, cka = drawing.figure.axes
    assert attention.lines
    for panel in (shares, cka):
        assert "undefined at every layer" in panel.texts[-1].get_text().replace("\n", " ")


def find_figure(results):
    figures = {figure.key: figure for figure in make_chapter("layers", results)}
    return figures.get("sources-by-layer")


def test_the_report_shows_it_where_several_layers_were_audited():
    assert find_figure([hold_audit()]) is None
    model = hold_layers(LAYERS)
    figure = find_figure([model])
    assert [chart.title for chart in figure.charts] == [*NUMBERS.values()]
    for chart in figure.charts:
        alt.Chart.from_dict(chart.spec)
        rows = chart.spec["layer"][0]["data"]["values"]
        assert "".join(row["symbol"] for row in rows) == "?●●●▲✕✕"
        assert chart.spec["description"].endswith(tell_layers(model.audit))
    assert figure.table.columns == ("model", "number", "source", *(f"layer {n}" for n in LAYERS))
    first = figure.table.sections[0][0]
    assert first[:5] == (
        "DINOv2 S",
        "variance share",
        "patches",
        "–",
        "0.950 (0.930 to 0.970)",
    )


def test_a_single_layer_is_no_figure():
    with pytest.raises(NothingToDrawError, match="only one layer was audited"):
        draw_figure("sources_by_layer", [hold_audit()])
