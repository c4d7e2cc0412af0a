"""Audits that trace a sample of their images: which, with what numbers, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from audits import assert_same_numbers, tiny_vit
from containers import make_image_column, write_parquet
from images import write_images
from input_forms import Items
from sharded import SeenProgress
from vitscope import AuditConfig, AuditResult, audit, wrap_model
from vitscope.errors import (
    ImageReadError,
    MemoryShortageError,
    UnsupportedModelError,
    UsageError,
)
from vitscope.images.image_set import load_pixels
from vitscope.models import memory
from vitscope.results.summary import read_traces
from vitscope.runs import resources
from vitscope.testing.planted import plant
from vitscope.training.training_audit import TrainingAudit

NUM_IMAGES = 10
CONFIG = AuditConfig(gallery=0, trace=6, dtype="float64")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "set", NUM_IMAGES)


@pytest.fixture(scope="module")
def traced(images, tmp_path_factory):
    return audit(tiny_vit(), images, CONFIG, out=tmp_path_factory.mktemp("traced") / "r")


def refuse(error, match, vit, images, config=CONFIG, **settings):
    """The error, before any image is audited."""
    seen = SeenProgress()
    with pytest.raises(error, match=match) as raised:
        audit(vit, images, config, on_progress=seen, **settings)
    assert seen == []
    return raised.value


@pytest.mark.parametrize(
    ("name", "holder", "half_depth"),
    [("patches", "patches", 2), ("skip_copy", "cls", 1), ("registers_copy", "registers", 1)],
)
def test_planted_models_hold_their_output_where_they_were_built_to(
    images, name, holder, half_depth
):
    """Their first block writes the patches' mean to every token; the last one picks where from."""
    trace = audit(wrap_model(plant(name)), images, CONFIG).summary.trace
    values = {group: [one.value for one in shares] for group, shares in trace.shares.items()}
    assert np.sum(list(values.values()), axis=0) == pytest.approx(np.ones(3))
    assert [values["patches"][0], values["cls"][-1]] == pytest.approx([1, 1])
    assert values[holder][1] > 0.9
    assert trace.half_depth == half_depth
    # Attention weights are the same for every image, and skip_copy's last block adds little.
    assert [one.value for one in trace.through_routing] == pytest.approx([0, 0], abs=1e-3)
    read = trace.through_values[1].value
    assert read < 0.05 if name == "skip_copy" else read > 0.95


def test_what_a_pooling_head_reads_stays_in_the_patches(images):
    trace = audit(tiny_vit("siglip"), images, CONFIG).summary.trace
    assert [one.value for one in trace.shares["patches"]] == pytest.approx([1, 1, 1])
    assert trace.half_depth is None


def test_totals_are_differences_of_the_models_own_features(images, traced):
    """From the features alone: μ is their mean, and the first four are what others are held to."""
    table, vit = read_traces(traced.folder), tiny_vit()
    assert traced.summary.trace.num_images == table.num_rows == 6
    paths = dict(zip(*(traced.images[k].to_pylist() for k in ("image_id", "path")), strict=True))
    ids = table["image_id"].to_pylist()
    pixels = torch.stack([load_pixels(paths[one], vit.preprocessing) for one in ids])
    with vit.placed("cpu", torch.float64), torch.no_grad():
        features = vit.run(pixels.double())
    centred = features - features.mean(dim=0)
    s = centred @ centred.T / centred.square().sum(dim=1)  # of each image, explaining each
    for own, total in enumerate(table["total"].to_pylist()):
        others = [other for other in range(4) if other != own]
        assert total == pytest.approx(float(1 - s[others, own].mean()))


def test_numbers_do_not_depend_on_batches_and_a_seed_draws_others(images, traced):
    again = audit(tiny_vit(), images, replace(CONFIG, batch_size=3))
    assert_same_numbers(again.summary.trace, traced.summary.trace, 1e-9)
    other = audit(tiny_vit(), images, replace(CONFIG, seed=1))
    ids = [set(read_traces(one.folder)["image_id"].to_pylist()) for one in (other, traced)]
    assert ids[0] != ids[1]


def test_other_numbers_stay_as_they_are(images, traced):
    plain = audit(tiny_vit(), images, replace(CONFIG, trace=0)).summary
    assert plain.trace is None
    assert_same_numbers(plain, replace(traced.summary, trace=None), 0)


def test_merged_shards_hold_all_their_traced_images(images, tmp_path):
    parts = [audit(tiny_vit(), images, replace(CONFIG, shard=(k, 2))) for k in (1, 2)]
    merged = parts[0].merge(parts[1])
    assert [one.summary.trace.num_images for one in (*parts, merged)] == [5, 5, 10]
    rows = [row for part in parts for row in read_traces(part.folder).to_pylist()]
    assert read_traces(merged.folder).to_pylist() == rows
    total = sum(row["total"] for row in rows)
    expected = np.sum([row["patches"] for row in rows], axis=0) / total
    found = [one.value for one in merged.summary.trace.shares["patches"]]
    assert found == pytest.approx(expected)
    merged.save(tmp_path / "kept")
    assert AuditResult.load(tmp_path / "kept").summary.trace == merged.summary.trace


def test_another_number_of_traced_images_is_another_run(images, traced):
    same = audit(tiny_vit(), images, CONFIG, out=traced.folder, resume=True)
    assert same.summary.trace == traced.summary.trace
    refuse(
        UsageError,
        "trace was 6 and now is 5",
        tiny_vit(),
        images,
        replace(CONFIG, trace=5),
        out=traced.folder,
        resume=True,
    )


