"""Results of different settings: one rule for report, terminal and notebook; each names its own."""

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from blank_figures import blank_figures
from made_results import make_audit, make_one_shot, write_result
from vitscope.figures.draw import draw_figures
from vitscope.figures.saved import load_results
from vitscope.report.page import render_report
from vitscope.results.choices import describe_settings
from vitscope.results.result_html import show_result
from vitscope.results.schema import Settings
from vitscope.terminal import make_comparison, make_report

DRAFT = {"draft": True, "changed": ("draft",)}
LARGE = {"size": (518, 518), "changed": ("size",)}
APART = "its results differ in "


def made(size="S", params=22.1, *, dtype="float32", preprocessing=None, layer=11, **settings):
    summary, columns = make_audit("DINOv2 with registers", size, params, registers=4, n=30)
    changed = replace(
        summary,
        settings=replace(summary.settings, **settings),
        model=replace(summary.model, dtype=dtype, depth=12),
        preprocessing=replace(summary.preprocessing, **(preprocessing or {})),
        layers=(replace(summary.last, index=layer),),
    )
    return changed, columns


def report(tmp_path, *results):
    for number, result in enumerate(results):
        write_result(tmp_path / "results" / str(number), *result)
    html = render_report(load_results([tmp_path / "results"]))
    text = re.sub(r"<(script|style).*?</\1>", " ", html, flags=re.DOTALL)
    figures = dict(re.findall(r'<figure id="([\w-]+)"(.*?)</figure>', text, flags=re.DOTALL))
    words = {key: " ".join(re.sub(r"<[^>]*>", " ", body).split()) for key, body in figures.items()}
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', html, re.DOTALL)[1])
    shown = {key.partition("/")[0] for key in charts}
    return " ".join(re.sub(r"<[^>]*>", " ", text).split()), words, shown


@pytest.mark.parametrize(
    ("settings", "refused", "kept"),
    [
        (
            {"cls_term": "patches"},
            {"variance-share", "attention", "norms", "cka-residual", "cka-attention", "covariates"},
            {"layer-similarity", "high-norm", "anatomy"},
        ),
        (
            {"renormalize": True},
            {"cka-attention"},
            {"variance-share", "cka-residual", "layer-similarity"},
        ),
        (
            {"layer": 7},
            {"variance-share", "norms", "cka-residual", "cka-attention", "covariates", "anatomy"},
            {"layer-similarity", "high-norm"},
        ),
    ],
)
def test_the_report_leaves_out_what_cannot_be_compared_and_draws_the_rest(
    tmp_path, settings, refused, kept
):
    page, figures, shown = report(tmp_path, made(), made("B", 86.0, **settings), made("L", 304.0))
    for key in refused - {"attention"}:  # made-up results have no attention
        assert APART in figures[key], key
        assert "DINOv2 with registers B (" in figures[key]
        assert key not in shown
    for key in kept:
        assert APART not in figures[key], key
        assert key in shown
    told = describe_settings(made("B", 86.0, **settings)[0])
    assert f"Settings other than by default: {told}." in page


@pytest.mark.parametrize(
    ("other", "note"),
    [
        (
            {"preprocessing": LARGE},
            "Input size differs: 224 x 224 px: {a}, {c}; 518 x 518 px: {b}.",
        ),
        (
            {"preprocessing": DRAFT},
            "Preprocessing differs: as each model prescribes: {a}, {c}; decoded as drafts: {b}.",
        ),
        (
            {"preprocessing": {"resize": "stretch", "changed": ("resize",)}},
            "Preprocessing differs: as each model prescribes: {a}, {c}; resize stretch: {b}.",
        ),
        ({"dtype": "bfloat16"}, "Precision differs: float32 or finer: {a}, {c}; bfloat16: {b}."),
    ],
)
def test_what_differs_in_how_images_reached_the_models_is_named_under_every_chart(
    tmp_path, other, note
):
    results = made(), made("B", 86.0, **other), made("L", 304.0)
    page, figures, shown = report(tmp_path, *results)
    told = describe_settings(results[1][0])
    names = {
        "a": "DINOv2 with registers S",
        "b": f"DINOv2 with registers B ({told})",
        "c": "DINOv2 with registers L",
    }
    assert told
    assert f"Settings other than by default: {told}." in page
    for key in (
        "variance-share",
        "norms",
        "cka-residual",
        "cka-attention",
        "layer-similarity",
        "high-norm",
    ):
        assert note.format(**names) in figures[key], key
        assert key in shown


