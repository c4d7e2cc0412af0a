"""What is chosen for a folder of figures: style, width, captions; captions as text and LaTeX."""

import json
import re

import matplotlib as mpl
import pytest
from matplotlib.colors import to_hex

from blank_figures import blank_figures, words
from made_results import make_audit, write_result
from vitscope.cli.entry import main
from vitscope.cli.settings import parse_width
from vitscope.errors import UsageError
from vitscope.figures import FIGURES
from vitscope.figures import draw as files
from vitscope.figures.captions import read_captions, write_latex
from vitscope.figures.questions import draw_figure, open_results, plan_figures
from vitscope.figures.rendering.style import FigureStyle, drawn_in, read_style

SOME = ("attention_mass", "variance_share")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("result") / "r"
    return write_result(folder, *make_audit("DINOv2 with registers", registers=4, n=30))


def draw(result, name, **look):
    with drawn_in(FigureStyle(**look)):
        return draw_figure(name, open_results([result])).figure


def test_every_figure_has_a_caption():
    assert set(read_captions()) == {*FIGURES, "maps", "heads_by_layer", "judged_maps"}


@pytest.mark.parametrize(
    ("name", "rows"), [("variance_share", 2), ("directions", 3), ("covariates", 4), ("anatomy", 4)]
)
def test_a_narrow_figure_has_its_panels_below_each_other(result, name, rows):
    figure = draw(result, name, width_in=3.25)
    assert figure.get_figwidth() == 3.25
    assert figure.axes[0].get_subplotspec().get_gridspec().nrows == rows
    for text in figure.texts:  # heading and notes
        assert text.get_window_extent().x1 <= figure.bbox.x1


def test_the_width_of_a_page_is_the_usual_one(result):
    page, usual = (draw(result, "variance_share", width_in=width) for width in (7.2, None))
    assert page.get_size_inches() == pytest.approx(usual.get_size_inches())


def test_notes_are_left_out_of_the_figure_and_stay_in_the_caption(result, tmp_path, monkeypatch):
    monkeypatch.setattr(
        files, "plan_figures", lambda *_: [p for p in plan_figures(*_) if p[0] in SOME]
    )
    shown, bare = (draw(result, "attention_mass", has_notes=on) for on in (True, False))
    note = "At the last block; mean over images"
    assert note in words(shown)
    assert note not in words(bare)
    assert bare.get_figheight() < shown.get_figheight()
    out = tmp_path / "out"
    wanted = ["--format", "png", "--format", "pdf", "--no-caption"]
    with blank_figures():
        assert main(["figures", str(result), "--out", str(out), *wanted]) == 0
    assert note not in (out / "attention_mass.png").read_text()
    index = json.loads((out / "index.json").read_text())["figures"]
    captions = {figure["name"]: figure["caption"] for figure in index}
    asked = "Where does [CLS] look? Its attention on each group of tokens"
    assert captions["attention_mass"].startswith(asked)
    assert note in captions["attention_mass"]
    page = (out / "index.md").read_text(encoding="utf-8")
    assert "Where does \\[CLS\\] look?" in page
    latex = (out / "captions.tex").read_text(encoding="utf-8")
    assert latex.count(r"\begin{figure}") == latex.count(r"\end{figure}") == 1
    assert latex.count(r"\begin{figure*}") == latex.count(r"\end{figure*}") == 1
    for name, kind in (("attention_mass", "figure"), ("variance_share", "figure*")):
        float_ = latex[: latex.index(rf"\label{{fig:{name}}}")].rpartition(r"\begin")[2]
        assert float_.startswith(f"{{{kind}}}")
        assert rf"\includegraphics[width=\linewidth]{{{name}.pdf}}" in float_
    # An unescaped % would cut the caption.
    assert re.search(r"(?<!\\)%", latex) is None
    assert r"5 to 95 \% of the images" in latex
    # What stands in the figure is not said again below it.
    with blank_figures():
        main(["figures", str(result), "--out", str(out), "--format", "svg", "--overwrite"])
    latex = (out / "captions.tex").read_text(encoding="utf-8")
    assert latex.startswith("% Notes on the numbers are in the figures")
    assert "Where does [CLS] look?" in latex
    assert "of the images" not in latex
    assert r"\includesvg[width=\linewidth]{attention_mass.svg}" in latex


def test_no_caption_runs_as_latex(tmp_path):
    told = write_latex(
        "a", [tmp_path / "a.png"], r"\input{x} $a_1$ ^~&# ‖c‖² ± 1° <|>", width_in=3.5
    )
    assert (
        r"\textbackslash{}input\{x\} \$a\_1\$ \textasciicircum{}\textasciitilde{}\&\# "
        r"$\|$c$\|$$^2$ $\pm$ 1$^\circ$ \textless{}\textbar{}\textgreater{}" in told
    )


def test_a_style_changes_looks_but_no_size(result, tmp_path):
    mine = tmp_path / "mine.mplstyle"
    mine.write_text("axes.facecolor: cccccc\nfont.family: serif\nfont.size: 30\nbackend: pdf\n")
    before = dict(mpl.rcParams)
    for style, colour in (("ggplot", "#e5e5e5"), (mine, "#cccccc")):
        figure = draw(result, "attention_mass", settings=read_style(style))
        assert to_hex(figure.axes[0].get_facecolor()) == colour
        usual = draw(result, "attention_mass")
        assert figure.axes[0].xaxis.label.get_size() == usual.axes[0].xaxis.label.get_size()
    assert figure.axes[0].title.get_family() == ["serif"]
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--width", "3.5"], "width '3.5': expected inches such as 3.5in, or centimetres"),
        (["--width", "90mm"], "width '90mm': expected inches such as 3.5in, or centimetres"),
        (["--width", "nanin"], "width nan in: expected 3.2 to 20 in"),
        (["--width", "3cm"], "width 1.18 in: expected 3.2 to 20 in"),
        (["--style", "none"], "style none: expected a file of matplotlib's settings, or one of"),
    ],
)
def test_what_no_figure_fits_is_refused_in_a_line(result, tmp_path, capsys, words, told):
    assert main(["figures", str(result), "--out", str(tmp_path / "out"), *words]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert told in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "has no settings: expected lines such as"),
        (b"text.usetex: True\n", "sets text.usetex: leave it out"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_style_is_refused(tmp_path, content, told):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UsageError, match=told):
        read_style(tmp_path / "x")


def test_a_width_has_a_unit():
    assert (parse_width("3.5in"), parse_width("8.89cm")) == (3.5, pytest.approx(3.5))
