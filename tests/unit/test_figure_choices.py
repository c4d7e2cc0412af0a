"""Figures name the choices that their numbers depend on, and refuse results that differ in them."""

import re
from pathlib import Path

import numpy as np
import pytest

from made_results import make_audit, make_one_shot, write_result
from vitscope.cli import main
from vitscope.errors import UsageError
from vitscope.figures import ModelResult, NothingToDrawError
from vitscope.figures.cka import plot_residual_cka, plot_restricted_cka
from vitscope.figures.covariates import plot_covariates
from vitscope.figures.directions import plot_directions
from vitscope.figures.draw import draw_figures
from vitscope.figures.gram import plot_gram_ledger
from vitscope.figures.interdependence import plot_interdependence
from vitscope.figures.layers import plot_layer_similarity
from vitscope.figures.norms import plot_norms
from vitscope.figures.one_shot import plot_one_shot
from vitscope.figures.patch_share import plot_patch_share
from vitscope.figures.variance_share import plot_variance_share
from vitscope.results.audit_result import AuditResult
from vitscope.results.choices import RENORMALIZE, count_cls, describe_choices, find_mixture
from vitscope.results.one_shot_result import OneShotResult

REGISTERS = "[CLS]'s attention to itself is counted among the registers, in models that have any."
PATCHES = "[CLS]'s attention to itself is counted among the patches."
RENORMALISED = (
    "Restricted outputs are divided by the attention mass that they keep; the residual readout "
    "compares terms, which are not."
)


class MadeResult(ModelResult):
    """A result in memory: its columns need no file."""

    def read_column(self, name):
        values = self.summary["columns"].get(name)
        return None if values is None else np.asarray(values, dtype=float)


def audit(size="S", params=22.1, *, registers=4, **settings):
    family = "DINOv2 with registers" if registers else "DINOv2"
    summary, columns = make_audit(family, size, params, registers=registers, n=40)
    summary |= {"columns": columns, "settings": summary["settings"] | settings}
    return MadeResult(Path(f"/nowhere/{family}/{size}"), "audit", summary)


def one_shot(size="S", params=22.1, **settings):
    summary = make_one_shot("DINOv2 with registers", size, params, registers=4)
    summary["settings"] |= settings
    return MadeResult(Path(f"/nowhere/{size}"), "one-shot", summary)


def words(drawing):
    texts = [text.get_text() for text in drawing.figure.findobj(lambda a: hasattr(a, "get_text"))]
    return " ".join(" ".join(texts).split())


def alone(plot):
    return lambda results: plot(results[0])


def plot_accuracies(results):
    return plot_one_shot(results, "nearest", "top1")


OF_AUDITS = {
    plot_patch_share: {"registers", "patches"},
    plot_restricted_cka: {"registers", "patches", "renormalised"},
    plot_variance_share: {"registers", "patches"},
    plot_interdependence: {"registers"},
    plot_norms: {"patches"},
    plot_residual_cka: {"patches"},
    plot_layer_similarity: set(),
    alone(plot_gram_ledger): {"registers", "patches"},
    alone(plot_directions): {"registers", "patches"},
    alone(plot_covariates): {"registers", "patches"},
}


@pytest.mark.parametrize("plot", OF_AUDITS)
def test_a_figure_names_the_choices_that_it_depends_on_and_no_others(plot):
    for value, settings, note in (
        ("default", {}, "is counted among"),
        ("registers", {"cls_term": "registers"}, REGISTERS),
        ("patches", {"cls_term": "patches"}, PATCHES),
        ("renormalised", {"renormalize": True}, RENORMALISED),
    ):
        found = words(plot([audit(**settings)]))
        assert (note in found) == (value in OF_AUDITS[plot]), (value, found)


def test_one_shot_names_them_too():
    found = words(plot_accuracies([one_shot(cls_term="patches", renormalize=True)]))
    assert PATCHES in found
    assert RENORMALISED in found
    assert "counted among" not in words(plot_accuracies([one_shot()]))


@pytest.mark.parametrize(
    ("term", "ends", "ratio"),
    [
        ("own", "1 = all on patches, 0 = all on registers.", "patches / (patches + registers)"),
        (
            "registers",
            "1 = all on patches, 0 = all on registers and [CLS] itself.",
            "patches / (patches + registers + [CLS])",
        ),
        (
            "patches",
            "1 = all on patches and [CLS] itself, 0 = all on registers.",
            "(patches + [CLS]) / (patches + [CLS] + registers)",
        ),
    ],
)
def test_the_ends_of_the_patch_share_are_named_as_they_were_counted(term, ends, ratio):
    found = words(plot_patch_share([audit(cls_term=term)]))
    assert ends in found
    assert ratio in found


@pytest.mark.parametrize(
    ("plot", "settings", "about"),
    [
        (plot_patch_share, {"cls_term": "registers"}, "attention to itself is counted"),
        (plot_restricted_cka, {"renormalize": True}, "restricted outputs are renormalised"),
        (plot_variance_share, {"cls_term": "patches"}, "attention to itself is counted"),
    ],
)
def test_results_that_differ_in_a_choice_are_drawn_apart(plot, settings, about):
    with pytest.raises(NothingToDrawError) as caught:
        plot([audit(), audit("B", 86.0, **settings), audit("L", 304.0)])
    assert about in str(caught.value)
    assert "DINOv2 with registers S, DINOv2 with registers L" in str(caught.value)
    assert re.search("; .*: DINOv2 with registers B.: draw them separately", str(caught.value))


