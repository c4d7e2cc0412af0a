"""An output, or patches, that are the same for every image: one sentence, wherever it is told."""

import html
from io import StringIO
from typing import get_args

import pytest
import torch
from PIL import Image
from rich.console import Console

from audits import tiny_vit
from images import write_images
from vitscope import AuditConfig, audit
from vitscope.figures import NothingToDrawError, draw_figure
from vitscope.figures.saved import load_results
from vitscope.report.chapters import make_chapter
from vitscope.report.verdicts import describe_verdict
from vitscope.reproduction.evidence import ModelEvidence, measure
from vitscope.reproduction.quantities import cka
from vitscope.results.result_html import _COLOURS
from vitscope.results.verdict import MOODS, SYMBOLS, ImageStatus, Mood, Status
from vitscope.terminal import _STYLES, make_comparison, make_report

CONFIG = AuditConfig(dtype="float64", gallery=0)


@pytest.fixture(scope="module")
def same_pixels(tmp_path_factory):
    """Files that differ in their bytes and show the same image."""
    folder = tmp_path_factory.mktemp("same")
    (source,) = write_images(folder / "source", 1).iterdir()
    with Image.open(source) as image:
        for level in range(6):
            image.save(folder / f"{level}.png", compress_level=level)
    source.unlink()
    return folder


@pytest.fixture(scope="module")
def constant_output(same_pixels, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "output"
    return audit(tiny_vit(), same_pixels, CONFIG, out=out)


@pytest.fixture(scope="module")
def constant_patches(images, tmp_path_factory):
    vit = tiny_vit()
    with torch.no_grad():  # The last block's attention writes nothing but its bias.
        vit.module.blocks[-1].attn.proj.weight.zero_()
    return audit(vit, images, CONFIG, out=tmp_path_factory.mktemp("out") / "patches")


def test_a_constant_output_is_said_to_be_one(constant_output):
    summary = constant_output.summary
    assert summary.last.verdict.status == "no variation"
    assert summary.last.verdict.main_other_source is None
    assert summary.last.verdict.text == (
        "the output is the same for every image: variance share of patches = undefined, "
        "CKA(r, patches) = undefined, n = 6"
    )


def test_constant_patches_are_said_to_be_so_and_the_other_source_is_named(constant_patches):
    summary = constant_patches.summary
    assert summary.last.verdict.status == "no variation"
    assert summary.last.verdict.main_other_source == "skip"
    assert summary.last.verdict.text == (
        "the patches' contribution is the same for every image: variance share of patches = 0.0 % "
        "(0.0 to 0.0 %), CKA(r, patches) = undefined, 95 % intervals, n = 26; the main other "
        "source is the [CLS] token's skip connection (100.0 %)"
    )


def test_every_status_has_its_look_everywhere():
    assert set(MOODS) == {*get_args(Status), *get_args(ImageStatus)}
    for looks in (_STYLES, _COLOURS):
        assert set(looks) == set(get_args(Mood))
    assert set(SYMBOLS) == set(get_args(Status))


@pytest.mark.parametrize("which", ["constant_output", "constant_patches"])
def test_terminal_notebook_and_report_say_the_same(which, request):
    result = request.getfixturevalue(which)
    text = result.summary.last.verdict.text
    console = Console(width=400, record=True, file=StringIO())
    console.print(make_report(result.summary), make_comparison([result.summary]))
    told = console.export_text()
    assert text in told
    assert "no variation" in told
    assert text in html.unescape(result._repr_html_())
    (loaded,) = load_results([result.folder])
    card = describe_verdict(loaded)
    assert (card["status"], card["mood"]) == ("no variation", "unknown")
    assert card["text"] == f"{text[:1].upper()}{text[1:]}."


@pytest.mark.parametrize(
    ("which", "reason"),
    [
        ("constant_output", "its output is the same for every image"),
        ("constant_patches", "what is kept of its output is the same for every image"),
    ],
)
def test_report_and_claims_give_the_reason_that_is_true(which, reason, request):
    result = request.getfixturevalue(which)
    model = ModelEvidence("DINOv2", "S", 22, {"COCO": result.summary})
    measured = measure([model], "COCO", "DINOv2", "S", cka("residual", "patches"))
    assert measured.gap == f"DINOv2 S: CKA(r, patches) is undefined: {reason}"
    sources = make_chapter("sources", load_results([result.folder]))
    (shown,) = [one for one in sources if one.key == "cka-residual"]
    # Where the patches alone are constant, the skip connection is there to be shown.
    assert (f"its CKA is undefined: {reason}" in shown.missing) == (which == "constant_output")


@pytest.mark.parametrize("which", ["constant_output", "constant_patches"])
def test_figures_give_the_reason_that_is_true(which, request):
    # Of an attention branch that writes its bias alone, the output itself is constant.
    with pytest.raises(NothingToDrawError, match="undefined: its output is the same for every"):
        draw_figure("restricted_cka", load_results([request.getfixturevalue(which).folder]))