def test_models_of_different_native_sizes_are_compared_and_the_sizes_named(tmp_path):
    native = made("B", 86.0, preprocessing={"size": (336, 336)})
    page, figures, _ = report(tmp_path, made(), native)
    assert (
        "Input size differs: 224 x 224 px: DINOv2 with registers S; 336 x 336 px: DINOv2 "
        in (figures["variance-share"])
    )
    assert "other than by default:" not in page


def test_one_model_twice_stands_apart_under_two_names(tmp_path):
    other = {"mean": (0.1, 0.2, 0.3), "size": (518, 518), "changed": ("size",)}
    _, figures, _ = report(tmp_path, made(), made(preprocessing=other), made("B", 86.0))
    first, second = "DINOv2 with registers S", "DINOv2 with registers S (input 518 x 518 px)"
    assert f"mean 0.5/0.5/0.5: {first}" in figures["variance-share"]
    assert f"mean 0.1/0.2/0.3: {second}" in figures["variance-share"]
    rows = re.findall(
        r"DINOv2 with registers \w(?: \(input 518 x 518 px\))? 0\.\d\d",
        " ".join(figures["cka-residual"].split("The numbers")[1:]),
    )
    assert len(rows) == len(set(rows)) == 3


def test_results_that_nothing_tells_apart_are_numbered(tmp_path):
    _, figures, _ = report(tmp_path, made(), made())
    assert "DINOv2 with registers S (2)" in figures["variance-share"]


def test_one_shot_results_of_different_settings_are_not_compared(tmp_path):
    plain, patches = make_one_shot(), make_one_shot("DINOv2", "B", 86.0)
    patches = replace(patches, settings=replace(patches.settings, cls_term="patches"))
    _, figures, _ = report(tmp_path, (plain, None), (patches, None))
    assert APART in figures["one-shot-0"]


def test_figures_follow_the_same_rule_for_the_layer_and_name_the_rest(tmp_path):
    write_result(tmp_path / "r" / "a", *made())
    write_result(tmp_path / "r" / "b", *made("B", 86.0, layer=7, preprocessing=LARGE))
    with blank_figures():
        found = draw_figures([tmp_path / "r"], tmp_path / "out", formats=["svg"])
    assert "the block that was audited" in found.skipped["variance_share"]
    page = (tmp_path / "out" / "index.md").read_text()
    assert "layer 7 (of 0 to 11), input 518 x 518 px" in page
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    shown = {f["name"]: f["results"] for f in index["figures"]}["high_norm_fraction"]
    assert [r["settings"] for r in shown] == ["", "layer 7 (of 0 to 11), input 518 x 518 px"]
    assert (
        "Input size differs: 224 x 224 px" in (found.folder / "high_norm_fraction.svg").read_text()
    )


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A summary of a real audit of a tiny model, at another size than its own."""
    from audits import tiny_vit
    from images import write_images
    from vitscope import AuditConfig, audit

    folder = write_images(tmp_path_factory.mktemp("set") / "photos", 6)
    config = AuditConfig(size=24, draft=True, cls_term="patches", renormalize=True, gallery=0)
    return audit(tiny_vit(), folder, config).summary


def show(renderable):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(renderable)
    return " ".join(console.export_text().split())


def test_terminal_and_notebook_name_what_was_chosen(audited):
    told = describe_settings(audited)
    assert told == (
        "[CLS] counted among the patches, restricted outputs renormalised, input 24 x 24 px, "
        "decoded as drafts"
    )
    sentence = f"settings other than by default: {told}"
    assert sentence in show(make_report(audited))
    assert sentence in show_result(audited)
    prepared = replace(audited.preprocessing, changed=())
    plain = replace(audited, settings=Settings(), preprocessing=prepared)
    assert describe_settings(plain) == ""
    assert "other than by default" not in show(make_report(plain)) + show_result(plain)


def test_the_table_of_all_models_follows_the_rule(audited):
    own = replace(audited.settings, cls_term="own")
    plain = replace(audited, settings=own, model=replace(audited.model, id="other"))
    told = show(make_comparison([audited, plain]))
    assert "no table of all models: its results differ in where [CLS]'s attention" in told
    assert "main source" not in told
    of_first = replace(audited, layers=(replace(audited.last, index=0),))
    other = replace(
        of_first,
        model=plain.model,
        preprocessing=replace(audited.preprocessing, size=(56, 56), draft=False, changed=("size",)),
    )
    told = show(make_comparison([of_first, other]))
    assert "Input size differs: 24 x 24 px: tiny/dinov2_reg; 56 x 56 px: other." in told
    assert "The numbers are of layer 0, counted from 0" in told
