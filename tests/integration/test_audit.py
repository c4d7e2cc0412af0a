"""The whole job on tiny models: numbers against plain code, and everything that can go wrong."""

import gc
import math
from dataclasses import asdict
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from audits import (
    NUM_IMAGES,
    assert_same_numbers,
    numbers,
    tiny_vit,
)
from images import write_images
from vitscope import AuditConfig, AuditResult, ImageSet, audit, decompose, restrict
from vitscope.errors import (
    ResultError,
    UsageError,
)
from vitscope.images.image_set import iter_batches
from vitscope.results.schema import DataSummary, Settings
from vitscope.results.verdict import Status


def test_summary_has_every_promised_key(result):
    summary = result.summary
    groups = {"cls", "registers", "patches"}
    assert summary.data == DataSummary(num_images=NUM_IMAGES, num_failed=0)
    assert summary.ledger.max_balance_error <= summary.ledger.tolerance == 1e-10
    assert set(summary.last.attention_mass) == groups
    assert summary.last.patch_share.n == NUM_IMAGES
    terms = {*groups, "skip", "bias"}
    assert set(summary.last.contribution_norm) == {*terms, "attention_total", "residual_total"}
    for kind in ("cosine", "centred_cosine"):
        assert set(getattr(summary.last, kind)["attention"]) == groups
        assert set(getattr(summary.last, kind)["residual"]) == {*groups, "skip", "non_patch"}
    assert set(summary.last.restricted_cosine["attention"]) == groups
    assert set(summary.last.share) == terms
    assert set(summary.last.centred_share) == {*groups, "skip"}
    assert set(summary.last.variance_share["attention"]) == groups
    assert set(summary.last.variance_share["residual"]) == {*groups, "skip"}
    parts = dict.fromkeys(("values", "attention", "block", "embedding"), groups)
    parts["residual"] = {*groups, "skip", "non_patch"}
    assert {readout: set(part) for readout, part in summary.last.cka.items()} == parts
    for part in summary.last.cka["residual"].values():
        assert len(part.ci95) == 2
    assert summary.last.verdict.status in get_args(Status)
    assert len(summary.layers) == 1


def plain_cka(x, y, *, unbiased):
    x, y = x - x.mean(0), y - y.mean(0)
    n = len(x)

    def hsic(a, b):
        k, m = a @ a.T, b @ b.T
        if not unbiased:
            return (k * m).sum()
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        cross = (k @ m).sum()
        return (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)

    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


def test_numbers_equal_plain_code_on_whole_matrices(result, images):
    vit = tiny_vit().to("cpu", torch.float64)
    batch = next(iter_batches(ImageSet.from_sources([images], vit.preprocessing), batch_size=99))
    ledger = decompose(vit, batch.pixels)
    readouts = restrict(vit, ledger)
    summary = result.summary
    rows = {name: term.numpy() for name, term in ledger.residual_terms.items()}
    r, t = ledger.residual_total.numpy(), ledger.attention_total.numpy()
    centred_r = r - r.mean(0)
    for name, term in rows.items():
        found = summary.last.cka["residual"][name]
        assert found.biased == pytest.approx(plain_cka(r, term, unbiased=False), abs=1e-9)
        assert found.unbiased == pytest.approx(plain_cka(r, term, unbiased=True), abs=1e-9)
        centred = term - term.mean(0)
        cosine = (centred * centred_r).sum(1) / (
            np.linalg.norm(centred, axis=1) * np.linalg.norm(centred_r, axis=1)
        )
        found = summary.last.centred_cosine["residual"][name]
        assert found.mean == pytest.approx(cosine.mean(), abs=1e-9)
        assert found.p95 == pytest.approx(np.quantile(cosine, 0.95), abs=1e-9)
        if name != "non_patch":
            share = (centred * centred_r).sum() / (centred_r**2).sum()
            found = summary.last.variance_share["residual"][name].value
            assert found == pytest.approx(share, abs=1e-9)
    for readout, parts in readouts.items():
        full = parts.pop("full").numpy()
        for name, part in parts.items():
            found = summary.last.cka[readout][name]
            expected = plain_cka(full, part.numpy(), unbiased=True)
            assert found.unbiased == pytest.approx(expected, abs=1e-9), (readout, name)
    norms = np.linalg.norm(t, axis=1)
    assert asdict(summary.last.contribution_norm["attention_total"]) == pytest.approx(
        {
            "mean": norms.mean(),
            "std": norms.std(),
            "n": len(norms),
            "p05": np.quantile(norms, 0.05),
            "p50": np.quantile(norms, 0.5),
            "p95": np.quantile(norms, 0.95),
        }
    )


