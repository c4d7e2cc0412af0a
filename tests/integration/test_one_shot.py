"""One-shot classification of labelled folders by tiny models: numbers, counts, refusals."""

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from audits import tiny_vit
from images import write_classes
from vitscope import AuditConfig, ImageSet, OneShotConfig, OneShotResult, audit, decompose, one_shot
from vitscope import restrict as restrict_outputs
from vitscope.adapters.registry import wrap_model
from vitscope.adapters.transformers_families import FAMILIES
from vitscope.errors import (
    ResultError,
    UsageError,
)
from vitscope.images.image_set import iter_batches
from vitscope.images.labels import find_classes
from vitscope.metrics.one_shot import draw_pairs, group_images
from vitscope.results.schema import OneShotData, Settings
from vitscope.runs import one_shot_loop, resources
from vitscope.weights.embedded import embedded_available, load_embedded_dinov2

CALTECH = Path(__file__).parents[3] / "shared" / "data" / "caltech-oneshot"
NUM_CLASSES = 7
EXACT = {"dtype": "float64", "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("classes"), NUM_CLASSES)


@pytest.fixture(scope="module")
def result(folder):
    return one_shot(tiny_vit(), folder, OneShotConfig(draws=12, classifier="both", **EXACT))


def read_draws(result):
    """(draw, classifier, readout, part) -> (top1, top5)."""
    return {
        (row["draw"], row["classifier"], row["readout"], row["part"]): (row["top1"], row["top5"])
        for row in result.draws.to_pylist()
    }


def plain_outputs(vit, paths, *, renormalize):
    """Full and restricted outputs in every readout, of the public functions on one batch."""
    (batch,) = iter_batches(ImageSet(tuple(paths), vit.preprocessing), batch_size=len(paths))
    ledger = decompose(vit, batch.pixels)
    outputs = restrict_outputs(vit, ledger, renormalize=renormalize)
    terms = ledger.residual_terms
    del terms["non_patch"]
    outputs["residual"] = {"full": ledger.residual_total, **terms}
    outputs["block"]["skip"] = vit.finish_block(vit.last_layer, ledger.skip + ledger.bias)
    outputs["embedding"]["skip"] = vit.embed(outputs["block"]["skip"])
    arrays = {r: {n: x.detach().numpy() for n, x in p.items()} for r, p in outputs.items()}
    return batch.ids, arrays


def plain_nearest(train, test):
    """(top-1, top-5) by comparing every test image with every training image."""
    ranks = []
    for i, a in enumerate(test):
        cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for b in train]
        ranks.append(sorted(cosines, reverse=True).index(cosines[i]))
    return np.mean([r < 1 for r in ranks]), np.mean([r < 5 for r in ranks])


@pytest.mark.parametrize("renormalize", [False, True])
def test_nearest_accuracies_equal_plain_code(folder, renormalize):
    config = OneShotConfig(draws=4, seed=3, renormalize=renormalize, **EXACT)
    found = read_draws(one_shot(tiny_vit(), folder, config))
    paths = sorted(folder.rglob("*.png"))
    labels = [path.relative_to(folder).parts[0] for path in paths]
    vit = tiny_vit().to("cpu", torch.float64)
    ids, outputs = plain_outputs(vit, paths, renormalize=renormalize)
    pairs = draw_pairs(list(group_images(labels, ids).values()), 4, 3)
    expected = {
        (draw, "nearest", readout, part): plain_nearest(parts["full"][pair[:, 0]], x[pair[:, 1]])
        for draw, pair in enumerate(pairs)
        for readout, parts in outputs.items()
        for part, x in parts.items()
    }
    assert found.keys() == expected.keys()
    for key, accuracy in expected.items():
        assert found[key] == pytest.approx(accuracy), key


def test_summary_has_every_promised_key(result):
    summary = result.summary
    assert summary.draws == 12
    assert summary.readout == "attention"
    assert asdict(summary.chance) == pytest.approx({"top1": 1 / 7, "top5": 5 / 7})
    assert summary.data == OneShotData(
        num_classes=NUM_CLASSES, num_images=27, num_failed=0, num_unlabelled=0, dropped_classes=()
    )
    parts = {"full", "patches", "registers", "cls"}
    for readouts in summary.accuracy.values():
        found = {readout: set(part) for readout, part in readouts.items()}
        assert found == {
            "attention": parts,
            "values": parts,
            **dict.fromkeys(("residual", "block", "embedding"), parts | {"skip"}),
        }
    assert set(summary.accuracy) == {"nearest", "logistic"}
    for draw in range(12):
        assert (draw, "logistic", "residual", "skip") in read_draws(result)
    assert result.provenance["config"]["draws"] == 12
    assert len(result.provenance["weights_hash"]) == 32


