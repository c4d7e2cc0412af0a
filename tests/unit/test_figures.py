"""Each figure shows the numbers of the results, says how many images, and what it leaves out."""

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer

from blank_figures import words
from made_judgements import make_judgement
from made_remedies import make_remedies
from made_results import FAMILIES, MadeResult, estimate, hold_audit, hold_layers, make_one_shot
from vitscope.figures import FIGURES, NothingToDrawError, draw_figure
from vitscope.figures.contributions import list_classifiers
from vitscope.figures.rendering.style import FAINT, TERM_COLOURS, look_of_families
from vitscope.metrics.distribution import Distribution
from vitscope.metrics.jackknife import Estimate


def audits(*families):
    return [
        hold_audit(family, size, params, registers=4 * ("registers" in family))
        for family in families or FAMILIES
        for size, params in FAMILIES[family].items()
    ]


def one_shots(*families):
    summaries = [
        make_one_shot(family, size, params, registers=4 * ("registers" in family))
        for family in families
        for size, params in FAMILIES[family].items()
    ]
    return [MadeResult.of(s) for s in summaries]


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
    drawing = draw_figure("patch_share", models)
    (panel,) = drawing.figure.axes
    dots = [line.get_ydata() for line in panel.lines if line.get_marker() == "o"]
    shown = [model for model in models if model.summary.model.num_registers]
    means = [model.read_column("patch_share").mean() for model in shown]
    assert np.ravel(dots) == pytest.approx(means)
    assert [m.label for m in drawing.data.shown] == [m.label for m in shown]
    assert set(drawing.data.omitted.values()) == {"no registers"}
    assert "n = 400 images a model" in words(drawing.figure)
    assert "Not shown: DINOv2 S, DINOv2 B, DINOv2 L, DINOv2 g: no registers" in words(
        drawing.figure
    )
    assert [tick.get_text().split("\n")[0] for tick in panel.get_xticklabels()] == list("SBLg")


def test_patch_share_of_images_where_it_is_undefined_is_left_out():
    model = hold_audit("DINOv2 with registers", "g", 1136.0, registers=4)
    model.columns["patch_share"][:100] = math.nan
    (panel,) = draw_figure("patch_share", [model]).figure.axes
    (dot,) = [line for line in panel.lines if line.get_marker() == "o"]
    rest = model.columns["patch_share"][100:]
    assert dot.get_ydata() == pytest.approx([rest.mean()])


def test_restricted_cka_draws_a_line_a_family_with_intervals_over_parameters():
    models = audits()
    figure = draw_figure("restricted_cka", models).figure
    patches, registers = figure.axes
    assert set(bars(patches)) == set(FAMILIES)
    assert set(bars(registers)) == {"DINOv2 with registers"}
    for family, sizes in FAMILIES.items():
        points, ends = bars(patches)[family]
        of_family = sorted(
            (m for m in models if m.family == family), key=lambda m: (m.params_m, m.model_id)
        )
        ckas = [m.audit.last.cka["attention"]["patches"] for m in of_family]
        assert points[:, 0] == pytest.approx(sorted(sizes.values()))
        assert points[:, 1] == pytest.approx([cka.unbiased for cka in ckas])
        expected = np.array([cka.ci95 for cka in ckas])
        np.testing.assert_allclose([end[:, 1] for end in ends], expected)
    assert patches.get_xscale() == "log"
    assert patches.get_xlabel() == "parameters (millions)"
    for label in ("patches only", "registers only", "95 % intervals", "n = 400", "bigG"):
        assert label in words(figure)


def test_biased_cka_and_what_it_would_be_of_unrelated_features_stand_beside():
    model = hold_audit("DINOv2", "B", 86.6)
    (panel,) = draw_figure("residual_cka", [model]).figure.axes
    hollow = {line.get_ydata()[0] for line in panel.lines if line.get_marker() == "o"}
    dashes = [line for line in panel.lines if line.get_marker() == "_"]
    faint = {line.get_ydata()[0] for line in dashes if line.get_color() == FAINT}
    ckas = model.audit.last.cka["residual"]
    assert {ckas[term].biased for term in ("patches", "skip")} <= hollow
    assert faint == {0.12}


def test_residual_cka_has_a_panel_a_family_and_the_same_colours_everywhere():
    figure = draw_figure("residual_cka", audits("iBOT", "DeiT III")).figure
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["iBOT", "DeiT III"]
    for panel in figure.axes:
        for container in panel.containers:
            colour = to_hex(container.lines[0].get_color()).upper()
            assert colour == TERM_COLOURS[container.get_label()]


