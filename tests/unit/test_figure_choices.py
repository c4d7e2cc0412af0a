"""Figures name the choices that their numbers depend on, and refuse results that differ in them."""

import re
from dataclasses import replace

import pytest

from blank_figures import blank_figures, words
from made_results import MadeResult, hold_audit, make_audit, make_one_shot, write_result
from vitscope.cli import main
from vitscope.errors import UsageError
from vitscope.figures import NothingToDrawError, draw_figure, draw_figures, plot
from vitscope.results.audit_result import AuditResult
from vitscope.results.choices import count_cls, find_mixture
from vitscope.results.one_shot_result import OneShotResult

REGISTERS = "[CLS]'s attention to itself is counted among the registers, in models that have any."
PATCHES = "[CLS]'s attention to itself is counted among the patches."
RENORMALISED = (
    "Restricted outputs are divided by the attention mass that they keep; the residual readout "
    "compares terms, which are not."
)


def audit(size="S", params=22.1, *, registers=4, **settings):
    family = "DINOv2 with registers" if registers else "DINOv2"
    return choose(hold_audit(family, size, params, registers=registers, n=40), **settings)


def one_shot(size="S", params=22.1, **settings):
    summary = make_one_shot("DINOv2 with registers", size, params, registers=4)
    return choose(MadeResult.of(summary), **settings)


def choose(result, **settings):
    return result.change(replace(result.summary.settings, **settings), "settings")


OF_AUDITS = {
    "patch_share": {"registers", "patches"},
    "restricted_cka": {"registers", "patches", "renormalised"},
    "variance_share": {"registers", "patches"},
    "interdependence": {"registers"},
    "norms": {"patches"},
    "residual_cka": {"patches"},
    "layer_similarity": set(),
    "gram_ledger": {"registers", "patches"},
    "directions": {"registers", "patches"},
    "covariates": {"registers", "patches"},
}


@pytest.mark.parametrize("figure", OF_AUDITS)
def test_a_figure_names_the_choices_that_it_depends_on_and_no_others(figure):
    for value, settings, note in (
        ("default", {}, "is counted among"),
        ("registers", {"cls_term": "registers"}, REGISTERS),
        ("patches", {"cls_term": "patches"}, PATCHES),
        ("renormalised", {"renormalize": True}, RENORMALISED),
    ):
        found = words(draw_figure(figure, [audit(**settings)]).figure)
        assert (note in found) == (value in OF_AUDITS[figure]), (value, found)


def test_what_is_not_the_patches_counts_on_where_cls_is_counted():
    choices = [count_cls("non_patch")]
    assert not find_mixture(choices, [audit(), audit("B", 86.0, cls_term="registers")])
    mixture = find_mixture(choices, [audit(), audit("B", 86.0, cls_term="patches")])
    assert "attention to itself is counted" in mixture


@pytest.mark.parametrize("figure", ["norms", "residual_cka", "restricted_cka"])
@pytest.mark.parametrize(
    "terms", ["patches", [], ["skip", "nope"], 5, [["skip"]], ["skip", "skip"]], ids=str
)
def test_unknown_terms_are_refused_by_name(figure, terms):
    with pytest.raises(UsageError, match=r"^terms .*: expected a list of some of full, "):
        draw_figure(figure, [audit()], terms=terms)


def test_one_shot_names_them_too():
    found = words(draw_figure("one_shot", [one_shot(cls_term="patches", renormalize=True)]).figure)
    assert PATCHES in found
    assert RENORMALISED in found
    assert "counted among" not in words(draw_figure("one_shot", [one_shot()]).figure)


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
    found = words(draw_figure("patch_share", [audit(cls_term=term)]).figure)
    assert ends in found
    assert ratio in found