def test_shares_sum_to_one(result):
    summary = result.summary
    assert sum(s.mean for s in summary.last.attention_mass.values()) == pytest.approx(1)
    for name in ("share", "centred_share"):
        assert sum(s.mean for s in getattr(summary.last, name).values()) == pytest.approx(1)
    for pairs in summary.last.gram_ledger.values():
        shares = [share for row in pairs.values() for share in row.values()]
        for estimator in ("biased", "unbiased"):
            assert sum(getattr(share, estimator) for share in shares) == pytest.approx(1)
    for shares in summary.last.variance_share.values():
        assert sum(s.value for s in shares.values()) == pytest.approx(1)


def test_table_has_one_row_a_image(result, images):
    table = result.images
    assert table.num_rows == NUM_IMAGES
    assert table.column("path").to_pylist() == sorted(str(p) for p in images.iterdir())
    for name in (
        *("attention_mass_patches", "patch_share", "contribution_norm_skip", "share_bias"),
        *("cosine_residual_non_patch", "centred_cosine_attention_patches", "balance_error"),
    ):
        assert np.isfinite(table.column(name).to_numpy()).all(), name


@pytest.mark.parametrize("config", [{"batch_size": 1}, {"batch_size": 7}, {"num_workers": 2}])
def test_batches_and_workers_change_nothing(result, images, config):
    other = audit(tiny_vit(), images, AuditConfig(verified=1, **{"dtype": "float64", **config}))
    assert_same_numbers(numbers(result), numbers(other), 1e-9)


def test_merging_disjoint_results_equals_their_union(result, images, tmp_path):
    names = sorted(images.iterdir())
    config = AuditConfig(verified=1, batch_size=4, dtype="float64")
    parts = [audit(tiny_vit(), part, config) for part in (names[15:], names[:9], names[9:15])]
    merged = parts[0].merge(*parts[1:]).save(tmp_path / "merged")
    merged = AuditResult.load(merged.folder)
    assert_same_numbers(numbers(result), numbers(merged), 1e-9)
    assert merged.summary.data == result.summary.data
    columns = sorted(result.images.column_names)
    assert sorted(merged.images.column_names) == columns
    a, b = (r.images.sort_by("path").select(columns) for r in (result, merged))
    for name in columns:
        if name.startswith("centred"):
            np.testing.assert_allclose(a[name].to_numpy(), b[name].to_numpy(), atol=1e-9)
    with pytest.raises(ResultError, match="6 of its images are repeated or also in another result"):
        merged.merge(parts[2])
    assert len(merged.provenance["merged_from"]) == 3
    assert merged.name == result.name == f"{images.name}, {result.provenance['finished'][:10]}"


def test_results_of_different_settings_do_not_merge(result, tmp_path):
    other = audit(tiny_vit(), write_images(tmp_path, 4, start=100), AuditConfig(verified=1))
    with pytest.raises(ResultError, match="cannot be merged: its model's dtype differs"):
        result.merge(other)
    other = audit(
        tiny_vit(),
        tmp_path,
        AuditConfig(verified=1, dtype="float64", renormalize=True, batch_size=2),
    )
    with pytest.raises(ResultError, match="its renormalize differs"):
        result.merge(other)


