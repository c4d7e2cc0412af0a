"""A model against edits of it: paired differences, from the definitions, and what they say."""

import json
import shutil
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from audits import tiny_vit
from images import write_images
from reference_jackknife import busing_interval
from reference_shares import cka, read_rows, share, sum_terms
from vitscope import AuditConfig, AuditResult, audit, explain
from vitscope.errors import ImbalanceError, ResultError, UnsupportedModelError, UsageError
from vitscope.images.image_set import iter_batches
from vitscope.metrics.jackknife import Estimate, block_of
from vitscope.remedies.remedy import Remedy
from vitscope.results.remedy_comparison import compare_audits, compare_maps, measure_drift
from vitscope.results.remedy_result import RemedyResult
from vitscope.results.remedy_text import tell_remedy
from vitscope.results.schema_remedies import MapChange
from vitscope.runs import remedy_loop
from vitscope.runs.model_run import make_image_set
from vitscope.runs.remedy_fit import edited
from vitscope.runs.remedy_loop import compare_remedies

REMEDIES = ["skip:scale=1.0", "zero", "position-mean:layers=all"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("photos"), 26)


@pytest.fixture(scope="module")
def compared(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    return compare_remedies(
        tiny_vit(), photos, REMEDIES, out=out, gallery=0, dtype="float64", num_workers=0
    )


def test_differences_are_those_of_the_definition_left_out_block_by_block(compared):
    one = compared.summary.remedies[1]
    audits = [compared.read_audit(), compared.read_audit(one.edit)]
    ids = audits[0].images["image_id"].to_pylist()
    blocks, places = np.array([block_of(name) for name in ids]), np.arange(len(ids))
    before, after = map(read_rows, audits)

    def of_cka(chosen):
        first, second = (
            cka(rows["term/patches"][chosen], sum_terms(rows)[chosen]) for rows in (before, after)
        )
        return second - first

    def of_share(chosen):
        first, second = (
            share(rows["term/patches"][chosen], sum_terms(rows)[chosen]) for rows in (before, after)
        )
        return second - first

    masses = [result.images["attention_mass_registers"].to_numpy() for result in audits]

    def of_mass(chosen):
        return (masses[1] - masses[0])[chosen].mean()

    for name, statistic in (
        ("cka_patches", of_cka),
        ("variance_share_patches", of_share),
        ("attention_registers", of_mass),
    ):
        found = one.changes[name].difference
        # float64 sums in another order, over an estimate that divides by small differences
        assert found.value == pytest.approx(statistic(places), abs=1e-9), name
        assert found.ci95 == pytest.approx(busing_interval(statistic, places, blocks), abs=1e-8)


def test_drift_is_that_of_the_definition(compared):
    one = compared.summary.remedies[2]
    f, g = (
        read_rows(result)["embedding/full"]
        for result in (compared.read_audit(), compared.read_audit(one.edit))
    )
    cosines = (f * g).sum(axis=1) / (np.linalg.norm(f, axis=1) * np.linalg.norm(g, axis=1))
    assert one.drift.cosine.value == pytest.approx(cosines.mean(), abs=1e-12)
    assert one.drift.cka.unbiased == pytest.approx(cka(f, g), abs=1e-9)
    shared = []
    for i in range(len(f)):
        near = []
        for rows in (f, g):
            unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            order = [j for j in np.argsort(-(unit @ unit[i])) if j != i]
            near.append({*order[:10]})
        shared.append(len(near[0] & near[1]) / 10)
    assert one.drift.shared_neighbours.value == pytest.approx(np.mean(shared), abs=1e-12)


MOVED = REMEDIES[2]


@pytest.fixture(scope="module")
def watched(photos):
    """Of the original and of an edit: patch norms at the input of each block, and attention."""
    found = []
    for edits in ([], [MOVED]):
        with edited(tiny_vit(), edits, photos, original_config()) as vit:
            streams, normed = [], []
            blocks = vit.module.blocks
            for block in blocks:
                block.register_forward_pre_hook(lambda _, args, to=streams: to.append(args[0]))
            blocks[-1].norm1.register_forward_hook(lambda *args, to=normed: to.append(args[-1]))
            vit.to("cpu", torch.float64)
            images = make_image_set(vit, photos, original_config())
            (batch,) = iter_batches(images, batch_size=26, num_workers=0)
            vit.run(batch.pixels.double())
            norms = torch.stack(streams, dim=1)[:, :, 5:].norm(dim=-1).detach().numpy()
            found.append((norms, attend_plainly(blocks[-1].attn, normed[0].detach())))
    return found


def attend_plainly(attention, tokens):
    """Mean over heads of the attention of [CLS] on each patch, image by image."""
    weight, bias = (one.detach() for one in attention.qkv.parameters())
    rows = []
    for image in tokens:
        query, keys, _ = torch.chunk(image @ weight.T + bias, 3, dim=-1)
        heads = zip(query[0].split(8), keys.split(8, dim=-1), strict=True)
        of_heads = [torch.softmax(k @ q / 8**0.5, dim=0) for q, k in heads]
        rows.append(sum(of_heads)[5:].numpy() / len(of_heads))
    return rows


def rank_plainly(values):
    return np.array([sum(values < v) + (sum(values == v) + 1) / 2 for v in values])


def test_attention_and_norms_are_those_of_a_plain_forward(compared, watched):
    (one,) = [one for one in compared.summary.remedies if one.edit == MOVED]
    ids = compared.read_audit().images["image_id"].to_pylist()
    blocks, places = np.array([block_of(name) for name in ids]), np.arange(len(ids))

    def check(found, values):
        def mean(chosen):
            return values[chosen].mean()

        assert found.value == pytest.approx(mean(places), abs=1e-10)
        assert found.ci95 == pytest.approx(busing_interval(mean, places, blocks), abs=1e-9)

    def measure(norms, attention):
        parts = [row / row.sum() for row in attention]
        ratios = [sorted(of[1])[-1] / sorted(of[1])[7] for of in norms]  # of 16 the lower middle
        return {
            "largest_patch_attention": np.array([max(row) for row in attention]),
            "attention_entropy": np.array([-(p @ np.log(p)) / np.log(16) for p in parts]),
            "norm_ratio": np.array(ratios),
        }

    before, after = (measure(*of) for of in watched)
    assert all(abs(before[name] - after[name]).max() > 1e-6 for name in before)
    for name, values in before.items():
        change = one.changes[name]
        check(change.before, values)
        check(change.after, after[name])
        check(change.difference, after[name] - values)
    ranks = (map(rank_plainly, attention) for _, attention in watched)
    pairs = zip(*ranks, strict=True)
    check(one.maps.correlation, np.array([np.corrcoef(*pair)[0, 1] for pair in pairs]))


def test_high_norm_patches_are_counted_at_each_depth_by_the_originals_thresholds(compared, watched):
    before, after = compared.read_audit(), compared.read_audit(MOVED)
    norms = [of for of, _ in watched]
    depths = range(2)
    thresholds = [2 ** (np.floor(16 * np.log2(np.median(norms[0][:, d]))) / 16) for d in depths]
    known, (*_, last) = before.summary.high_norm_tokens[:2], before.summary.high_norm_tokens
    planted = [
        replace(each, threshold=threshold, fraction=0.1 + depth)
        for depth, (each, threshold) in enumerate(zip(known, thresholds, strict=True))
    ]
    before.__dict__["summary"] = replace(before.summary, high_norm_tokens=(*planted, last))
    changes = compare_audits(before, after)
    ids = before.images["image_id"].to_pylist()
    blocks, places = np.array([block_of(name) for name in ids]), np.arange(len(ids))
    for depth, name in ((0, "high_norm_patches_00"), (1, "high_norm_patches")):
        first, second = ((of[:, depth] >= thresholds[depth]).mean(axis=1) for of in norms)

        def differ(chosen, first=first, second=second):
            return (second - first)[chosen].mean()

        assert 0.1 < first.mean() != second.mean()
        assert changes[name].before.value == pytest.approx(first.mean(), abs=1e-14)
        found = changes[name].difference
        assert found.value == pytest.approx(differ(places), abs=1e-14)
        assert found.ci95 == pytest.approx(busing_interval(differ, places, blocks), abs=1e-12)
    told = tell_remedy(changes, measure_drift(before, after))
    assert told.startswith("cleaner: high-norm patches ")


def test_a_verdict_changes_where_the_share_of_patches_crosses_a_line(compared):
    def judge(rows):
        r = sum_terms(rows)
        c, r = (each - each.mean(axis=0) for each in (rows["term/patches"], r))
        percents = np.round(100 * (c * r).sum(axis=1) / (r * r).sum(axis=1))
        return np.searchsorted([20, 50], abs(100 - percents))  # within 20 %, within 50 %, beyond

    before = judge(read_rows(compared.read_audit()))
    for one in compared.summary.remedies:
        after = judge(read_rows(compared.read_audit(one.edit)))
        assert one.maps.verdicts.value == pytest.approx(np.mean(before != after), abs=1e-14)
    assert compared.summary.remedies[0].maps == MapChange(
        correlation=Estimate(1.0, (1.0, 1.0)), verdicts=Estimate(0.0, (0.0, 0.0))
    )


def test_audits_of_earlier_versions_load_and_compare_without_what_they_lack(compared, tmp_path):
    audits = []
    for result in (compared.read_audit(), compared.read_audit("zero")):
        folder = tmp_path / result.folder.name
        shutil.copytree(result.folder, folder)
        table = result.images.drop_columns([*SPREAD, "median_patch_norm_01"])
        pq.write_table(table, folder / "images.parquet")
        strip(next(folder.glob("features/001/*.safetensors")), "patch_attention")
        strip(folder / "sums.safetensors", "001/patch_norms/by_block")
        content = json.loads((folder / "summary.json").read_text())
        for name in SPREAD:
            del content["layers"][-1][name]
        (folder / "summary.json").write_text(json.dumps(content))
        audits.append(AuditResult.load(folder))
    for pair in (audits, [compared.read_audit(), audits[1]]):
        changes = compare_audits(*pair)
        known = compared.summary.remedies[1].changes
        assert known.keys() - changes.keys() == {*SPREAD, "norm_ratio"}
        assert changes == {name: known[name] for name in changes}
        maps = compare_maps(*pair)
        assert maps.correlation is None
        assert maps.verdicts == compared.summary.remedies[1].maps.verdicts


SPREAD = ("largest_patch_attention", "attention_entropy")


def strip(path, name):
    """Take a tensor out of a file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata)


def test_an_edit_that_changes_nothing_differs_in_nothing(compared):
    one = compared.summary.remedies[0]
    assert one.edit == "skip:scale=1.0"
    for name, change in one.changes.items():
        assert change.difference.value == pytest.approx(0, abs=1e-12), name
        assert change.before.ci95 == pytest.approx(change.after.ci95, abs=1e-9)
    assert one.drift.cosine.value == pytest.approx(1, abs=1e-12)
    assert one.drift.shared_neighbours.value == 1


def test_results_of_edited_models_are_those_of_another_model(compared, photos):
    original, zeroed = compared.read_audit(), compared.read_audit("zero")
    assert zeroed.summary.model.id == "tiny/dinov2_reg+zero"
    assert "edited: zero" in zeroed.summary.model.notes
    hashes = [r.provenance["behaviour_hash"] for r in (original, zeroed)]
    assert hashes[0] != hashes[1]
    with pytest.raises(ResultError, match="cannot be merged"):
        original.merge(zeroed)
    vit = tiny_vit()
    with edited(vit, ["zero"], photos, original_config()) as other:
        with pytest.raises(UsageError, match="computes otherwise"):
            explain(other, photos, reference=original)
        with pytest.raises(UsageError, match="different result"):
            audit(other, photos, out=original.folder, resume=True, gallery=0, dtype="float64")


def original_config():

    return AuditConfig(dtype="float64", gallery=0, num_workers=0)


def test_a_comparison_is_read_again_and_its_audits_lie_beside_it(compared):
    again = RemedyResult.load(compared.folder)
    assert again.summary == compared.summary
    beside = sorted(path.name for path in compared.folder.parent.iterdir())
    last = "03-position-mean"
    audits = ["01-skip", "02-zero", last, f"{last}.safetensors"]
    assert beside == [*audits, "comparison", "original"]
    assert str(again).splitlines()[2].startswith("zero: cleaner: ")
    assert "zero" in again._repr_html_()
    with pytest.raises(ResultError, match="no edit 'mean' was compared"):
        again.read_audit("mean")


def test_without_a_folder_everything_lasts_as_long_as_the_result(photos):
    found = compare_remedies(
        tiny_vit(), photos, ["zero"], limit=5, gallery=0, num_workers=0, trace=2
    )
    (one,) = found.summary.remedies
    assert one.traces == (
        found.read_audit().summary.trace,
        found.read_audit("zero").summary.trace,
    )
    assert one.traces[0] != one.traces[1]
    assert "patches hold at least half" in found._repr_html_()
    kept = found.read_audit("zero")
    folder = kept.folder
    del found
    assert isinstance(kept, AuditResult)
    assert folder.is_dir()
    del kept
    assert not folder.exists()


@pytest.mark.parametrize("folder", ["../original", "..", "gone"])
def test_an_audit_elsewhere_is_not_opened(compared, tmp_path, folder):
    content = json.loads((compared.folder / "summary.json").read_text())
    content["remedies"][1]["folder"] = folder
    for name in ("comparison", "original"):
        (tmp_path / name).mkdir()
    (tmp_path / "comparison" / "summary.json").write_text(json.dumps(content))
    moved = RemedyResult.load(tmp_path / "comparison")
    with pytest.raises(ResultError, match="is missing"):
        moved.read_audit("zero")


def test_the_schema_of_a_comparison_is_checked(compared, tmp_path):
    content = json.loads((compared.folder / "summary.json").read_text())
    content["remedies"] = []
    (tmp_path / "summary.json").write_text(json.dumps(content))
    with pytest.raises(ResultError, match="remedies"):
        RemedyResult.load(tmp_path)


@dataclass(frozen=True, eq=False, kw_only=True)
class Spoil(Remedy):
    """Makes high-norm patches where there are none."""

    name: ClassVar[str] = "spoil"

    def edit(self, editor):
        def enlarge(tokens, running):
            spoiled = tokens.clone()
            spoiled[:, running.layout.find_patches(tokens.shape[1]).start + 3] *= 60
            return spoiled

        editor.edit_stream(1, enlarge)


def test_high_norm_patches_that_an_edit_makes_are_counted_and_told():
    images = torch.rand(100, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    result = compare_remedies(tiny_vit(), images, [Spoil()], preprocessed=True, gallery=0)
    assert result.summary.high_norm is None
    (one,) = result.summary.remedies
    patches = tiny_vit().make_layout(32, 32).groups["patches"]
    for name in ("high_norm_patches", "high_norm_images"):
        assert one.changes[name].before.value == 0
    assert one.changes["high_norm_patches"].after.value == pytest.approx(1 / len(patches))
    assert one.changes["high_norm_images"].after.value == 1
    assert "cleaner: high-norm patches 0.0 % → " in one.text


@pytest.mark.parametrize(
    "error", [UsageError("x"), UnsupportedModelError("x"), ImbalanceError("x"), ValueError("x")]
)
def test_what_would_happen_again_is_not_said_to_be_resumed(compared, photos, error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(remedy_loop, "fit_remedy", fail)
    with pytest.raises(type(error)) as caught:
        compare_remedies(
            tiny_vit(),
            photos,
            ["zero"],
            out=compared.folder.parent,
            resume=True,
            gallery=0,
            dtype="float64",
            num_workers=0,
        )
    assert not any("resume" in note for note in getattr(caught.value, "__notes__", []))