@pytest.mark.parametrize(
    ("figure", "settings", "about"),
    [
        ("patch_share", {"cls_term": "registers"}, "attention to itself is counted"),
        ("restricted_cka", {"renormalize": True}, "restricted outputs are renormalised"),
        ("variance_share", {"cls_term": "patches"}, "attention to itself is counted"),
    ],
)
def test_results_that_differ_in_a_choice_are_drawn_apart(figure, settings, about):
    with pytest.raises(NothingToDrawError) as caught:
        draw_figure(figure, [audit(), audit("B", 86.0, **settings), audit("L", 304.0)])
    assert about in str(caught.value)
    assert "DINOv2 with registers S, DINOv2 with registers L" in str(caught.value)
    assert re.search("; .*: DINOv2 with registers B.: draw them separately", str(caught.value))


def test_raw_and_centred_shares_are_drawn_apart():
    raw = audit("B", 86.0).change_last({}, "centred_share")
    with pytest.raises(NothingToDrawError, match="differ in the shares of their images"):
        draw_figure("interdependence", [audit(), raw])
    assert "by its raw shares" in words(draw_figure("interdependence", [raw]).figure)
    assert "by its centred shares" in words(draw_figure("interdependence", [audit()]).figure)


def test_a_choice_that_changes_nothing_shown_is_no_difference():
    mixed = [audit(), audit("B", 86.0, cls_term="registers", renormalize=True)]
    for figure in ("norms", "residual_cka", "layer_similarity"):
        assert len(draw_figure(figure, mixed).data.shown) == 2
    # Without registers there is nothing that [CLS] could be counted among.
    mixed = [audit(registers=0), audit("B", 86.0, cls_term="registers")]
    assert REGISTERS in words(draw_figure("variance_share", mixed).figure)
    pooled = audit("g", 1136.0, registers=0, cls_term="patches")
    with pytest.raises(NothingToDrawError, match="among the patches: DINOv2 g"):
        draw_figure("variance_share", [*mixed, pooled])
    pooled = pooled.change("attention pooling", "model", "global_feature")
    assert len(draw_figure("variance_share", [*mixed, pooled]).data.shown) == 3


@pytest.mark.parametrize("readout", ["attention", "values"])
def test_figure_3_compares_in_the_readout_that_is_asked_for(readout):
    model = audit()
    drawing = draw_figure("restricted_cka", [model], readout=readout)
    (line,) = (c.lines[0] for c in drawing.figure.axes[0].containers)
    expected = model.audit.last.cka[readout]["patches"].unbiased
    assert line.get_ydata() == pytest.approx([expected])
    assert ("before the output projection" in words(drawing.figure)) == (readout == "values")
    result = one_shot()
    drawing = draw_figure("one_shot", [result], top="top1", readout=readout)
    heights = {c.get_label(): c.lines[0].get_ydata()[0] for c in drawing.figure.axes[0].containers}
    accuracy = result.one_shot.accuracy["nearest"][readout]
    assert heights == pytest.approx({k: 100 * v.top1.value for k, v in accuracy.items()})
    assert ("before the output projection" in words(drawing.figure)) == (readout == "values")


def test_a_readout_that_a_result_lacks_is_named():
    model = audit().change_last({}, "cka", "values")
    result = one_shot().change({}, "accuracy", "nearest", "values")
    with pytest.raises(NothingToDrawError, match="its CKA is missing in the readout values"):
        draw_figure("restricted_cka", [model], readout="values")
    with pytest.raises(NothingToDrawError, match="with nearest in the readout values"):
        draw_figure("one_shot", [result], readout="values")