def test_means_over_draws_are_those_of_the_table(result):
    draws = read_draws(result)
    for classifier, readouts in result.summary.accuracy.items():
        for readout, parts in readouts.items():
            for part, entry in parts.items():
                values = np.array([draws[d, classifier, readout, part] for d in range(12)])
                for column, name in enumerate(("top1", "top5")):
                    low, high = getattr(entry, name).ci95
                    assert getattr(entry, name).value == pytest.approx(values[:, column].mean())
                    half = 2.200985 * values[:, column].std(ddof=1) / np.sqrt(12)
                    # An accuracy is from 0 to 1, and so is its interval.
                    mean = values[:, column].mean()
                    ends = np.clip([mean - half, mean + half], 0, 1)
                    assert [low, high] == pytest.approx(ends, abs=1e-6)


def test_the_model_is_described_as_in_an_audit(result, folder):
    audited = audit(tiny_vit(), folder, AuditConfig(**EXACT)).summary
    assert result.summary.model == audited.model


@pytest.mark.parametrize("config", [{"batch_size": 1}, {"batch_size": 5, "num_workers": 1}])
def test_batches_and_workers_change_nothing(result, folder, config):
    again = OneShotConfig(draws=12, classifier="both", **EXACT, **config)
    assert read_draws(one_shot(tiny_vit(), folder, again)) == read_draws(result)


@pytest.mark.parametrize(("pass_size", "tried"), [(8, [8, 4, 2, 2, 2, 2]), (2, [2, 2, 2, 2])])
def test_batches_go_in_passes_that_fit(result, folder, monkeypatch, pass_size, tried):
    num_tokens = tiny_vit().make_layout(*tiny_vit().preprocessing.size).num_tokens
    monkeypatch.setattr(resources, "CPU_TOKENS", pass_size * num_tokens)
    decompose, sizes = one_shot_loop.decompose_layers, []

    def run(vit, pixels, *args, **kwargs):
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return decompose(vit, pixels, *args, **kwargs)

    monkeypatch.setattr(one_shot_loop, "decompose_layers", run)
    config = OneShotConfig(draws=12, classifier="both", batch_size=8, **EXACT)
    assert read_draws(one_shot(tiny_vit(), folder, config)) == read_draws(result)
    assert sizes[: len(tried)] == tried
    assert max(sizes[len(tried) :]) == 2


def test_names_of_files_change_nothing(result, folder, tmp_path):
    for number, path in enumerate(sorted(folder.rglob("*.png"), reverse=True)):
        target = tmp_path / path.relative_to(folder).parts[0]
        target.mkdir(exist_ok=True)
        shutil.copyfile(path, target / f"{number}.png")
    again = one_shot(tiny_vit(), tmp_path, OneShotConfig(draws=12, classifier="both", **EXACT))
    assert read_draws(again) == read_draws(result)


def test_another_seed_draws_others(result, folder):
    other = one_shot(tiny_vit(), folder, OneShotConfig(draws=12, seed=1, **EXACT))
    mine = {k: v for k, v in read_draws(result).items() if k[1] == "nearest"}
    assert read_draws(other) != mine


def test_a_limit_draws_classes(folder):
    config = OneShotConfig(draws=2, limit=3, seed=2, **EXACT)
    summary = one_shot(tiny_vit(), folder, config).summary
    assert summary.data.num_classes == 3
    assert asdict(summary.chance) == pytest.approx({"top1": 1 / 3, "top5": 1})
    chosen = [tuple(find_classes(folder).limited(3, seed).classes) for seed in range(8)]
    assert all(list(names) == sorted(names) for names in chosen)
    assert len(set(chosen)) > 1
    assert find_classes(folder).limited(99, 0) == find_classes(folder)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("dinov2", {"full", "patches", "cls"}),
        ("deit_distilled", {"full", "patches", "cls", "distillation"}),
        ("siglip", {"full", "patches"}),
    ],
)
def test_parts_are_those_that_the_model_has(folder, name, parts):
    summary = one_shot(tiny_vit(name), folder, OneShotConfig(draws=2)).summary
    found = summary.accuracy["nearest"]
    skip = set() if name == "siglip" else {"skip"}
    assert set(found["attention"]) == parts
    assert set(found["embedding"]) == set(found["residual"]) == parts | skip
    if name == "siglip":
        # The patches are all there is, but for the constant bias that `residual` leaves out.
        assert found["attention"]["patches"] == found["attention"]["full"]