def test_cls_terms_that_give_the_same_groups_do_not_merge(result, tmp_path):
    names = sorted(write_images(tmp_path, 6, start=300).iterdir())
    registers, patches, own = (
        audit(tiny_vit(), names[i : i + 2], AuditConfig(verified=1, dtype="float64", cls_term=term))
        for i, term in zip((0, 2, 4), ("registers", "patches", "own"), strict=True)
    )
    assert registers.manifest.groups == patches.manifest.groups == ("registers", "patches")
    with pytest.raises(ResultError, match=r"its cls_term differs \('patches' against 'reg"):
        registers.merge(patches)
    for ours, theirs in ((own, registers), (registers, own), (own, patches), (result, patches)):
        with pytest.raises(ResultError, match=r"cannot be merged: its (groups|cls_term) differs"):
            ours.merge(theirs)
    assert result.merge(own).manifest.cls_term == "own"


def test_the_summary_tells_the_settings_that_change_the_numbers(result, images):
    assert result.summary.settings == Settings(renormalize=False, cls_term="own")
    config = AuditConfig(verified=1, dtype="float64", cls_term="registers", renormalize=True)
    found = audit(tiny_vit(), sorted(images.iterdir())[:3], config).summary.settings
    assert found == Settings(renormalize=True, cls_term="registers")


def test_dropping_features_leaves_out_the_centred_numbers_alone(result, images):
    dropped = audit(tiny_vit(), images, AuditConfig(verified=1, dtype="float64", features="drop"))
    assert not (dropped.folder / "features").exists()
    expected, found = numbers(result), numbers(dropped)
    for name in ("centred_cosine", "centred_share"):
        assert expected.pop(name)
        assert not found.pop(name)
    # What goes together is told of the raw shares then.
    assert expected.pop("interdependence")["shares"] == "centred_share"
    assert found.pop("interdependence")["shares"] == "share"
    for kind in ("correlations", "regressions"):
        targets = expected["covariates"][kind]
        expected["covariates"][kind] = {k: v for k, v in targets.items() if "centred" not in k}
        assert len(expected["covariates"][kind]) == len(targets) - 3
    assert_same_numbers(expected, found, 1e-9)
    assert not any(name.startswith("centred") for name in dropped.images.column_names)


def test_sums_alone_give_the_estimates_back(result):
    sums = result.read_sums()[1]
    found = sums.estimate_cka("residual", "patches")
    saved = result.summary.last.cka["residual"]["patches"]
    assert found == saved


def test_sums_outlive_a_temporary_result(images):
    sums = audit(tiny_vit(), images, AuditConfig(verified=1, dtype="float64")).read_sums()[1]
    gc.collect()
    assert np.isfinite(sums.estimate_cka("residual", "patches").unbiased)


def test_a_model_reached_by_another_id_merges(result, tmp_path):
    vit = tiny_vit().named("tiny/twin", "elsewhere")
    folder = write_images(tmp_path, 3, start=200)
    merged = result.merge(audit(vit, folder, AuditConfig(verified=1, dtype="float64")))
    assert merged.summary.data.num_images == NUM_IMAGES + 3


def test_features_alone_give_the_row_back(result):
    from safetensors.torch import load_file

    (shard,) = sorted((result.folder / "features" / "001").iterdir())
    rows = load_file(shard)
    t = sum(rows[f"term/{g}"] for g in ("cls", "registers", "patches")) + rows["bias"]
    norms = result.images.column("contribution_norm_attention_total").to_numpy()
    np.testing.assert_allclose(t.norm(dim=1).numpy(), norms, rtol=1e-12)
    assert rows["attention_mass"].shape == (NUM_IMAGES, 4, 3)