def test_the_tiny_deit_is_no_size_of_deit_iii():
    tiny, others = draw_figure("norms", audits("DeiT", "DeiT III")).figure.axes
    assert tiny.get_title(loc="left") == "DeiT"
    assert len(bars(tiny)["patches"][0]) == 1
    assert len(bars(others)["patches"][0]) == 4
    looks = look_of_families(["DeiT", "DeiT III"])
    assert looks["DeiT"] != looks["DeiT III"]


def test_norms_show_means_and_the_spread_of_images():
    model = hold_audit("DINOv2", "L", 304.4)
    (panel,) = draw_figure("norms", [model]).figure.axes
    for term in ("patches", "skip"):
        points, (ends,) = bars(panel)[term]
        norm = model.audit.last.contribution_norm[term]
        assert points[0, 1] == pytest.approx(norm.mean)
        assert ends[:, 1] == pytest.approx([norm.p05, norm.p95])
    assert "5 to 95 % of the images" in words(panel.figure)


@pytest.mark.parametrize("top", ["top1", "top5"])
def test_one_shot_shows_percent_by_part_and_the_line_of_chance(top):
    results = one_shots("DINOv2 with registers")
    assert list_classifiers(results) == ["nearest", "logistic"]
    figure = draw_figure("one_shot", results, classifier="nearest", top=top).figure
    (panel,) = figure.axes
    assert set(bars(panel)) == {"full", "patches", "registers", "skip"}
    for part, (points, _) in bars(panel).items():
        accuracy = [
            getattr(r.one_shot.accuracy["nearest"]["attention"][part], top) for r in results
        ]
        assert points[:, 1] == pytest.approx([100 * a.value for a in accuracy])
    chance = 100 * getattr(results[0].one_shot.chance, top)
    assert any(np.allclose(line.get_ydata(), chance) for line in panel.lines)
    assert "101 classes, 404 images, 20 draws" in words(figure)


def test_layer_similarity_runs_over_relative_depth():
    model = hold_audit("DINOv2", "S", 22.1)
    (panel,) = draw_figure("layer_similarity", [model]).figure.axes
    (line,) = panel.lines
    rows = model.audit.layer_similarity
    assert line.get_xdata() == pytest.approx([depth / 12 for depth in range(13)])
    assert line.get_ydata() == pytest.approx([row.mean for row in rows])
    assert panel.get_xlabel().startswith("relative depth")


def test_models_of_one_size_in_a_family_differ_in_dashes_and_sizes_in_colour():
    (panel,) = draw_figure("layer_similarity", audits("CLIP (OpenCLIP)")).figure.axes
    looks = {(line.get_color(), line._unscaled_dash_pattern) for line in panel.lines}
    assert len(looks) == 6


def test_high_norm_fractions_are_percent_and_a_bound_where_none_are_found():
    models = audits("DINOv2", "DINOv2 with registers")
    clean, outliers = None, None
    for panel in draw_figure("high_norm_fraction", models).figure.axes:
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
    giant, small = hold_audit("DINOv2", "g", 1136.5), hold_audit("DINOv2", "S", 22.1)
    norms, fractions = draw_figure("high_norm_layers", [giant]).figure.axes
    lines = {line.get_label(): line for line in (*norms.lines, *fractions.lines)}
    assert set(lines["threshold"].get_ydata()) == {150.0}
    rows = giant.audit.high_norm_tokens
    assert lines["99 % quantile"].get_ydata() == pytest.approx([row.p99 for row in rows])
    found = [row.fraction for row in rows if row.fraction is not None]
    assert lines["of patch tokens"].get_ydata() == pytest.approx(found)
    told = words(draw_figure("high_norm_layers", [small]).figure)
    assert "up to 0.0244 % of the patch tokens, in up to 6.25 % of the images" in told


def test_variance_shares_add_up_and_what_takes_away_stands_to_the_left():
    model = hold_audit("DINOv2 with registers", "g", 1136.5, registers=4)
    shares = {**model.audit.last.variance_share["residual"]}
    for term, more in (("patches", 0.1), ("skip", -0.3), ("cls", 0.2)):
        shares[term] = estimate(shares[term].value + more)
    model = model.change_last(shares, "variance_share", "residual")
    stacked, apart = draw_figure("variance_share", [model]).figure.axes
    widths = {bar.get_label(): bar.patches[0] for bar in stacked.containers}
    assert sum(patch.get_width() for patch in widths.values()) == pytest.approx(100)
    assert widths["skip"].get_width() < 0
    for term, share in shares.items():
        assert widths[term].get_width() == pytest.approx(100 * share.value)
        points, (ends,) = bars(apart)[term]
        assert points[0, 0] == pytest.approx(100 * share.value)
        assert ends[:, 0] == pytest.approx([100 * end for end in share.ci95])