def test_the_cls_term_goes_where_it_is_sent(folder, result):
    config = OneShotConfig(draws=12, cls_term="registers", **EXACT)
    assert result.summary.settings == Settings(renormalize=False, cls_term="own")
    found = one_shot(tiny_vit(), folder, config).summary.accuracy["nearest"]["attention"]
    assert set(found) == {"full", "patches", "registers"}
    kept = result.summary.accuracy["nearest"]["attention"]
    assert found["patches"] == kept["patches"]


def test_copies_of_a_image_change_nothing(folder, result, tmp_path):
    shutil.copytree(folder, tmp_path / "copies")
    for path in sorted((tmp_path / "copies").rglob("*1.png")):
        shutil.copyfile(path, path.with_name(f"0 {path.name}"))
    again = one_shot(
        tiny_vit(), tmp_path / "copies", OneShotConfig(draws=12, classifier="both", **EXACT)
    )
    assert read_draws(again) == read_draws(result)
    assert again.summary.data.num_repeated == NUM_CLASSES


def test_progress_counts_images_with_every_pass_and_draws(folder, monkeypatch):
    monkeypatch.setattr("vitscope.runs.model_run.choose_pass_size", lambda *_: 6)
    images, draws = [], []
    one_shot(
        tiny_vit(),
        folder,
        OneShotConfig(draws=3, batch_size=10),
        on_progress=lambda *counts: images.append(counts),
        on_draw=lambda *counts: draws.append(counts),
    )
    assert images == [(count, 27) for count in (6, 10, 16, 20, 26, 27)]
    assert draws == [(1, 3), (2, 3), (3, 3)]


def test_results_are_saved_loaded_and_told_apart(result, folder, tmp_path):
    saved = result.save(tmp_path / "saved")
    assert OneShotResult.load(saved.folder).summary == result.summary
    assert {path.name for path in saved.folder.iterdir()} == {
        *("summary.json", "draws.parquet", "failures.csv", "provenance.json")
    }
    with pytest.raises(UsageError, match="already holds a result"):
        one_shot(tiny_vit(), folder, out=saved.folder)
    audited = audit(tiny_vit(), folder)
    with pytest.raises(ResultError, match="kind 'audit': expected 'one-shot'"):
        OneShotResult.load(audited.folder)
    replaced = one_shot(
        tiny_vit(), folder, OneShotConfig(draws=2), out=saved.folder, overwrite=True
    )
    assert OneShotResult.load(replaced.folder).summary.draws == 2


@pytest.mark.real_weights
@pytest.mark.skipif(
    not CALTECH.is_dir(), reason="no shared/data/caltech-oneshot beside the checkout"
)
@pytest.mark.skipif(not embedded_available(), reason="the packages of the demo extra are absent")
def test_patches_of_a_small_model_classify_as_well_as_its_output():
    """60 photographs of 15 classes: patches within two points of the output, chance far below."""
    preprocessing = FAMILIES["dinov2"].preprocessing
    vit = wrap_model(load_embedded_dinov2(), preprocessing=preprocessing)
    summary = one_shot(vit, CALTECH, OneShotConfig(limit=15, draws=40, classifier="both")).summary
    assert summary.data.num_classes == 15
    for readouts in summary.accuracy.values():
        for readout in ("attention", "embedding"):
            top1 = {part: entry.top1 for part, entry in readouts[readout].items()}
            full, patches = top1["full"], top1["patches"]
            assert patches.value == pytest.approx(full.value, abs=0.02)
            assert full.ci95 is not None
            assert full.ci95[0] > 4 / 15
            assert "registers" not in top1
            assert top1["cls"].value < 0.5 * full.value
