"""The whole job where something is wrong: images, numbers, models, settings, files."""

import json

import pytest
import torch

from audits import assert_same_numbers, numbers, tiny_vit
from images import write_images
from vitscope import AuditConfig, AuditResult, ImageSet, audit
from vitscope.errors import (
    ImageReadError,
    ImbalanceError,
    NonFiniteError,
    ResultError,
    UsageError,
    VitscopeError,
)
from vitscope.results.schema import DataSummary


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_lower_precision_balances_within_its_tolerance(images, dtype):
    summary = audit(tiny_vit(), images, AuditConfig(dtype=dtype)).summary
    assert 0 < summary.ledger.max_balance_error <= summary.ledger.tolerance
    assert summary.ledger.tolerance == (1e-4 if dtype == "float32" else 3e-2)


def test_unreadable_images_are_skipped_counted_and_listed(images, tmp_path):
    folder = write_images(tmp_path / "mixed", 5)
    (folder / "0002.png").write_bytes(b"not an image")
    (folder / "<b>evil,\n.jpg").write_bytes(b"")
    found = audit(tiny_vit(), folder, out=tmp_path / "out")
    assert found.summary.data == DataSummary(num_images=4, num_failed=2)
    assert {path.rsplit("/", 1)[1] for path, _ in found.failures} == {"0002.png", "<b>evil,\\n.jpg"}
    assert found.images.num_rows == 4