def test_a_mean_outside_its_quantiles_stands_apart_from_its_bar():
    model = hold_audit("DINOv2 with registers", "L", 304.4, registers=4)
    skewed = Distribution(mean=90.0, std=200.0, p05=10.0, p50=15.0, p95=40.0, n=400)
    model = model.change_last(skewed, "anatomy", "norms", "register_1")
    model = model.change_last(skewed, "contribution_norm", "skip")
    for panel, label in (
        (draw_figure("anatomy", [model]).figure.axes[0], "register_1"),
        (draw_figure("norms", [model]).figure.axes[0], "skip"),
    ):
        points, (ends,) = bars(panel)[label]
        assert points[0, 1] == 90
        assert ends[:, 1].tolist() == [10, 40]


def test_gram_ledger_shows_every_pair_of_terms():
    model = hold_audit("DINOv2 with registers", "L", 304.4, registers=4)
    drawing = draw_figure("gram_ledger", [model])
    ledger = model.audit.last.gram_ledger["residual"]
    panel = drawing.figure.axes[1]
    (image,) = panel.images
    terms = ["patches", "registers", "cls", "skip"]
    expected = [[ledger[a][b].unbiased for b in terms] for a in terms]
    np.testing.assert_allclose(image.get_array(), expected)
    assert image.get_array().sum() == pytest.approx(1)
    biased = ledger["patches"]["patches"].biased
    assert f"{expected[0][0]:.2f} ±0.01 ({biased:.2f})" in words(drawing.figure)


def test_directions_show_angles_shared_variance_beside_chance_and_ranks():
    model = hold_audit("DINOv2", "L", 304.4)
    angles, shared, ranks = draw_figure("directions", [model]).figure.axes
    directions = model.audit.last.directions
    lines = {line.get_label(): line.get_ydata() for line in angles.lines}
    pair = directions.pairs["patches"]["skip"]
    assert lines["patches – skip connection"] == pytest.approx(pair.principal_angles_deg)
    assert f"{pair.shared_variance:.2f} (0.03)" in words(shared.figure)
    widths = {round(bar.get_width(), 6) for bar in ranks.patches}
    assert widths == {round(rank, 6) for rank in directions.effective_rank.values()}


def test_anatomy_shows_norms_cosines_and_the_strongest_dimensions():
    model = hold_audit("DINOv2 with registers", "g", 1136.5, registers=4)
    drawing = draw_figure("anatomy", [model])
    norms, cosines, before, after = drawing.figure.axes
    anatomy = model.audit.last.anatomy
    for name, (points, _) in bars(norms).items():
        assert points[0, 1] == pytest.approx(anatomy.norms[name].mean)
    assert norms.get_yscale() == "log"
    points, _ = bars(cosines)["register 2 (analysed)"]
    token = anatomy.tokens["register_2"]
    found = [token.states[s].pairwise_cosine.value for s in ("hidden", "normed", "keys", "values")]
    assert points[:, 1] == pytest.approx(found)
    for panel, key in ((before, "before"), (after, "after")):
        lines = {line.get_label(): line.get_ydata() for line in panel.lines}
        assert lines["register_2"] == pytest.approx(getattr(token.top_dimensions, key))
    assert "Register 2 has the highest norm in 99.8 % of the images" in words(drawing.figure)


def test_covariates_fill_what_is_told_from_none():
    model = hold_audit("DINOv2 with registers", "g", 1136.5, registers=4)
    figure = draw_figure("covariates", [model]).figure
    found = model.audit.covariates.correlations
    assert len(figure.axes) == len(found)
    for panel in figure.axes:
        title = panel.get_title(loc="left").split("\n")[0].removeprefix("attention: ")
        correlations = found[title.replace(" of ", "_").replace(" ", "_")]
        for container in panel.containers:
            one = correlations[container.get_label()]
            line = container.lines[0]
            assert line.get_xdata() == pytest.approx([one.rho])
            assert (to_hex(line.get_markerfacecolor()) != "#ffffff") == (one.p_holm < 0.05)
    assert "R² = 0.12" in words(figure)
    assert "n = 400 images" in words(figure)