def test_command_folder_and_result_all_take_a_readout(tmp_path, capsys):
    write_result(tmp_path / "r" / "audit", *make_audit("DINOv2", "S", 22.1, n=30))
    write_result(tmp_path / "r" / "one-shot", make_one_shot("DINOv2", "S", 22.1))
    figure = AuditResult(tmp_path / "r" / "audit").plot("restricted_cka", readout="values")
    summary, _ = make_audit("DINOv2", "S", 22.1, n=30)
    shown = [c.lines[0].get_ydata()[0] for c in figure.axes[0].containers]
    assert shown == pytest.approx([summary.last.cka["values"]["patches"].unbiased])
    figure = OneShotResult(tmp_path / "r" / "one-shot").plot("one_shot", readout="values")
    assert "skip" not in {c.get_label() for c in figure.axes[0].containers}
    out = {}
    for readout in ("attention", "values"):
        out[readout] = tmp_path / readout
        options = ["--out", str(out[readout]), "--format", "svg", "--readout", readout]
        with blank_figures():
            assert main(["figures", str(tmp_path / "r"), *options]) == 0
    names = ("fig3a_restricted_cka", "fig3b_one_shot_nearest_top1", "fig3b_one_shot_logistic_top5")
    changed = {
        path.stem
        for path in out["values"].glob("fig*.*")
        if path.read_bytes() != (out["attention"] / path.name).read_bytes()
    }
    assert changed >= set(names)
    assert all(name.startswith("fig3") for name in changed)
    assert main(["figures", str(tmp_path / "r"), "--out", "x", "--readout", "block"]) == 2
    assert "readout" in capsys.readouterr().err


def test_an_unknown_readout_is_refused(tmp_path):
    with pytest.raises(UsageError, match="readout 'block': expected one of attention, values"):
        draw_figures([tmp_path], tmp_path / "out", readout="block")


def test_one_figure_of_several_results_tells_them_apart_or_refuses(tmp_path):
    summary, columns = make_audit("DINOv2 with registers", "S", 22.1, registers=4, n=30)
    other = replace(summary, settings=replace(summary.settings, cls_term="patches"))
    a, b, c = (
        AuditResult(write_result(tmp_path / name, content, columns))
        for name, content in (("a", summary), ("b", summary), ("c", other))
    )
    stacked, _ = plot("variance_share", [a, b.folder]).axes
    names = [label.get_text() for label in stacked.get_yticklabels()]
    assert names == ["DINOv2 with registers S", "DINOv2 with registers S (2)"]
    with pytest.raises(NothingToDrawError, match="attention to itself is counted"):
        plot("variance_share", [a, c])


@pytest.mark.parametrize(
    ("figure", "reason"),
    [
        ("patch_share", "DINOv2 S: no registers"),
        ("interdependence", "DINOv2 S: no registers"),
        ("one_shot", "no result of the kind"),
        ("maps", "no result of the kind"),
        ("anatomy", "no anatomy"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_words(figure, reason):
    model = hold_audit("DINOv2", "S", 22.1).change_last(None, "anatomy")
    with pytest.raises(NothingToDrawError, match=reason):
        draw_figure(figure, [model])


@pytest.mark.parametrize(
    ("figure", "settings", "message"),
    [
        ("poem", {}, "figure 'poem': expected one of variance_share, attent"),
        ("norms", {"top": "top1"}, "the figure norms takes no 'top': expected terms"),
        ("patch_share", {"top": "top1"}, "the figure patch_share takes no 'top': expected none"),
        ("one_shot", {"top": "top9"}, "top 'top9': expected one of top1, top5"),
        ("one_shot", {"readout": "embedding"}, "readout 'embedding': expected one of attention, v"),
        ("restricted_cka", {"readout": "residual"}, "readout 'residual': expected one of atten"),
        ("maps", {"of": 1}, "the figure maps takes no 'of': expected image, heads"),
        ("anatomy", {}, "the figure anatomy shows one result: 2 were given"),
    ],
)
def test_a_figure_or_a_setting_that_there_is_not_is_refused(figure, settings, message):
    with pytest.raises(UsageError, match=message):
        draw_figure(figure, [audit(), audit("B", 86.6)], **settings)


def test_what_is_no_result_is_refused_in_words():
    with pytest.raises(UsageError, match="a result was given as int: expected"):
        plot("norms", [1])
    with pytest.raises(UsageError, match="the figure anatomy shows one result: 0 were given"):
        plot("anatomy", [])