def test_nothing_readable_is_a_failure_that_leaves_nothing(tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"x")
    with pytest.raises(ImageReadError, match=r"a\.jpg cannot be read"):
        audit(tiny_vit(), folder, out=tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["bad"]


def test_nan_is_located_in_layer_and_image(images):
    vit = tiny_vit()

    def poison(module, args, output):
        output = output.clone()
        output[2] = float("nan")
        return output

    vit.module.blocks[0].register_forward_hook(poison)
    third = sorted(images.iterdir())[2].name
    with pytest.raises(NonFiniteError, match=rf"layer 0, for .*{third}"):
        audit(vit, images)


def test_an_altered_model_does_not_balance(images, tmp_path):
    vit = tiny_vit()
    vit.module.blocks[1].attn.proj.register_forward_hook(lambda _, __, out: out * 1.001)
    with pytest.raises(ImbalanceError, match=r"layer 1 does not balance.*likely cause"):
        audit(vit, images, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_altered_mlp_half_is_noticed(images):
    vit = tiny_vit()
    vit.module.blocks[1].register_forward_hook(lambda _, __, out: out + 1)
    with pytest.raises(ImbalanceError, match=r"block readout of layer 1"):
        audit(vit, images)


def test_an_altered_head_is_noticed(images):
    vit = tiny_vit()
    run = vit.run
    object.__setattr__(vit, "run", lambda pixels: run(pixels) + 1)
    with pytest.raises(ImbalanceError, match=r"embedding readout of layer 1"):
        audit(vit, images)


def test_an_interrupted_run_leaves_nothing(images, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(tiny_vit(), images, out=tmp_path / "out", on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_any_size_that_fits(images):
    summary = audit(tiny_vit(), images, AuditConfig(size=(16, 40))).summary
    assert summary.preprocessing.size == (16, 40)
    assert summary.model.grid == (2, 5)
    with pytest.raises(UsageError, match="33 px does not fit the patch size of 8"):
        audit(tiny_vit(), images, AuditConfig(size=(33, 40)))


@pytest.mark.parametrize("layers", [[2], [-3], [0, 9]])
def test_unknown_layers_are_refused(images, layers):
    with pytest.raises(UsageError, match="layer"):
        audit(tiny_vit(), images, AuditConfig(layers=layers))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_images_say_so_and_hold_no_nan(tmp_path, count):
    folder = write_images(tmp_path / "few", count)
    found = audit(tiny_vit(), folder, out=tmp_path / "out")
    text = (found.folder / "summary.json").read_text()
    saved = json.loads(text, parse_constant=pytest.fail)
    assert saved["layers"][-1]["verdict"]["status"] == "not enough images"
    assert saved["data"]["num_images"] == count
    assert AuditResult.load(found.folder).summary.last.verdict.status == "not enough images"


def test_damaged_results_say_so(result, tmp_path):
    copy = result.save(tmp_path / "copy")
    (copy.folder / "sums.safetensors").write_bytes(b"x")
    with pytest.raises(ResultError, match=r"sums.safetensors cannot be read"):
        copy.read_sums()
    marker = copy.folder / "summary.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"schema_version": 99}))
    with pytest.raises(ResultError, match="written with schema 99"):
        AuditResult.load(copy.folder)
    with pytest.raises(ResultError, match="is not a vitscope result"):
        AuditResult.load(tmp_path)


def test_progress_counts_every_image(images):
    seen = []
    audit(
        tiny_vit(),
        images,
        AuditConfig(batch_size=10),
        on_progress=lambda *counts: seen.append(counts),
    )
    assert seen == [(10, 26), (20, 26), (26, 26)]


def test_progress_moves_with_every_pass_of_a_batch(images, monkeypatch):
    monkeypatch.setattr("vitscope.runs.model_run.choose_pass_size", lambda *_: 8)
    seen = []
    audit(tiny_vit(), images, on_progress=lambda *counts: seen.append(counts))
    assert seen == [(8, 26), (16, 26), (24, 26), (26, 26)]


def test_provenance_names_settings_versions_and_weights(result):
    provenance = result.provenance
    assert provenance["config"]["batch_size"] == 8
    assert provenance["versions"]["torch"] == torch.__version__
    assert len(provenance["weights_hash"]) == 32


def test_a_restricted_output_that_overflows_is_named(images, monkeypatch):
    vit = tiny_vit()
    finish = type(vit).finish_block

    def overflow(self, layer, rows):
        # Rows come group by group: the third group's second image.
        found = finish(self, layer, rows)
        found[3 * 26 + 1] = float("inf")
        return found

    monkeypatch.setattr(type(vit), "finish_block", overflow)
    second = sorted(images.iterdir())[1].name
    with pytest.raises(VitscopeError, match=rf"block/patches in layer 1 .*{second}"):
        audit(vit, images)


def stop(done, total):
    raise UsageError("stop")


def test_the_model_is_left_as_it_was_found(images):
    vit = tiny_vit()
    before = {name: value.clone() for name, value in vit.module.state_dict().items()}
    expected = audit(vit, images)
    vit.module.cls_token.grad = torch.ones_like(vit.module.cls_token)
    audit(vit, images, AuditConfig(dtype="bfloat16"))
    with pytest.raises(UsageError, match="stop"):
        audit(vit, images, AuditConfig(dtype="float64"), on_progress=stop)
    assert vit.module.cls_token.grad.dtype == torch.float32
    after = vit.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(after[name].dtype == value.dtype for name, value in before.items())
    assert_same_numbers(numbers(expected), numbers(audit(vit, images)), 0)


@pytest.mark.parametrize(("name", "value"), [("limit", 3), ("size", 16), ("seed", 1)])
def test_a_prepared_set_is_not_chosen_from_again(images, name, value):
    vit = tiny_vit()
    image_set = ImageSet.from_sources([images], vit.preprocessing)
    with pytest.raises(UsageError, match=f"{name} is set"):
        audit(vit, image_set, AuditConfig(**{name: value}))


def test_images_prepared_differently_do_not_merge(result, tmp_path):
    vit = tiny_vit()
    other = vit.preprocessing.with_size(vit.preprocessing.size)
    object.__setattr__(other, "mean", (0.1, 0.2, 0.3))
    folder = write_images(tmp_path, 4, start=100)
    image_set = ImageSet.from_sources([folder], other)
    found = audit(vit, image_set, AuditConfig(dtype="float64"))
    with pytest.raises(ResultError, match="its preprocessing differs"):
        result.merge(found)


def test_a_result_is_not_saved_into_itself(result):
    with pytest.raises(UsageError, match="inside the result itself"):
        result.save(result.folder / "copy")
