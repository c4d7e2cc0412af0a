"""The whole job on tiny models: numbers against plain code, and everything that can go wrong."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pictures import write_pictures
from vitscope import AuditConfig, AuditResult, ImageSet, audit, decompose, restrict
from vitscope.errors import (
    ImageReadError,
    ImbalanceError,
    NonFiniteError,
    ResultError,
    UsageError,
)
from vitscope.images import iter_batches
from vitscope.models.timm import make_timm_adapter
from vitscope.testing.tiny_timm import TINY_TIMM

NUM_PICTURES = 26
STATISTICS = {"mean", "std", "p05", "p50", "p95"}


def tiny_vit(name="dinov2_reg"):
    return make_timm_adapter(TINY_TIMM[name](), model_id=f"tiny/{name}")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), NUM_PICTURES)


@pytest.fixture(scope="module")
def result(pictures):
    return audit(tiny_vit(), pictures, AuditConfig(batch_size=8, dtype="float64"))


def flatten(tree, prefix=()):
    if isinstance(tree, dict):
        return {
            k: v for key, value in tree.items() for k, v in flatten(value, (*prefix, key)).items()
        }
    if isinstance(tree, list) and tree and all(isinstance(v, float) for v in tree):
        return {
            k: v for i, value in enumerate(tree) for k, v in flatten(value, (*prefix, i)).items()
        }
    return {prefix: tree}


def assert_same_numbers(a, b, tolerance):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path, value in a.items():
        if isinstance(value, float):
            assert b[path] == pytest.approx(value, rel=tolerance, abs=tolerance), path


NUMBERS = (
    "attention_mass",
    "patch_share",
    "contribution_norm",
    "cosine",
    "centred_cosine",
    "restricted_cosine",
    "share",
    "variance_share",
    "cka",
)


def numbers(result):
    summary = result.summary
    return {name: summary[name] for name in NUMBERS if name in summary}


def test_summary_has_every_promised_key(result):
    summary = result.summary
    groups = {"cls", "registers", "patches"}
    assert summary["schema_version"] == 1
    assert set(summary["model"]) >= {
        *("id", "family", "num_params", "depth", "embed_dim", "num_heads", "patch_size"),
        *("num_registers", "input_size", "grid", "dtype"),
    }
    assert summary["data"] == {"num_images": NUM_PICTURES, "num_failed": 0}
    assert summary["ledger"]["max_balance_error"] <= summary["ledger"]["tolerance"] == 1e-10
    assert set(summary["attention_mass"]) == groups
    assert set(summary["patch_share"]) == STATISTICS
    terms = {*groups, "skip", "bias"}
    assert set(summary["contribution_norm"]) == {*terms, "attention_total", "residual_total"}
    for kind in ("cosine", "centred_cosine"):
        assert set(summary[kind]["attention"]) == groups
        assert set(summary[kind]["residual"]) == {*groups, "skip", "non_patch"}
    assert set(summary["restricted_cosine"]["attention"]) == groups
    assert set(summary["share"]) == terms
    assert set(summary["variance_share"]["attention"]) == groups
    assert set(summary["variance_share"]["residual"]) == {*groups, "skip"}
    parts = dict.fromkeys(("values", "attention", "block", "embedding"), groups)
    parts["residual"] = {*groups, "skip", "non_patch"}
    assert {readout: set(part) for readout, part in summary["cka"].items()} == parts
    for part in summary["cka"]["residual"].values():
        assert set(part) >= {"biased", "unbiased", "ci95"}
        assert len(part["ci95"]) == 2
    assert set(summary["variance_share"]["residual"]["skip"]) == {"value", "ci95"}
    for path in (("cosine", "attention", "cls"), ("share", "bias")):
        found = summary
        for key in path:
            found = found[key]
        assert set(found) == STATISTICS
    assert summary["verdict"] in {"holds", "weakened", "broken", "borderline", "not enough images"}
    assert "layers" not in summary


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


def test_numbers_equal_plain_code_on_whole_matrices(result, pictures):
    vit = tiny_vit().to("cpu", torch.float64)
    batch = next(iter_batches(ImageSet.from_sources([pictures], vit.preprocessing), batch_size=99))
    ledger = decompose(vit, batch.pixels)
    readouts = restrict(vit, ledger)
    summary = result.summary
    rows = {name: term.numpy() for name, term in ledger.residual_terms.items()}
    r, t = ledger.residual_total.numpy(), ledger.attention_total.numpy()
    centred_r = r - r.mean(0)
    for name, term in rows.items():
        found = summary["cka"]["residual"][name]
        assert found["biased"] == pytest.approx(plain_cka(r, term, unbiased=False), abs=1e-9)
        assert found["unbiased"] == pytest.approx(plain_cka(r, term, unbiased=True), abs=1e-9)
        centred = term - term.mean(0)
        cosine = (centred * centred_r).sum(1) / (
            np.linalg.norm(centred, axis=1) * np.linalg.norm(centred_r, axis=1)
        )
        found = summary["centred_cosine"]["residual"][name]
        assert found["mean"] == pytest.approx(cosine.mean(), abs=1e-9)
        assert found["p95"] == pytest.approx(np.quantile(cosine, 0.95), abs=1e-9)
        if name != "non_patch":
            share = (centred * centred_r).sum() / (centred_r**2).sum()
            found = summary["variance_share"]["residual"][name]["value"]
            assert found == pytest.approx(share, abs=1e-9)
    for readout, parts in readouts.items():
        full = parts.pop("full").numpy()
        for name, part in parts.items():
            found = summary["cka"][readout][name]
            expected = plain_cka(full, part.numpy(), unbiased=True)
            assert found["unbiased"] == pytest.approx(expected, abs=1e-9), (readout, name)
    norms = np.linalg.norm(t, axis=1)
    assert summary["contribution_norm"]["attention_total"] == pytest.approx(
        {
            "mean": norms.mean(),
            "std": norms.std(),
            "p05": np.quantile(norms, 0.05),
            "p50": np.quantile(norms, 0.5),
            "p95": np.quantile(norms, 0.95),
        }
    )


def test_shares_sum_to_one(result):
    summary = result.summary
    assert sum(s["mean"] for s in summary["attention_mass"].values()) == pytest.approx(1)
    assert sum(s["mean"] for s in summary["share"].values()) == pytest.approx(1)
    for shares in summary["variance_share"].values():
        assert sum(s["value"] for s in shares.values()) == pytest.approx(1)


def test_table_has_one_row_a_picture(result, pictures):
    table = result.images
    assert table.num_rows == NUM_PICTURES
    assert table.column("path").to_pylist() == sorted(str(p) for p in pictures.iterdir())
    for name in (
        *("attention_mass_patches", "patch_share", "contribution_norm_skip", "share_bias"),
        *("cosine_residual_non_patch", "centred_cosine_attention_patches", "balance_error"),
    ):
        assert np.isfinite(table.column(name).to_numpy()).all(), name


@pytest.mark.parametrize("config", [{"batch_size": 1}, {"batch_size": 7}, {"num_workers": 2}])
def test_batches_and_workers_change_nothing(result, pictures, config):
    other = audit(tiny_vit(), pictures, AuditConfig(**{"dtype": "float64", **config}))
    assert_same_numbers(numbers(result), numbers(other), 1e-9)


def test_merging_disjoint_results_equals_their_union(result, pictures, tmp_path):
    names = sorted(pictures.iterdir())
    config = AuditConfig(batch_size=4, dtype="float64")
    parts = [audit(tiny_vit(), part, config) for part in (names[15:], names[:9], names[9:15])]
    merged = parts[0].merge(*parts[1:]).save(tmp_path / "merged")
    merged = AuditResult.load(merged.folder)
    assert_same_numbers(numbers(result), numbers(merged), 1e-9)
    assert merged.summary["data"] == result.summary["data"]
    columns = sorted(result.images.column_names)
    assert sorted(merged.images.column_names) == columns
    a, b = (r.images.sort_by("path").select(columns) for r in (result, merged))
    for name in columns:
        if name.startswith("centred"):
            np.testing.assert_allclose(a[name].to_numpy(), b[name].to_numpy(), atol=1e-9)
    with pytest.raises(ResultError, match="6 of its pictures are in the other"):
        merged.merge(parts[2])
    assert len(merged.provenance["merged_from"]) == 3


def test_results_of_different_settings_do_not_merge(result, tmp_path):
    other = audit(tiny_vit(), write_pictures(tmp_path, 4, start=100), AuditConfig())
    with pytest.raises(ResultError, match="cannot be merged: its model differs"):
        result.merge(other)
    other = audit(
        tiny_vit(), tmp_path, AuditConfig(dtype="float64", renormalize=True, batch_size=2)
    )
    with pytest.raises(ResultError, match="its renormalize differs"):
        result.merge(other)


def test_dropping_features_leaves_out_the_centred_numbers_alone(result, pictures):
    dropped = audit(tiny_vit(), pictures, AuditConfig(dtype="float64", features="drop"))
    assert not (dropped.folder / "features").exists()
    expected = numbers(result)
    del expected["centred_cosine"]
    assert_same_numbers(expected, numbers(dropped), 1e-9)
    assert not any(name.startswith("centred") for name in dropped.images.column_names)


def test_sums_alone_give_the_estimates_back(result):
    sums = result.read_sums()[1]
    found = sums.estimate_cka("residual", "patches")
    saved = result.summary["cka"]["residual"]["patches"]
    assert [found.biased, found.unbiased, *found.ci95] == [
        saved["biased"],
        saved["unbiased"],
        *saved["ci95"],
    ]


def test_features_alone_give_the_row_back(result):
    from safetensors.torch import load_file

    (shard,) = sorted((result.folder / "features" / "001").iterdir())
    rows = load_file(shard)
    t = sum(rows[f"term/{g}"] for g in ("cls", "registers", "patches")) + rows["bias"]
    norms = result.images.column("contribution_norm_attention_total").to_numpy()
    np.testing.assert_allclose(t.norm(dim=1).numpy(), norms, rtol=1e-12)
    assert rows["attention_mass"].shape == (NUM_PICTURES, 4, 3)


def test_all_layers_are_listed_and_the_last_is_the_headline(result, pictures):
    found = audit(tiny_vit(), pictures, AuditConfig(dtype="float64", layers="all"))
    summary = found.summary
    assert set(summary["layers"]) == {"0", "1"}
    assert_same_numbers(numbers(result), numbers(found), 1e-9)
    assert_same_numbers({name: summary["layers"]["1"][name] for name in NUMBERS}, numbers(found), 0)
    assert "embedding" not in summary["layers"]["0"]["cka"]
    # Every picture enters block 0 with the same [CLS] token: nothing can depend on it.
    assert summary["layers"]["0"]["cka"]["residual"]["skip"]["unbiased"] is None
    assert summary["layers"]["0"]["centred_cosine"]["residual"]["skip"] is None
    assert pq.read_table(found.folder / "layers" / "000.parquet").num_rows == NUM_PICTURES


def test_renormalised_outputs_differ_and_terms_do_not(result, pictures):
    found = audit(tiny_vit(), pictures, AuditConfig(dtype="float64", renormalize=True)).summary
    plain = result.summary
    for readout in ("values", "attention", "block", "embedding"):
        assert found["cka"][readout]["patches"] != plain["cka"][readout]["patches"]
    for name in ("share", "variance_share"):
        assert_same_numbers(found[name], plain[name], 1e-9)
    assert_same_numbers(found["cka"]["residual"], plain["cka"]["residual"], 1e-9)


def test_attention_pooling_has_neither_skip_nor_door(pictures):
    summary = audit(tiny_vit("siglip"), pictures, AuditConfig(dtype="float64")).summary
    assert set(summary["attention_mass"]) == {"patches"}
    assert "skip" not in summary["contribution_norm"]
    assert summary["cka"]["residual"]["patches"]["unbiased"] == pytest.approx(1)
    assert summary["verdict"] == "holds"
    assert summary["door"] is None
    assert summary["model"]["global_feature"] == "attention pooling"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_lower_precision_balances_within_its_tolerance(pictures, dtype):
    summary = audit(tiny_vit(), pictures, AuditConfig(dtype=dtype)).summary
    assert 0 < summary["ledger"]["max_balance_error"] <= summary["ledger"]["tolerance"]
    assert summary["ledger"]["tolerance"] == (1e-4 if dtype == "float32" else 3e-2)


def test_unreadable_pictures_are_skipped_counted_and_listed(pictures, tmp_path):
    folder = write_pictures(tmp_path / "mixed", 5)
    (folder / "0002.png").write_bytes(b"not a picture")
    (folder / "<b>evil,\n.jpg").write_bytes(b"")
    found = audit(tiny_vit(), folder, out=tmp_path / "out")
    assert found.summary["data"] == {"num_images": 4, "num_failed": 2}
    assert {path.rsplit("/", 1)[1] for path, _ in found.failures} == {"0002.png", "<b>evil,\n.jpg"}
    assert found.images.num_rows == 4


def test_nothing_readable_is_a_failure_that_leaves_nothing(tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"x")
    with pytest.raises(ImageReadError, match="none of the 1 pictures"):
        audit(tiny_vit(), folder, out=tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["bad"]


def test_nan_is_located_in_layer_and_picture(pictures):
    vit = tiny_vit()

    def poison(module, args, output):
        output = output.clone()
        output[2] = float("nan")
        return output

    vit.module.blocks[0].register_forward_hook(poison)
    third = sorted(pictures.iterdir())[2].name
    with pytest.raises(NonFiniteError, match=rf"layer 0, for .*{third}"):
        audit(vit, pictures)


def test_an_altered_model_does_not_balance(pictures, tmp_path):
    vit = tiny_vit()
    vit.module.blocks[1].attn.proj.register_forward_hook(lambda _, __, out: out * 1.001)
    with pytest.raises(ImbalanceError, match=r"layer 1 does not balance.*likely cause"):
        audit(vit, pictures, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_altered_mlp_half_is_noticed(pictures):
    vit = tiny_vit()
    vit.module.blocks[1].register_forward_hook(lambda _, __, out: out + 1)
    with pytest.raises(ImbalanceError, match=r"block readout of layer 1"):
        audit(vit, pictures)


def test_an_altered_head_is_noticed(pictures):
    vit = tiny_vit()
    run = vit.run
    object.__setattr__(vit, "run", lambda pixels: run(pixels) + 1)
    with pytest.raises(ImbalanceError, match=r"embedding readout of layer 1"):
        audit(vit, pictures)


def test_an_interrupted_run_leaves_nothing(pictures, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(tiny_vit(), pictures, out=tmp_path / "out", on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_any_size_that_fits(pictures):
    summary = audit(tiny_vit(), pictures, AuditConfig(size=(16, 40))).summary
    assert summary["model"]["input_size"] == [16, 40]
    assert summary["model"]["grid"] == [2, 5]
    with pytest.raises(UsageError, match="33 px does not fit the patch size of 8"):
        audit(tiny_vit(), pictures, AuditConfig(size=(33, 40)))


@pytest.mark.parametrize("layers", ["2", "-1", "first", "0,9", ""])
def test_unknown_layers_are_refused(pictures, layers):
    with pytest.raises(UsageError, match="layer"):
        audit(tiny_vit(), pictures, AuditConfig(layers=layers))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_pictures_say_so_and_hold_no_nan(tmp_path, count):
    folder = write_pictures(tmp_path / "few", count)
    found = audit(tiny_vit(), folder, out=tmp_path / "out")
    text = (found.folder / "summary.json").read_text()
    summary = json.loads(text, parse_constant=pytest.fail)
    assert summary["verdict"] == "not enough images"
    assert summary["data"]["num_images"] == count


def test_damaged_results_say_so(result, tmp_path):
    copy = result.save(tmp_path / "copy")
    (copy.folder / "sums.safetensors").write_bytes(b"x")
    with pytest.raises(ResultError, match=r"sums.safetensors cannot be read"):
        copy.read_sums()
    summary = copy.summary | {"schema_version": 99}
    (copy.folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ResultError, match="written with schema 99"):
        AuditResult.load(copy.folder)
    with pytest.raises(ResultError, match="is not a vitscope result"):
        AuditResult.load(tmp_path)


def test_progress_counts_every_picture(pictures):
    seen = []
    audit(
        tiny_vit(),
        pictures,
        AuditConfig(batch_size=10),
        on_progress=lambda *counts: seen.append(counts),
    )
    assert seen == [(10, 26), (20, 26), (26, 26)]


def test_provenance_names_settings_versions_and_weights(result):
    provenance = result.provenance
    assert provenance["config"]["batch_size"] == 8
    assert provenance["versions"]["torch"] == torch.__version__
    assert len(provenance["weights_hash"]) == 32
