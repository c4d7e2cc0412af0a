"""Each figure shows the numbers of the results, says how many images, and what it leaves out."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from vitscope.figures.anatomy import plot_anatomy
from vitscope.figures.cka import plot_residual_cka, plot_restricted_cka
from vitscope.figures.covariates import plot_covariates
from vitscope.figures.directions import plot_directions
from vitscope.figures.gram import plot_gram_ledger
from vitscope.figures.interdependence import plot_interdependence
from vitscope.figures.layers import (
    plot_high_norm_fraction,
    plot_high_norm_layers,
    plot_layer_similarity,
)
from vitscope.figures.norms import plot_norms
from vitscope.figures.one_shot import list_classifiers, plot_one_shot
from vitscope.figures.patch_share import plot_patch_share
from vitscope.figures.style import FAINT, TERM_COLOURS, look_of_families
from vitscope.figures.variance_share import plot_variance_share

from made_results import FAMILIES, estimate, make_audit, make_one_shot
from vitscope.figures import ModelResult, NothingToDrawError


class MadeResult(ModelResult):
    """A result in memory: its columns need no file."""

    def read_column(self, name):
        values = self.summary["columns"].get(name)
        return None if values is None else np.asarray(values, dtype=float)


def audit(*args, **settings):
    summary, columns = make_audit(*args, **settings)
    return MadeResult(
        Path(f"/nowhere/{summary['model']['id']}"), "audit", {**summary, "columns": columns}
    )


def audits(*families):
    return [
        audit(family, size, params, registers=4 * ("registers" in family))
        for family in families or FAMILIES
        for size, params in FAMILIES[family].items()
    ]


def one_shots(*families):
    summaries = [
        make_one_shot(family, size, params, registers=4 * ("registers" in family))
        for family in families
        for size, params in FAMILIES[family].items()
    ]
    return [MadeResult(Path(s["model"]["id"]), "one-shot", s) for s in summaries]


def words(figure):
    """Everything that is written on a figure, on one line."""
    texts = [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]
    return " ".join(" ".join(texts).split())


def bars(panel):
    """Error bars by label: their points and the ends of their bars."""
    return {
        container.get_label(): (
            container.lines[0].get_xydata(),
            [segment for bar in container.lines[2] for segment in bar.get_segments()],
        )
        for container in panel.containers
        if isinstance(container, ErrorbarContainer)
    }


def test_patch_share_shows_means_and_who_has_no_registers():
    models = audits("DINOv2", "DINOv2 with registers")
    drawing = plot_patch_share(models)
    (panel,) = drawing.figure.axes
    dots = [line.get_ydata() for line in panel.lines if line.get_marker() == "o"]
    shown = [model for model in models if model.num_registers]
    means = [model.read_column("patch_share").mean() for model in shown]
    assert np.ravel(dots) == pytest.approx(means)
    assert [m.label for m in drawing.shown] == [m.label for m in shown]
    assert set(drawing.omitted.values()) == {"no registers"}
    assert "n = 400 images a model" in words(drawing.figure)
    assert "Not shown: DINOv2 S, DINOv2 B, DINOv2 L, DINOv2 g: no registers" in words(
        drawing.figure
    )
    assert [tick.get_text().split("\n")[0] for tick in panel.get_xticklabels()] == list("SBLg")


def test_patch_share_of_images_where_it_is_undefined_is_left_out():
    model = audit("DINOv2 with registers", "g", 1136.0, registers=4)
    model.summary["columns"]["patch_share"][:100] = math.nan
    (panel,) = plot_patch_share([model]).figure.axes
    (dot,) = [line for line in panel.lines if line.get_marker() == "o"]
    rest = model.summary["columns"]["patch_share"][100:]
    assert dot.get_ydata() == pytest.approx([rest.mean()])


def test_restricted_cka_draws_a_line_a_family_with_intervals_over_parameters():
    models = audits()
    figure = plot_restricted_cka(models).figure
    patches, registers = figure.axes
    assert set(bars(patches)) == set(FAMILIES)
    assert set(bars(registers)) == {"DINOv2 with registers"}
    for family, sizes in FAMILIES.items():
        points, ends = bars(patches)[family]
        of_family = sorted(
            (m for m in models if m.family == family), key=lambda m: (m.params_m, m.model_id)
        )
        ckas = [m.summary["cka"]["attention"]["patches"] for m in of_family]
        assert points[:, 0] == pytest.approx(sorted(sizes.values()))
        assert points[:, 1] == pytest.approx([cka["unbiased"] for cka in ckas])
        expected = np.array([cka["ci95"] for cka in ckas])
        np.testing.assert_allclose([end[:, 1] for end in ends], expected)
    assert patches.get_xscale() == "log"
    assert patches.get_xlabel() == "parameters (millions)"
    for label in ("patches only", "registers only", "95 % intervals", "n = 400", "bigG"):
        assert label in words(figure)


def test_biased_cka_and_what_it_would_be_of_unrelated_features_stand_beside():
    model = audit("DINOv2", "B", 86.6)
    (panel,) = plot_residual_cka([model]).figure.axes
    hollow = {line.get_ydata()[0] for line in panel.lines if line.get_marker() == "o"}
    dashes = [line for line in panel.lines if line.get_marker() == "_"]
    faint = {line.get_ydata()[0] for line in dashes if line.get_color() == FAINT}
    ckas = model.summary["cka"]["residual"]
    assert {cka["biased"] for cka in ckas.values()} <= hollow
    assert faint == {0.12}


def test_residual_cka_has_a_panel_a_family_and_the_same_colours_everywhere():
    figure = plot_residual_cka(audits("iBOT", "DeiT III")).figure
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["iBOT", "DeiT III"]
    for panel in figure.axes:
        for container in panel.containers:
            colour = to_hex(container.lines[0].get_color()).upper()
            assert colour == TERM_COLOURS[container.get_label()]


def test_the_tiny_deit_is_no_size_of_deit_iii():
    tiny, others = plot_norms(audits("DeiT", "DeiT III")).figure.axes
    assert tiny.get_title(loc="left") == "DeiT"
    assert len(bars(tiny)["patches"][0]) == 1
    assert len(bars(others)["patches"][0]) == 4
    looks = look_of_families(["DeiT", "DeiT III"])
    assert looks["DeiT"] != looks["DeiT III"]


def test_norms_show_means_and_the_spread_of_images():
    model = audit("DINOv2", "L", 304.4)
    (panel,) = plot_norms([model]).figure.axes
    for term in ("patches", "skip"):
        points, (ends,) = bars(panel)[term]
        norm = model.summary["contribution_norm"][term]
        assert points[0, 1] == pytest.approx(norm["mean"])
        assert ends[:, 1] == pytest.approx([norm["p05"], norm["p95"]])
    assert "5 to 95 % of the images" in words(panel.figure)


@pytest.mark.parametrize("top", ["top1", "top5"])
def test_one_shot_shows_percent_by_part_and_the_line_of_chance(top):
    results = one_shots("DINOv2 with registers")
    assert list_classifiers(results) == ["nearest", "logistic"]
    figure = plot_one_shot(results, "nearest", top).figure
    (panel,) = figure.axes
    assert set(bars(panel)) == {"full", "patches", "registers", "skip"}
    for part, (points, _) in bars(panel).items():
        accuracy = [r.summary["accuracy"]["nearest"]["attention"][part][top] for r in results]
        assert points[:, 1] == pytest.approx([100 * a["value"] for a in accuracy])
    chance = 100 * results[0].summary["chance"][top]
    assert any(np.allclose(line.get_ydata(), chance) for line in panel.lines)
    assert "101 classes, 404 images, 20 draws" in words(figure)


def test_layer_similarity_runs_over_relative_depth():
    model = audit("DINOv2", "S", 22.1)
    (panel,) = plot_layer_similarity([model]).figure.axes
    (line,) = panel.lines
    rows = model.summary["layer_similarity"]
    assert line.get_xdata() == pytest.approx([row["layer"] / 12 for row in rows])
    assert line.get_ydata() == pytest.approx([row["mean"] for row in rows])
    assert panel.get_xlabel().startswith("relative depth")


def test_models_of_one_size_in_a_family_differ_in_dashes_and_sizes_in_colour():
    (panel,) = plot_layer_similarity(audits("CLIP (OpenCLIP)")).figure.axes
    looks = {(line.get_color(), line._unscaled_dash_pattern) for line in panel.lines}
    assert len(looks) == 6


def test_high_norm_fractions_are_percent_and_a_bound_where_none_are_found():
    models = audits("DINOv2", "DINOv2 with registers")
    clean, outliers = None, None
    for panel in plot_high_norm_fraction(models).figure.axes:
        heights = [line.get_ydata().max() for line in panel.lines]
        if panel.get_legend().get_title().get_text() == "DINOv2":
            outliers = heights
        else:
            clean = heights
    bound = 100 * 25 / (256 * 400)
    assert clean == pytest.approx([bound] * 4)
    assert outliers[:2] == pytest.approx([bound] * 2)
    assert outliers[3] == pytest.approx(100 * 0.02 * math.log10(113.65) / 2.1)


def test_high_norm_layers_show_threshold_and_say_where_there_is_none():
    giant, small = audit("DINOv2", "g", 1136.5), audit("DINOv2", "S", 22.1)
    norms, fractions = plot_high_norm_layers(giant).figure.axes
    lines = {line.get_label(): line for line in (*norms.lines, *fractions.lines)}
    assert set(lines["threshold"].get_ydata()) == {150.0}
    rows = giant.summary["high_norm_tokens"]
    assert lines["99 % quantile"].get_ydata() == pytest.approx([row["p99"] for row in rows])
    found = [row["fraction"] for row in rows if row["fraction"] is not None]
    assert lines["of patch tokens"].get_ydata() == pytest.approx(found)
    told = words(plot_high_norm_layers(small).figure)
    assert "up to 0.0244 % of the patch tokens, in up to 6.25 % of the images" in told


def test_variance_shares_add_up_and_what_takes_away_stands_to_the_left():
    model = audit("DINOv2 with registers", "g", 1136.5, registers=4)
    shares = model.summary["variance_share"]["residual"]
    for term, change in (("patches", 0.1), ("skip", -0.3), ("cls", 0.2)):
        shares[term] = estimate(shares[term]["value"] + change)
    stacked, apart = plot_variance_share([model]).figure.axes
    widths = {bar.get_label(): bar.patches[0] for bar in stacked.containers}
    assert sum(patch.get_width() for patch in widths.values()) == pytest.approx(100)
    assert widths["skip"].get_width() < 0
    for term, share in shares.items():
        assert widths[term].get_width() == pytest.approx(100 * share["value"])
        points, (ends,) = bars(apart)[term]
        assert points[0, 0] == pytest.approx(100 * share["value"])
        assert ends[:, 0] == pytest.approx([100 * end for end in share["ci95"]])


def test_a_mean_outside_its_quantiles_stands_apart_from_its_bar():
    model = audit("DINOv2 with registers", "L", 304.4, registers=4)
    skewed = {"mean": 90.0, "std": 200.0, "p05": 10.0, "p50": 15.0, "p95": 40.0, "n": 400}
    model.summary["anatomy"]["norms"]["register_1"] = skewed
    model.summary["contribution_norm"]["skip"] = skewed
    for panel, label in (
        (plot_anatomy(model).figure.axes[0], "register_1"),
        (plot_norms([model]).figure.axes[0], "skip"),
    ):
        points, (ends,) = bars(panel)[label]
        assert points[0, 1] == 90
        assert ends[:, 1].tolist() == [10, 40]


def test_gram_ledger_shows_every_pair_of_terms():
    model = audit("DINOv2 with registers", "L", 304.4, registers=4)
    drawing = plot_gram_ledger(model)
    ledger = model.summary["gram_ledger"]["residual"]
    panel = drawing.figure.axes[1]
    (image,) = panel.images
    terms = ["patches", "registers", "cls", "skip"]
    expected = [[ledger[a][b]["unbiased"] for b in terms] for a in terms]
    np.testing.assert_allclose(image.get_array(), expected)
    assert image.get_array().sum() == pytest.approx(1)
    biased = ledger["patches"]["patches"]["biased"]
    assert f"{expected[0][0]:.2f} ±0.01 ({biased:.2f})" in words(drawing.figure)


def test_directions_show_angles_shared_variance_beside_chance_and_ranks():
    model = audit("DINOv2", "L", 304.4)
    angles, shared, ranks = plot_directions(model).figure.axes
    directions = model.summary["directions"]
    lines = {line.get_label(): line.get_ydata() for line in angles.lines}
    pair = directions["pairs"]["patches"]["skip"]
    assert lines["patches – skip"] == pytest.approx(pair["principal_angles_deg"])
    assert f"{pair['shared_variance']:.2f} (0.03)" in words(shared.figure)
    widths = {round(bar.get_width(), 6) for bar in ranks.patches}
    assert widths == {round(rank, 6) for rank in directions["effective_rank"].values()}


def test_anatomy_shows_norms_cosines_and_the_strongest_dimensions():
    model = audit("DINOv2 with registers", "g", 1136.5, registers=4)
    drawing = plot_anatomy(model)
    norms, cosines, before, after = drawing.figure.axes
    anatomy = model.summary["anatomy"]
    for token, (points, _) in bars(norms).items():
        assert points[0, 1] == pytest.approx(anatomy["norms"][token]["mean"])
    assert norms.get_yscale() == "log"
    points, _ = bars(cosines)["register 2 (analysed)"]
    states = anatomy["tokens"]["register_2"]
    found = [states[s]["pairwise_cosine"]["value"] for s in ("hidden", "normed", "keys", "values")]
    assert points[:, 1] == pytest.approx(found)
    for panel, key in ((before, "before"), (after, "after")):
        lines = {line.get_label(): line.get_ydata() for line in panel.lines}
        assert lines["register_2"] == pytest.approx(states["top_dimensions"][key])
    assert "Register 2 has the highest norm in 99.8% of the images" in words(drawing.figure)


def test_covariates_fill_what_is_told_from_none():
    model = audit("DINOv2 with registers", "g", 1136.5, registers=4)
    figure = plot_covariates(model).figure
    found = model.summary["covariates"]["correlations"]
    assert len(figure.axes) == len(found)
    for panel in figure.axes:
        title = panel.get_title(loc="left").split("\n")[0].removeprefix("attention: ")
        correlations = found[title.replace(" of ", "_").replace(" ", "_")]
        for container in panel.containers:
            one = correlations[container.get_label()]
            line = container.lines[0]
            assert line.get_xdata() == pytest.approx([one["rho"]])
            assert (to_hex(line.get_markerfacecolor()) != "#ffffff") == (one["p_holm"] < 0.05)
    assert "R² = 0.12" in words(figure)
    assert "n = 400 images" in words(figure)


def test_interdependence_shows_each_image_and_the_correlation():
    model = audit("DINOv2 with registers", "L", 304.4, registers=4)
    model.summary["columns"]["centred_share_skip"][3] = math.nan
    drawing = plot_interdependence([model, audit()])
    (panel,) = drawing.figure.axes
    (dots,) = [c for c in panel.collections if isinstance(c, PathCollection)]
    columns = model.summary["columns"]
    expected = np.stack([columns["centred_share_skip"], columns["centred_share_registers"]], axis=1)
    np.testing.assert_allclose(dots.get_offsets(), np.delete(expected, 3, axis=0))
    assert "ρ = −0.62 [−0.68, −0.55]" in words(drawing.figure)
    assert drawing.omitted == {"DINOv2 S": "no registers"}


def test_models_without_a_size_are_not_joined_and_those_without_parameters_are_named():
    sized = audit("DINOv2", "S", 22.1)
    unsized = audit("mine", None, 40.0, name="mine/a")
    other = audit("mine", None, 60.0, name="mine/b")
    unknown = audit("DINOv2", "X", None, name="mine/c")
    drawing = plot_norms([sized, unsized, other, unknown])
    for panel in drawing.figure.axes:
        joined = {c.lines[0].get_linestyle() for c in panel.containers}
        assert joined == ({"-"} if panel.get_title(loc="left") == "DINOv2" else {"None"})
    assert drawing.omitted == {"DINOv2 X": "its number of parameters is not known"}


def test_known_families_always_look_the_same_and_unknown_ones_differ():
    alone = look_of_families(["iBOT"])["iBOT"]
    together = look_of_families([*FAMILIES, "a", "b", "c"])
    assert together["iBOT"] == alone
    assert len(set(together.values())) == len(together)


def undefined(tree):
    return {key: undefined(v) for key, v in tree.items()} if isinstance(tree, dict) else None


@pytest.mark.parametrize(
    ("plot", "readout"), [(plot_restricted_cka, "attention"), (plot_residual_cka, "residual")]
)
def test_an_undefined_cka_is_put_down_to_what_it_comes_from(plot, readout):
    def refuse(model):
        with pytest.raises(NothingToDrawError) as caught:
            plot([model])
        return str(caught.value).removeprefix("DINOv2 S: ")

    model = audit("DINOv2", "S", 22.1)
    shares = {readout: model.summary["variance_share"]["residual"]}
    ckas = model.summary["cka"]
    model.summary.update(cka={}, variance_share=shares)
    assert refuse(model) == f"its CKA is missing in the readout {readout}"
    model.summary["cka"] = {readout: {k: {**v, "unbiased": None} for k, v in ckas[readout].items()}}
    assert refuse(model) == "its CKA is undefined without bias: too few images for how they differ"
    model.summary["cka"] = undefined(ckas)
    same = "is the same for every image"
    assert refuse(model) == f"its CKA is undefined: what is kept of its output {same}"
    model.summary["variance_share"] = undefined(shares)
    assert refuse(model) == f"its CKA is undefined: its output {same}"
    model.summary["variance_share"] = {}
    assert refuse(model) == f"its CKA is undefined: its output, or what is kept of it, {same}"
    model.summary["data"]["num_images"] = 3
    assert refuse(model) == "its CKA is undefined with fewer than 4 images"


@pytest.mark.parametrize(
    ("draw", "reason"),
    [
        (plot_patch_share, "DINOv2 S: no registers"),
        (plot_interdependence, "DINOv2 S: no registers"),
        (lambda models: plot_one_shot(models, "nearest", "top1"), "no result of the kind"),
        (lambda models: plot_anatomy(models[0]), "no anatomy"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_words(draw, reason):
    model = audit("DINOv2", "S", 22.1)
    model.summary["anatomy"] = None
    with pytest.raises(NothingToDrawError, match=reason):
        draw([model])