def test_tracing_tells_how_far_it_is(images):
    seen, audited = SeenProgress(), SeenProgress()
    audit(tiny_vit(), images, CONFIG, on_progress=audited, on_trace=seen)
    assert seen == [(4, 6), (6, 6)]
    assert audited == [(NUM_IMAGES, NUM_IMAGES)]


def test_unreadable_images_are_passed_over_and_counted_once(images, tmp_path):
    folder = write_images(tmp_path / "set", 6)
    for number in range(3):
        (folder / f"damaged {number}.png").write_bytes(b"no image")
    summary = audit(tiny_vit(), folder, CONFIG).summary
    assert summary.trace.num_images == 6
    assert summary.data.num_failed == 3


def test_copies_are_traced_once_and_a_limit_bounds_the_sample(images, tmp_path):
    contents = [path.read_bytes() for path in sorted(images.iterdir())[:4]]
    column = make_image_column([*contents, *contents])
    table = write_parquet(tmp_path / "table.parquet", {"image": column})
    assert audit(tiny_vit(), table, CONFIG).summary.trace.num_images == 4
    few = audit(tiny_vit(), images, replace(CONFIG, limit=3, trace=50))
    assert few.summary.trace.num_images == 3
    ids = read_traces(few.folder)["image_id"].to_pylist()
    assert set(ids) == set(few.images["image_id"].to_pylist())


def test_one_image_alone_has_nothing_to_be_compared_with(images, tmp_path):
    content = min(images.iterdir()).read_bytes()
    table = write_parquet(tmp_path / "t.parquet", {"image": make_image_column([content, content])})
    told = "expected two or more different ones that can be read, found one"
    refuse(UsageError, told, tiny_vit(), table)
    with pytest.raises(UsageError, match="trace 1: expected 0 or at least 2"):
        AuditConfig(trace=1)


def test_no_image_at_all_is_told_as_without_a_trace(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ImageReadError, match=r"a\.png cannot be read: not an image"):
        audit(tiny_vit(), tmp_path, CONFIG)


def test_an_output_that_does_not_vary_is_refused_by_its_cause(images):
    vit = tiny_vit()
    with torch.no_grad():
        vit.module.norm.weight.zero_()
    refuse(UsageError, "the output is the same for the first 5", vit, images)


def test_weights_that_are_not_finite_are_told_as_without_a_trace(images):
    vit = tiny_vit()
    with torch.no_grad():
        vit.module.blocks[0].attn.proj.weight[0] = torch.nan
    with pytest.raises(Exception, match="first in the output of layer 0"):
        audit(vit, images, CONFIG)


def test_a_model_that_cannot_be_traced_is_refused_before_the_work(images):
    vit = tiny_vit()
    for block in vit.module.blocks:
        block.mlp.act = nn.Softplus()
    error = refuse(UnsupportedModelError, "0 of 1 calls of kind 'activation'", vit, images)
    assert error.__notes__ == ["only tracing failed: without trace the audit may run"]


def test_what_does_not_fit_into_memory_is_refused_before_the_work(images, monkeypatch):
    vit = tiny_vit()
    size = vit.preprocessing.size
    enough = 4 * 3 * size[0] * size[1] * NUM_IMAGES * 4
    monkeypatch.setattr(memory, "find_available_memory", lambda: enough)
    audit(vit, images, replace(CONFIG, trace=0))
    monkeypatch.setattr(memory, "_WIDTHS_PER_TOKEN", 8 * 10)
    error = refuse(MemoryShortageError, "8 images of 32 x 32 px would take", vit, images)
    assert "without trace" in error.__notes__[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16])
def test_half_precision_is_refused(dtype):
    with pytest.raises(UsageError, match=r"16 rounds away the differences .*: use float32"):
        AuditConfig(trace=4, dtype=dtype)


def test_no_half_precision_is_chosen_for_a_trace(images, monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "choose_dtype", lambda *_: "bfloat16")
    config = AuditConfig(gallery=0, dtype="auto", limit=4)
    plain = audit(tiny_vit(), images, config, out=tmp_path / "r")
    assert plain.summary.model.dtype == "bfloat16"
    told = "bfloat16' and now is 'float32'"
    refuse(UsageError, told, tiny_vit(), images, config, trace=2, out=plain.folder, resume=True)
    assert audit(tiny_vit(), images, config, trace=2).summary.model.dtype == "float32"


def test_a_dataset_that_may_change_between_readings_is_refused(images):
    data = Items([Image.new("RGB", (32, 32), (40 * shade, 9, 9)) for shade in range(4)])
    told = "may give out another image than it did before: leave trace out"
    refuse(UsageError, told, tiny_vit(), data)


def test_an_image_that_changes_after_it_was_audited_is_not_traced(tmp_path):
    folder = write_images(tmp_path / "set", 4)
    (other,) = write_images(tmp_path / "other", 1, start=50).iterdir()

    def change(*_):
        (folder / "0002.png").write_bytes(other.read_bytes())

    result = audit(tiny_vit(), folder, CONFIG, on_progress=change)
    traced = read_traces(result.folder)["image_id"].to_pylist()
    assert len(traced) == 3
    assert set(traced) < set(result.images["image_id"].to_pylist())


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_a_caller_without_gradients_gets_the_same_numbers(images, traced, context):
    vit = tiny_vit()
    with context():
        found = audit(vit, images, CONFIG)
    assert found.summary.trace == traced.summary.trace


def test_a_model_in_training_is_traced_and_left_as_it_was(images, traced):
    model = tiny_vit().module.train()
    result = TrainingAudit(images, replace(CONFIG, limit=None)).run(model)
    assert_same_numbers(result.summary.trace, traced.summary.trace, 1e-9)
    assert model.training
    assert all(part.requires_grad and part.grad is None for part in model.parameters())
