"""Which reference is used: one that is given, one next to the result, or a shipped one."""

from dataclasses import asdict, replace

import pytest
import torch

from audits import named_vit
from reference_means import write_shipped
from vitscope import AuditConfig, AuditResult, RunConfig, audit, explain
from vitscope.errors import UsageError
from vitscope.weights.embedded import embedded_available

FLOAT64 = RunConfig(dtype="float64")
VERDICTS = ("most", "part", "do not read")


def reference_of(result):
    return result.summary.reference


def test_one_that_is_given_is_named(one, audited):
    result = explain(named_vit(), one, reference=audited)
    told = reference_of(result)
    assert told.source == "given"
    assert told.num_images == 24
    assert told.folder == str(audited.folder)
    (entry,) = result.summary.images
    assert entry.verdict.basis == (
        f"shares of r − mean r, means over 24 images of the audit {audited.folder}"
    )
    assert result.provenance["reference"] == asdict(told)


@pytest.mark.parametrize("place", ["home/dog", "home/photos-audit/dog", "other/photos-audit/dog"])
def test_an_audit_beside_the_result_is_found_and_named(one, home, place):
    if place.startswith("other"):  # OUT/MODEL, with MODEL beside OUT
        place = "home/dogs/photos-audit"
    result = explain(named_vit(), one, FLOAT64, out=home.parent / place)
    told = reference_of(result)
    assert told.source == "found"
    assert told.folder == str(home / "photos-audit")
    assert "home/photos-audit, next to this result" in told.images
    given = explain(named_vit(), one, FLOAT64, reference=AuditResult.load(home / "photos-audit"))
    found, expected = result.summary.images[0], given.summary.images[0]
    assert found.numbers.centred_share == expected.numbers.centred_share
    assert reference_of(given).means_digest == told.means_digest


def test_of_several_the_one_over_the_most_images_is_used(one, photos, home):
    few = sorted(photos.iterdir())[:21]
    audit(named_vit(), few, AuditConfig(), out=home / "a-few")
    assert reference_of(explain(named_vit(), one, out=home / "dog")).num_images == 24


def change_weights(vit):
    vit.module.blocks[0].attn.proj.bias.data += 1
    return vit


@pytest.mark.parametrize(
    ("vit", "config", "layer", "reason"),
    [
        (named_vit, RunConfig(size=40), None, "audited with size (32, 32)"),
        (named_vit, RunConfig(draft=True), None, "audited with draft False"),
        (named_vit, RunConfig(), 0, "has layers [1], not 0"),
        (lambda: change_weights(named_vit()), RunConfig(), None, None),
    ],
)
def test_one_that_does_not_fit_is_refused_or_not_used(
    one, audited, home, vit, config, layer, reason
):
    with pytest.raises(UsageError, match=r"^the reference "):
        explain(vit(), one, config, layer=layer, reference=audited)
    result = explain(vit(), one, config, layer=layer, out=home / "dog")
    assert reference_of(result) is None
    assert result.summary.images[0].verdict.status == "cannot tell"
    told = " ".join(result.summary.references_not_used)
    assert (reason in told) if reason else not told


def test_another_models_preprocessing_is_no_reference(one, audited):
    vit = named_vit()
    other = replace(vit, preprocessing=replace(vit.preprocessing, crop_fraction=0.5))
    with pytest.raises(UsageError, match="audited with crop_fraction"):
        explain(other, one, reference=audited)


def test_what_cannot_be_read_beside_the_result_stops_nothing(one, home):
    (home / "photos-audit" / "sums.safetensors").write_bytes(b"damaged")
    (home / "other").mkdir()
    (home / "other" / "summary.json").write_text("{")
    result = explain(named_vit(), one, out=home / "dog")
    assert reference_of(result) is None
    (told,) = result.summary.references_not_used
    assert "cannot be read" in told


def test_an_audit_is_never_replaced(one, home):
    target = home / "photos-audit"
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds an audit, which an explanation does not rep"):
            explain(named_vit(), one, out=target, overwrite=overwrite)
    assert AuditResult.load(target).summary.data.num_images == 24


# --- what comes with vitscope --------------------------------------------------------------------


def test_shipped_means_are_used_where_they_fit(one, audited, tmp_path, monkeypatch):
    from vitscope.runs import references

    write_shipped(tmp_path / "tiny.safetensors", audited, "that come with vitscope: drawings")
    monkeypatch.setattr(references, "files", lambda _: tmp_path.parent)
    monkeypatch.setattr(references, "_SHIPPED", tmp_path.name)
    result = explain(named_vit(), one, FLOAT64)
    told = reference_of(result)
    assert (told.source, told.num_images, told.folder) == ("shipped", 24, None)
    (entry,) = result.summary.images
    assert entry.verdict.basis.endswith("24 images that come with vitscope: drawings")
    (given,) = explain(named_vit(), one, FLOAT64, reference=audited).summary.images
    assert entry.numbers.centred_share == given.numbers.centred_share
    for vit, config, layer, reason in (
        (named_vit(), RunConfig(size=40), None, "audited with size (32, 32)"),
        (named_vit(), RunConfig(), 0, "has layers [1], not 0"),
        (change_weights(named_vit()), RunConfig(), None, ""),
    ):
        result = explain(vit, one, config, layer=layer)
        assert reference_of(result) is None
        unused = result.summary.references_not_used
        assert len(unused) == bool(reason)
        assert reason in " ".join(unused)


@pytest.mark.real_weights
@pytest.mark.skipif(not embedded_available(), reason="the demo extra is not installed")
def test_dinov2_small_is_judged_against_means_that_come_with_vitscope(tmp_path, monkeypatch):
    from vitscope import load_model
    from vitscope.images.photographs import write_demo_photographs
    from vitscope.runs.references import Wanted, find_reference, read_reference

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_demo_photographs(tmp_path / "photos")
    vit = load_model("dinov2-small").hashed()
    cat = tmp_path / "photos" / "chelsea_whole.jpg"
    result = explain(vit, cat)
    told = reference_of(result)
    assert (told.source, told.num_images) == ("shipped", 255)
    assert "5 crops of each of 51 openly licensed photographs" in told.images
    assert {e.verdict.status for e in result.summary.images} <= {*VERDICTS}
    # They are means of these photographs: an audit of one crop of some has nearly the same, of
    # other photographs, or in another preprocessing, it would not.
    some = sorted((tmp_path / "photos").glob("*.jpg"))[::12]
    part = audit(vit, some, AuditConfig(features="drop", gallery=0))
    behaviour = vit.describe_behaviour()
    wanted = Wanted(
        weights_hash=part.manifest.weights_hash,
        behaviour=behaviour,
        layer=vit.last_layer,
        preprocessing=vit.preprocessing,
    )
    shipped, _ = find_reference(wanted, None)
    for name, mean in read_reference(part, wanted).means.items():
        assert torch.cosine_similarity(mean, shipped.means[name], dim=0) > 0.95, name
