"""What an image is held against: the audit's own numbers, which reference is used, and none at all.

Tolerance 1e-9: float64 on both sides, sums over 24 images of numbers of size 1 to 100.
"""

import json
import math
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from audits import tiny_vit
from pictures import write_pictures
from vitscope import AuditConfig, AuditResult, Explanation, RunConfig, audit, explain
from vitscope.cli import main
from vitscope.errors import UsageError
from vitscope.figures.saved import load_results
from vitscope.models.embedded_file import embedded_available
from vitscope.report.pictures import collect_pictures

FLOAT64 = RunConfig(dtype="float64")
TERMS = ("patches", "registers", "cls", "skip")
VERDICTS = ("most", "part", "do not read")


def named_vit(name="dinov2_reg"):
    """A model whose id the command line would take."""
    return tiny_vit(name).named(f"tiny/{name}", "made on the spot")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images that are not square: an audit crops them."""
    folder = tmp_path_factory.mktemp("photos")
    write_pictures(folder, 12, size=(70, 44))
    write_pictures(folder, 12, size=(40, 61), start=12)
    return folder


@pytest.fixture(scope="module")
def audited(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audits") / "audit"
    return audit(named_vit(), photos, AuditConfig(dtype="float64", gallery=24), out=folder)


@pytest.fixture(scope="module")
def one(photos):
    return photos / "0003.png"


def statuses_of(gallery):
    found = {}
    for entry in gallery["pictures"]:
        words = {
            "most": "where most of it",
            "part": "only part of",
            "do not read": "do not read",
            "cannot tell": "cannot tell",
        }
        told = entry["told"].lower()
        (found[entry["path"]],) = [status for status, text in words.items() if text in told]
    return found


# --- an audit and an explanation that is held against it say the same ----------------------------


def test_numbers_equal_the_audits_own_to_rounding(photos, audited):
    result = explain(named_vit(), photos, FLOAT64, reference=audited)
    rows = {row["path"]: row for row in audited.images.to_pylist()}
    assert len(result) == len(rows) == 24
    for entry in result.summary["pictures"]:
        row = rows[entry["path"]]
        for term in TERMS:
            share = row[f"centred_share_{term}"]
            assert entry["centred_share"][term] == pytest.approx(share, abs=1e-9)
            found = entry["centred_cosine"]["residual"][term]
            assert found == pytest.approx(row[f"centred_cosine_residual_{term}"], abs=1e-9)
        assert sum(entry["centred_share"].values()) == pytest.approx(1, abs=1e-9)
        assert entry["verdict"]["share"] == entry["centred_share"]["patches"]
        assert entry["framing"] == "cropped"
        assert entry["grid"] == [4, 4]


def test_the_reports_gallery_and_explain_give_one_status_each(photos, audited, tmp_path):
    explain(named_vit(), photos, reference=audited, out=tmp_path / "explained")
    results = load_results([audited.folder, tmp_path / "explained"])
    of_audit, of_explanation = map(statuses_of, collect_pictures(results)["galleries"])
    assert of_audit == of_explanation
    assert len(of_audit) == 24
    assert set(of_audit.values()) <= {*VERDICTS}


def test_the_map_sums_to_the_share_of_the_verdict(photos, audited):
    result = explain(named_vit(), photos, FLOAT64, reference=audited)
    for index in range(len(result)):
        picture = result.read_picture(index)
        share = picture.numbers["centred_share"]["patches"]
        assert picture.centred_share.sum() == pytest.approx(share, abs=1e-9)
        assert picture.head_centred_share.sum(axis=0) == pytest.approx(picture.centred_share)
        # What is raw stays raw.
        assert picture.share.sum() == pytest.approx(picture.numbers["share"]["patches"], abs=1e-9)


def test_a_gallery_over_few_images_cannot_tell_as_explain_refuses_it(photos, tmp_path):
    few = sorted(photos.iterdir())[:6]
    small = audit(named_vit(), few, AuditConfig(gallery=6), out=tmp_path / "few")
    (gallery,) = collect_pictures(load_results([small.folder]))["galleries"]
    assert set(statuses_of(gallery).values()) == {"cannot tell"}
    with pytest.raises(UsageError, match="holds 6 images, whose means say little: audit 20 or mor"):
        explain(named_vit(), few, reference=small)


# --- without a reference -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "layer", "command"),
    [
        (RunConfig(), None, "--model tiny/dinov2_reg --out DIR"),
        (RunConfig(size="40"), None, "--model tiny/dinov2_reg --size 40 --out DIR"),
        (RunConfig(draft=True), 0, "--model tiny/dinov2_reg --layers 0 --draft --out DIR"),
    ],
)
def test_without_a_reference_nothing_is_judged(one, config, layer, command):
    (entry,) = explain(named_vit(), one, config, layer=layer).summary["pictures"]
    verdict = entry["verdict"]
    assert verdict["status"] == "cannot tell"
    assert verdict["share"] is None
    assert verdict["text"] == (
        f"cannot tell without a reference: run `vitscope audit IMAGES {command}` and give it with "
        "--reference DIR"
    )
    assert "raw" in verdict["basis"]
    assert "centred_share" not in entry


def test_a_wrapped_model_is_told_no_command_that_cannot_work(one):
    (entry,) = explain(tiny_vit(), one).summary["pictures"]
    assert entry["verdict"]["text"] == (
        "cannot tell without a reference: audit images with this model and give the result as "
        "`reference`"
    )


def test_attention_pooling_over_patches_alone_needs_none(photos, one):
    vit = named_vit("siglip")
    (alone,) = explain(vit, one).summary["pictures"]
    reference = audit(vit, photos, AuditConfig(dtype="float64"))
    (held,) = explain(vit, one, reference=reference).summary["pictures"]
    assert alone["verdict"]["status"] == held["verdict"]["status"] == "most"
    assert alone["verdict"]["text"] == held["verdict"]["text"]


# --- which reference is used ---------------------------------------------------------------------


@pytest.fixture
def home(audited, tmp_path):
    """A folder with an audit in it."""
    shutil.copytree(audited.folder, tmp_path / "home" / "photos-audit")
    return tmp_path / "home"


def reference_of(result):
    return result.summary["reference"]


def test_one_that_is_given_is_named(one, audited):
    result = explain(named_vit(), one, reference=audited)
    told = reference_of(result)
    assert told["source"] == "given"
    assert told["num_images"] == 24
    assert told["folder"] == str(audited.folder)
    (entry,) = result.summary["pictures"]
    assert entry["verdict"]["basis"] == (
        f"shares of r − mean r, means over 24 images of the audit {audited.folder}"
    )
    assert result.provenance["reference"] == told


@pytest.mark.parametrize("place", ["home/dog", "home/photos-audit/dog", "other/photos-audit/dog"])
def test_an_audit_beside_the_result_is_found_and_named(one, home, place):
    if place.startswith("other"):  # OUT/MODEL, with MODEL beside OUT
        place = "home/dogs/photos-audit"
    result = explain(named_vit(), one, FLOAT64, out=home.parent / place)
    told = reference_of(result)
    assert told["source"] == "found"
    assert told["folder"] == str(home / "photos-audit")
    assert "home/photos-audit, which lies beside this result" in told["images"]
    given = explain(named_vit(), one, FLOAT64, reference=AuditResult.load(home / "photos-audit"))
    found, expected = result.summary["pictures"][0], given.summary["pictures"][0]
    assert found["centred_share"] == expected["centred_share"]
    assert reference_of(given)["means_digest"] == told["means_digest"]


def test_of_several_the_one_over_the_most_images_is_used(one, photos, home):
    few = sorted(photos.iterdir())[:21]
    audit(named_vit(), few, AuditConfig(), out=home / "a-few")
    assert reference_of(explain(named_vit(), one, out=home / "dog"))["num_images"] == 24


def change_weights(vit):
    vit.module.blocks[0].attn.proj.bias.data += 1
    return vit


@pytest.mark.parametrize(
    ("vit", "config", "layer", "reason"),
    [
        (named_vit, RunConfig(size="40"), None, r"audited with size [32, 32]"),
        (named_vit, RunConfig(draft=True), None, "audited with draft False"),
        (named_vit, RunConfig(), 0, "holds layers [1], not 0"),
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
    assert result.summary["pictures"][0]["verdict"]["status"] == "cannot tell"
    told = " ".join(result.summary["references_not_used"])
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
    (told,) = result.summary["references_not_used"]
    assert "cannot be read" in told


def test_an_audit_is_never_replaced(one, home):
    target = home / "photos-audit"
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds an audit, which an explanation does not rep"):
            explain(named_vit(), one, out=target, overwrite=overwrite)
    assert AuditResult.load(target).summary["data"]["num_images"] == 24


# --- what comes with vitscope --------------------------------------------------------------------


def test_shipped_means_are_used_where_they_fit(one, audited, tmp_path, monkeypatch):
    from vitscope.runs import references

    references.write_shipped(
        tmp_path / "tiny.safetensors", audited, "that come with vitscope: drawings"
    )
    monkeypatch.setattr(references, "files", lambda _: tmp_path.parent)
    monkeypatch.setattr(references, "_SHIPPED", tmp_path.name)
    result = explain(named_vit(), one, FLOAT64)
    told = reference_of(result)
    assert (told["source"], told["num_images"], told["folder"]) == ("shipped", 24, None)
    (entry,) = result.summary["pictures"]
    assert entry["verdict"]["basis"].endswith("24 images that come with vitscope: drawings")
    (given,) = explain(named_vit(), one, FLOAT64, reference=audited).summary["pictures"]
    assert entry["centred_share"] == given["centred_share"]
    for vit, config, layer, reason in (
        (named_vit(), RunConfig(size="40"), None, "audited with size [32, 32]"),
        (named_vit(), RunConfig(), 0, "holds layers [1], not 0"),
        (change_weights(named_vit()), RunConfig(), None, ""),
    ):
        result = explain(vit, one, config, layer=layer)
        assert reference_of(result) is None
        unused = result.summary["references_not_used"]
        assert len(unused) == bool(reason)
        assert reason in " ".join(unused)


@pytest.mark.real_weights
@pytest.mark.skipif(not embedded_available(), reason="the demo extra is not installed")
def test_dinov2_small_is_judged_against_means_that_come_with_vitscope(tmp_path, monkeypatch):
    from vitscope import load_model
    from vitscope.pictures.photographs import write_demo_photographs
    from vitscope.runs.references import Wanted, find_reference, read_reference

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_demo_photographs(tmp_path / "photos")
    vit = load_model("dinov2-small").hashed()
    cats = sorted((tmp_path / "photos").glob("chelsea*"))
    result = explain(vit, cats)
    told = reference_of(result)
    assert (told["source"], told["num_images"]) == ("shipped", 255)
    assert "5 crops of each of 51 openly licensed photographs" in told["images"]
    assert {e["verdict"]["status"] for e in result.summary["pictures"]} <= {*VERDICTS}
    # They are means of these photographs: an audit of one crop of each has nearly the same, of
    # other photographs, or in another preprocessing, it would not.
    some = sorted((tmp_path / "photos").glob("*.jpg"))[::5]
    part = audit(vit, some, AuditConfig(features="drop", gallery=0))
    wanted = Wanted.of(part.manifest.weights_hash, vit.last_layer, vit.preprocessing)
    shipped, _ = find_reference(wanted, None)
    for name, mean in read_reference(part, wanted).means.items():
        assert torch.cosine_similarity(mean, shipped.means[name], dim=0) > 0.95, name


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    import vitscope.models.registry as registry

    monkeypatch.setattr(registry, "_load_by_address", lambda _: named_vit())
    monkeypatch.setenv("COLUMNS", "60")

    def run(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


MODEL = ("--model", "tiny/dinov2_reg", "--dtype", "float64")


def test_the_command_that_the_verdict_names_works_as_it_stands(command, photos, one, tmp_path):
    code, out, _ = command("explain", one, *MODEL, "--size", 40, "--out", tmp_path / "dog")
    assert code == 0
    assert "raw shares of the whole output: patches" in " ".join(out.split())
    assert "most of it" not in out
    assert "part of" not in out
    # On one line, whatever the terminal's width: it is there to be copied.
    (line,) = [line for line in out.splitlines() if line.startswith("cannot tell without a refer")]
    advised = shlex.split(line.split("`")[1].replace("IMAGES", str(photos)))
    assert advised[0] == "vitscope"
    audits = tmp_path / "audits"
    advised = [str(audits) if word == "DIR" else word for word in advised[1:]]
    code, _, err = command(*advised, "--no-report")
    assert (code, err.count("vitscope:")) == (0, 0), err
    code, out, err = command(
        "explain", one, *MODEL, "--size", 40, "--reference", audits, "--out", tmp_path / "again"
    )
    assert (code, err.count("Traceback")) == (0, 0)
    summary = Explanation.load(tmp_path / "again" / "tiny-dinov2_reg").summary
    assert summary["reference"]["source"] == "given"
    assert f"24 images of the audit {audits}/tiny-dinov2_reg" in "".join(
        summary["pictures"][0]["verdict"]["basis"]
    )


def test_an_audit_in_out_is_used_and_stays(command, photos, one, tmp_path):
    out = tmp_path / "out"
    assert command("audit", photos, *MODEL, "--no-report", "--out", out)[0] == 0
    before = (out / "tiny-dinov2_reg" / "summary.json").read_bytes()
    for more in ((), ("--overwrite",)):
        code, printed, _ = command("explain", one, *MODEL, "--out", out, *more)
        assert code == 0
        assert "which lies beside this result" in " ".join(printed.split())
        told = Explanation.load(out / "tiny-dinov2_reg-explained").summary["reference"]
        assert told["source"] == "found"
        assert Path(told["folder"]) == out / "tiny-dinov2_reg"
    assert (out / "tiny-dinov2_reg" / "summary.json").read_bytes() == before


def test_notes_on_references_that_were_not_used_are_printed(command, one, home):
    code, out, _ = command("explain", one, *MODEL, "--size", 40, "--out", home)
    assert code == 0
    assert "not used: the reference" in " ".join(out.split())


# --- figures -------------------------------------------------------------------------------------


def words_of(explanation):
    from vitscope.figures.maps import plot_explanations

    texts = plot_explanations([explanation], 0, heads=True).texts
    return " ".join(" ".join(text.get_text() for text in texts).replace("\u00a0", " ").split())


def test_a_figure_shows_one_account(one, audited):
    result = explain(named_vit(), one, reference=audited)
    numbers, words = result.read_picture(0).numbers, words_of(result)
    assert f"patches {100 * numbers['centred_share']['patches']:.1f} %".replace("-", "−") in words
    assert f"cos(c_patches, t) = {numbers['centred_cosine']['attention']['patches']:.3f}" in words
    assert "raw" not in words
    assert "bias" not in words
    assert f"{100 * numbers['share']['patches']:.1f} %" not in words
    alone = explain(named_vit(), one)
    numbers, words = alone.read_picture(0).numbers, words_of(alone)
    assert f"patches {100 * numbers['share']['patches']:.1f} %".replace("-", "−") in words
    assert "raw: % of the whole output r" in words
    assert "raw: cos(c_patches, t)" in words
    assert "Cannot tell without a reference" in words
    assert not any(claim in words for claim in ("patches carry", "mean r,", "most of it"))


def test_a_notebook_shows_raw_numbers_as_raw(one, audited):
    alone = explain(named_vit(), one)._repr_html_()
    assert "cannot tell without a reference" in alone
    assert "raw shares of the whole output: patches" in alone
    assert "raw" not in explain(named_vit(), one, reference=audited)._repr_html_()


def test_the_summary_is_plain_json(one, audited, tmp_path):
    result = explain(named_vit(), one, reference=audited, out=tmp_path / "e")
    text = (result.folder / "summary.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    told = json.loads(text)["reference"]
    assert told.keys() == {
        *("source", "images", "num_images", "model_id", "folder", "means_digest")
    }
    assert not math.isnan(json.loads(text)["pictures"][0]["verdict"]["share"])
    assert asdict(result.read_picture(0).verdict)["status"] in VERDICTS