def test_a_choice_that_changes_nothing_shown_is_no_difference():
    mixed = [audit(), audit("B", 86.0, cls_term="registers", renormalize=True)]
    for plot in (plot_norms, plot_residual_cka, plot_layer_similarity):
        assert len(plot(mixed).shown) == 2
    # Without registers there is nothing that [CLS] could be counted among.
    mixed = [audit(registers=0), audit("B", 86.0, cls_term="registers")]
    assert REGISTERS in words(plot_variance_share(mixed))
    pooled = audit("g", 1136.0, registers=0, cls_term="patches")
    with pytest.raises(NothingToDrawError, match="among the patches: DINOv2 g"):
        plot_variance_share([*mixed, pooled])
    pooled.summary["model"]["global_feature"] = "attention pooling"
    assert len(plot_variance_share([*mixed, pooled]).shown) == 3


@pytest.mark.parametrize("settings", [None, "text", {}, {"cls_term": "<b>", "renormalize": "no"}])
def test_settings_that_are_not_known_are_compatible_and_named(settings):
    unknown, known = audit(), audit("B", 86.0, cls_term="registers", renormalize=True)
    unknown.summary["settings"] = settings
    choices, both = [count_cls("cls"), RENORMALIZE], [unknown, known]
    assert find_mixture(choices, both) == ""
    told = describe_choices(choices, both)
    assert told[:2] == (REGISTERS, RENORMALISED)
    missing = ("Settings not saved with DINOv2 with registers S.",)
    assert told[2:] == (() if isinstance(settings, dict) else missing)


@pytest.mark.parametrize("readout", ["attention", "values"])
def test_figure_3_compares_in_the_readout_that_is_asked_for(readout):
    model = audit()
    drawing = plot_restricted_cka([model], readout)
    (line,) = (c.lines[0] for c in drawing.figure.axes[0].containers)
    expected = model.summary["cka"][readout]["patches"]["unbiased"]
    assert line.get_ydata() == pytest.approx([expected])
    assert ("before the output projection" in words(drawing)) == (readout == "values")
    result = one_shot()
    drawing = plot_one_shot([result], "nearest", "top1", readout)
    heights = {c.get_label(): c.lines[0].get_ydata()[0] for c in drawing.figure.axes[0].containers}
    accuracy = result.summary["accuracy"]["nearest"][readout]
    assert heights == pytest.approx({k: 100 * v["top1"]["value"] for k, v in accuracy.items()})
    assert ("before the output projection" in words(drawing)) == (readout == "values")


def test_a_readout_that_a_result_lacks_is_named():
    model, result = audit(), one_shot()
    del model.summary["cka"]["values"], result.summary["accuracy"]["nearest"]["values"]
    with pytest.raises(NothingToDrawError, match="its CKA is missing in the readout values"):
        plot_restricted_cka([model], "values")
    with pytest.raises(NothingToDrawError, match="with nearest in the readout values"):
        plot_one_shot([result], "nearest", "top1", "values")


def test_command_folder_and_result_all_take_a_readout(tmp_path, capsys):
    write_result(tmp_path / "r" / "audit", *make_audit("DINOv2", "S", 22.1, n=30))
    write_result(tmp_path / "r" / "one-shot", make_one_shot("DINOv2", "S", 22.1))
    figure = AuditResult(tmp_path / "r" / "audit").plot_restricted_cka("values")
    summary, _ = make_audit("DINOv2", "S", 22.1, n=30)
    shown = [c.lines[0].get_ydata()[0] for c in figure.axes[0].containers]
    assert shown == pytest.approx([summary["cka"]["values"]["patches"]["unbiased"]])
    figure = OneShotResult(tmp_path / "r" / "one-shot").plot_accuracy(readout="values")
    assert "skip" not in {c.get_label() for c in figure.axes[0].containers}
    out = {}
    for readout in ("attention", "values"):
        out[readout] = tmp_path / readout
        options = ["--out", str(out[readout]), "--format", "svg", "--readout", readout]
        assert main(["figures", str(tmp_path / "r"), *options]) == 0
    names = ("fig3a_restricted_cka", "fig3b_one_shot_nearest_top1", "fig3b_one_shot_logistic_top5")
    changed = {
        path.stem
        for path in out["values"].glob("*.svg")
        if path.read_bytes() != (out["attention"] / path.name).read_bytes()
    }
    assert changed >= set(names)
    assert all(name.startswith("fig3") for name in changed)
    assert main(["figures", str(tmp_path / "r"), "--out", "x", "--readout", "block"]) == 2
    assert "readout" in capsys.readouterr().err


def test_an_unknown_readout_is_refused(tmp_path):
    with pytest.raises(UsageError, match="readout 'block': expected one of attention, values"):
        draw_figures([tmp_path], tmp_path / "out", readout="block")
