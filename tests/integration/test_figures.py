"""Figures of results that were really computed: tiny models, audited, classified, explained."""

import json

import pytest
import torch

from audits import tiny_vit
from blank_figures import blank_figures, words
from images import write_images
from vitscope import AuditConfig, AuditResult, OneShotConfig, audit, explain, one_shot
from vitscope.adapters.timm import make_timm_adapter
from vitscope.cli import main
from vitscope.figures import draw_figure, draw_figures
from vitscope.figures.saved import load_results
from vitscope.testing.tiny_timm import TINY_TIMM

CONFIG = AuditConfig(batch_size=16, dtype="float64")


@pytest.fixture(scope="module")
def results(tmp_path_factory, images):
    """Every kind of result, of models with registers, without, and without [CLS]."""
    root = tmp_path_factory.mktemp("results")
    for name in ("dinov2_reg", "deit_distilled", "siglip"):
        audit(tiny_vit(name), images, CONFIG, out=root / "audits" / name)
    explain(tiny_vit(), [images / "0000.png"], out=root / "explained")
    classes = root.parent / f"{root.name}-classes"
    for number in range(6):
        write_images(classes / str(number), 2, start=2 * number)
    one_shot(tiny_vit(), classes, OneShotConfig(draws=3), out=root / "one-shot")
    return root


def test_every_figure_is_drawn_or_refused_in_words(results, tmp_path):
    found = draw_figures([results], tmp_path / "out", formats=("svg",))
    names = {figure.name.split("__")[0] for figure in found.drawn}
    assert names >= {
        *("fig2a_patch_share", "fig2b_anatomy", "fig3a_restricted_cka", "fig4_maps_000"),
        *("fig3b_one_shot_nearest_top1", "fig3b_one_shot_nearest_top5"),
        *("fig7_norms", "fig8_residual_cka", "fig9_layer_similarity", "variance_share"),
        *("gram_ledger", "directions", "covariates", "interdependence"),
        *("high_norm_fraction", "high_norm_layers"),
    }
    assert all(path.stat().st_size > 5000 for path in found.files)
    assert found.skipped["fig2b_anatomy__tiny-siglip"] == "tiny/siglip: it has no anatomy of tokens"
    assert "a single source" in found.skipped["gram_ledger__tiny-siglip"]
    by_name = {figure.name: figure for figure in found.drawn}
    assert by_name["fig2a_patch_share"].omitted == {
        "tiny/deit_distilled": "no registers",
        "tiny/siglip": "no registers",
    }
    assert "no [CLS]" in by_name["fig9_layer_similarity"].omitted["tiny/siglip"]
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    hashes = {r["weights_hash"] for figure in index["figures"] for r in figure["results"]}
    assert hashes >= {
        AuditResult.load(folder).manifest.weights_hash for folder in (results / "audits").iterdir()
    }


def test_the_grid_shows_where_high_norm_tokens_sit(images, tmp_path):
    module = TINY_TIMM["dinov2"]()
    with torch.no_grad():
        module.pos_embed[:, 6] *= 300  # after [CLS], the place at row 1, column 1 of 4 x 4
    vit = make_timm_adapter(module, model_id="tiny/outliers")
    config = AuditConfig(batch_size=16, dtype="float64", size=32)
    result = audit(vit, images, config, out=tmp_path / "outliers")
    (saved,) = load_results([tmp_path / "outliers"])
    panel = draw_figure("high_norm_grid", [saved]).figure.axes[0]
    grid = panel.images[0].get_array()
    assert grid.shape == result.summary.model.grid
    assert grid[1, 1] == pytest.approx(100)
    assert grid.sum() == pytest.approx(100)
    assert result.summary.high_norm_tokens[result.summary.layer].images_fraction == 1
    anatomy = draw_figure("anatomy", [saved]).figure
    assert "100.0 % of the images have a high-norm patch." in words(anatomy)
    assert "highest patch (analysed)" in words(anatomy)


def test_few_images_leave_no_number_that_is_none(images, tmp_path, capsys):
    audit(tiny_vit(), [images / "0000.png"], CONFIG, out=tmp_path / "one")
    with blank_figures():
        code = main(["figures", str(tmp_path / "one"), "--out", str(tmp_path / "out")])
    told = " ".join(capsys.readouterr().out.split())
    assert code == 0
    assert f"not drawn: {tmp_path / 'out' / 'index.md'} says why" in told
    page = (tmp_path / "out" / "index.md").read_text(encoding="utf-8")
    assert "- fig3a_restricted_cka: " in page
    assert "its CKA is undefined with fewer than 4 images" in page