def test_interdependence_shows_each_image_and_the_correlation():
    model = hold_audit("DINOv2 with registers", "L", 304.4, registers=4)
    model.columns["centred_share_skip"][3] = math.nan
    drawing = draw_figure("interdependence", [model, hold_audit()])
    (panel,) = drawing.figure.axes
    (dots,) = [c for c in panel.collections if isinstance(c, PathCollection)]
    columns = model.columns
    expected = np.stack([columns["centred_share_skip"], columns["centred_share_registers"]], axis=1)
    np.testing.assert_allclose(dots.get_offsets(), np.delete(expected, 3, axis=0))
    assert "ρ = −0.62 [−0.68, −0.55]" in words(drawing.figure)
    assert drawing.data.omitted == {"DINOv2 S": "no registers"}


def test_models_without_a_size_are_not_joined_and_those_without_parameters_are_named():
    sized = hold_audit("DINOv2", "S", 22.1)
    unsized = hold_audit("mine", None, 40.0, name="mine/a")
    other = hold_audit("mine", None, 60.0, name="mine/b")
    unknown = hold_audit("DINOv2", "X", name="mine/c").change(0, "model", "num_params")
    drawing = draw_figure("norms", [sized, unsized, other, unknown])
    for panel in drawing.figure.axes:
        joined = {c.lines[0].get_linestyle() for c in panel.containers}
        assert joined == ({"-"} if panel.get_title(loc="left") == "DINOv2" else {"None"})
    assert drawing.data.omitted == {"DINOv2 X": "its number of parameters is not known"}


def test_known_families_always_look_the_same_and_unknown_ones_differ():
    alone = look_of_families(["iBOT"])["iBOT"]
    together = look_of_families([*FAMILIES, "a", "b", "c"])
    assert together["iBOT"] == alone
    assert len(set(together.values())) == len(together)


UNDEFINED = Estimate(math.nan, None)


@pytest.mark.parametrize(
    ("figure", "readout"), [("restricted_cka", "attention"), ("residual_cka", "residual")]
)
def test_an_undefined_cka_is_put_down_to_what_it_comes_from(figure, readout):
    def refuse(model):
        with pytest.raises(NothingToDrawError) as caught:
            draw_figure(figure, [model])
        return str(caught.value).removeprefix("DINOv2 S: ")

    whole = hold_audit("DINOv2", "S", 22.1)
    ckas = whole.audit.last.cka[readout]
    model = whole.change_last({}, "cka")
    assert refuse(model) == f"its CKA is missing in the readout {readout}"
    biased = {part: replace(cka, unbiased=math.nan, ci95=None) for part, cka in ckas.items()}
    model = whole.change_last(biased, "cka", readout)
    assert refuse(model) == "its CKA is undefined without bias: too few images for how they differ"
    nothing = {part: replace(cka, biased=math.nan) for part, cka in biased.items()}
    model = whole.change_last(nothing, "cka", readout)
    same = "is the same for every image"
    assert refuse(model) == f"its CKA is undefined: what is kept of its output {same}"
    shares = dict.fromkeys(whole.audit.last.variance_share[readout], UNDEFINED)
    told = refuse(model.change_last(shares, "variance_share", readout))
    assert told == f"its CKA is undefined: its output {same}"
    told = refuse(model.change_last({}, "variance_share", readout))
    assert told == f"its CKA is undefined: its output, or what is kept of it, {same}"
    told = refuse(model.change(3, "data", "num_images"))
    assert told == "its CKA is undefined with fewer than 4 images"


@pytest.mark.parametrize("figure", [name for name in FIGURES if name != "high_norm_grid"])
def test_the_table_of_a_figure_holds_each_of_its_numbers(figure):
    models = [hold_audit("DINOv2 with registers", "L", 304.4, registers=4)]
    if figure == "one_shot":
        models = one_shots("DINOv2")
    elif figure == "sources_by_layer":
        models = [hold_layers({3: 0.95, 11: 0.2}, "DINOv2 with registers", registers=4)]
    elif figure in {"map_scores", "map_curves"}:
        models = [MadeResult.of(make_judgement(n=400))]
    elif figure == "remedies":
        models = [MadeResult.of(make_remedies(n=400))]
    data = draw_figure(figure, models).data
    head, *rows = data.list_rows()
    cells = [dict(zip(head, row, strict=True)) for row in rows]
    for row, point in zip(cells, data.points, strict=True):
        # A bound is no measurement: it stands under `high` alone.
        assert row.get("value", "") == ("" if point.number.is_bound else str(point.number.value))
        assert row["model"] == point.model.label
        assert row.get("term", "") == point.term
        assert float(row.get("low") or "nan") == pytest.approx(
            math.nan if point.number.low is None else point.number.low, nan_ok=True
        )
    of_some = {"one_shot": "404", "shares_by_depth": "50", "routes_by_block": "50"}
    assert {row["n"] for row in cells} == {of_some.get(figure, "400")}