def test_all_layers_are_listed_and_the_last_is_the_headline(result, images):
    found = audit(tiny_vit(), images, AuditConfig(verified=1, dtype="float64", layers="all"))
    summary = found.summary
    assert [layer.index for layer in summary.layers] == [0, 1]
    expected = numbers(result)
    # Over the layers there is something to say only where several were asked for.
    assert expected["interdependence"].pop("over_layers") is None
    assert summary.interdependence.over_layers.n == 2
    found_numbers = numbers(found)
    del found_numbers["interdependence"]["over_layers"]
    assert_same_numbers(expected, found_numbers, 1e-9)
    assert "embedding" not in summary.layers[0].cka
    # Every image enters block 0 with the same [CLS] token: nothing can depend on it.
    assert math.isnan(summary.layers[0].cka["residual"]["skip"].unbiased)
    assert summary.layers[0].centred_cosine["residual"]["skip"].n == 0
    assert pq.read_table(found.folder / "layers" / "000.parquet").num_rows == NUM_IMAGES


def test_negative_layers_count_from_the_last_and_are_kept_from_the_first(images):
    vit = tiny_vit()
    assert (vit.select_layer(-1), vit.select_layer(np.int64(-2))) == (1, 0)
    for layer in (-99, -3, 2):
        told = f"tiny/dinov2_reg has no layer {layer} to analyse: choose from 0 to 1, or -2 to -1"
        with pytest.raises(UsageError, match=f"^{told}$"):
            vit.select_layers([0, layer])
    with pytest.raises(UsageError, match=r"^layer was given as NoneType: .* such as 1, or -1 for"):
        vit.select_layers([None])
    result = audit(vit, images, layers=[-2], limit=2, gallery=0)
    assert [layer.index for layer in result.summary.layers] == [0, 1]
    provenance = result.provenance
    assert provenance["config"]["layers"] == [0, 1]
    # What decides whether a run is resumed.
    assert provenance["plan"]["result"]["layers"] == [0, 1]


def test_renormalised_outputs_differ_and_terms_do_not(result, images):
    config = AuditConfig(verified=1, dtype="float64", renormalize=True)
    found, plain = audit(tiny_vit(), images, config).summary.last, result.summary.last
    for readout in ("values", "attention", "block", "embedding"):
        assert found.cka[readout]["patches"] != plain.cka[readout]["patches"]
    for name in ("share", "variance_share", "cosine", "contribution_norm"):
        assert_same_numbers(getattr(found, name), getattr(plain, name), 1e-9)
    assert_same_numbers(found.cka["residual"], plain.cka["residual"], 1e-9)


@pytest.mark.parametrize("renormalize", [False, True])
def test_the_restricted_cosine_is_of_the_restricted_output(images, renormalize):
    """cos(c_g + bias, t), with c_g from the attention that is left where it is renormalised."""
    vit = tiny_vit()
    config = AuditConfig(verified=1, dtype="float64", renormalize=renormalize)
    found = audit(vit, images, config).summary.last.restricted_cosine["attention"]
    image_set = ImageSet.from_sources(images, vit.preprocessing)
    (batch,) = iter_batches(image_set, batch_size=len(image_set), num_workers=0)
    vit.to("cpu", torch.float64)
    ledger = decompose(vit, batch.pixels.double())
    tail, t = ledger.tail, ledger.attention_total
    weight = tail.weight.detach().double()
    scale = 1.0 if tail.scale is None else tail.scale.detach().double()
    for i, group in enumerate(ledger.groups):
        mass = ledger.attention_mass[:, :, i : i + 1]
        values = ledger.group_values[:, :, i] * (1.0 if renormalize else mass)
        kept = (values.flatten(1) @ weight.mT) * scale + ledger.bias
        cosines = torch.nn.functional.cosine_similarity(kept, t, dim=1)
        assert found[group].mean == pytest.approx(float(cosines.mean()), abs=1e-9)


def test_attention_pooling_has_neither_skip_nor_other_source(images):
    summary = audit(tiny_vit("siglip"), images, AuditConfig(verified=1, dtype="float64")).summary
    assert set(summary.last.attention_mass) == {"patches"}
    assert "skip" not in summary.last.contribution_norm
    assert summary.last.cka["residual"]["patches"].unbiased == pytest.approx(1)
    assert summary.last.verdict.status == "holds"
    assert summary.last.verdict.main_other_source is None
    assert summary.model.global_feature == "attention pooling"
