"""What an image is held against: the audit's own numbers, and none at all; the command and figures.

Tolerance 1e-9: float64 on both sides, sums over 24 images of numbers of size 1 to 100.
"""

import json
import math
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest

from audits import named_vit, tiny_vit
from vitscope import AuditConfig, Explanation, RunConfig, audit, explain
from vitscope.cli import main
from vitscope.errors import UsageError
from vitscope.figures.saved import load_results
from vitscope.report.embedded_images import collect_images

FLOAT64 = RunConfig(dtype="float64")
TERMS = ("patches", "registers", "cls", "skip")
VERDICTS = ("most", "part", "do not read")


def statuses_of(gallery):
    found = {}
    for entry in gallery["images"]:
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
    for entry in result.summary.images:
        row = rows[entry.path]
        for term in TERMS:
            share = row[f"centred_share_{term}"]
            assert entry.numbers.centred_share[term] == pytest.approx(share, abs=1e-9)
            found = entry.numbers.centred_cosine["residual"][term]
            assert found == pytest.approx(row[f"centred_cosine_residual_{term}"], abs=1e-9)
        assert sum(entry.numbers.centred_share.values()) == pytest.approx(1, abs=1e-9)
        assert entry.verdict.share == entry.numbers.centred_share["patches"]
        assert entry.framing == "cropped"
        assert entry.grid == (4, 4)


def test_the_reports_gallery_and_explain_give_one_status_each(photos, audited, tmp_path):
    explain(named_vit(), photos, reference=audited, out=tmp_path / "explained")
    results = load_results([audited.folder, tmp_path / "explained"])
    of_audit, of_explanation = map(statuses_of, collect_images(results)["galleries"])
    assert of_audit == of_explanation
    assert len(of_audit) == 24
    assert set(of_audit.values()) <= {*VERDICTS}


def test_the_map_sums_to_the_share_of_the_verdict(photos, audited):
    result = explain(named_vit(), photos, FLOAT64, reference=audited)
    for index in range(len(result)):
        image = result.read_image(index)
        share = image.numbers.centred_share["patches"]
        assert image["centred_share"].sum() == pytest.approx(share, abs=1e-9)
        assert image.maps["centred_share"].heads.sum(axis=0) == pytest.approx(
            image["centred_share"]
        )
        # What is raw stays raw.
        assert image["share"].sum() == pytest.approx(image.numbers.share["patches"], abs=1e-9)


def test_a_gallery_over_few_images_cannot_tell_as_explain_refuses_it(photos, tmp_path):
    few = sorted(photos.iterdir())[:6]
    small = audit(named_vit(), few, AuditConfig(gallery=6), out=tmp_path / "few")
    (gallery,) = collect_images(load_results([small.folder]))["galleries"]
    assert set(statuses_of(gallery).values()) == {"cannot tell"}
    with pytest.raises(UsageError, match="has 6 images, too few for a reference: audit 20"):
        explain(named_vit(), few, reference=small)


# --- without a reference -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "layer", "command"),
    [
        (RunConfig(), None, "--model tiny/dinov2_reg --out DIR"),
        (RunConfig(size=40), None, "--model tiny/dinov2_reg --size 40 --out DIR"),
        (RunConfig(size=(24, 40)), None, "--model tiny/dinov2_reg --size 24x40 --out DIR"),
        (RunConfig(draft=True), 0, "--model tiny/dinov2_reg --layers 0 --draft --out DIR"),
    ],
)
def test_without_a_reference_nothing_is_judged(one, config, layer, command):
    (entry,) = explain(named_vit(), one, config, layer=layer).summary.images
    verdict = entry.verdict
    assert verdict.status == "cannot tell"
    assert math.isnan(verdict.share)
    assert verdict.text == (
        f"cannot tell what attention leaves out without a reference: run `vitscope audit IMAGES "
        f"{command}` on 100 images or more, and give DIR as reference"
    )
    assert "raw" in verdict.basis
    assert entry.numbers.centred_share == {}
    assert entry.numbers.centred_cosine == {}


def test_a_wrapped_model_is_told_no_command_that_cannot_work(one):
    (entry,) = explain(tiny_vit(), one).summary.images
    assert entry.verdict.text == (
        "cannot tell what attention leaves out without a reference: audit 100 or more images with "
        "this model and give the result as reference"
    )


def test_attention_pooling_over_patches_alone_needs_none(photos, one):
    vit = named_vit("siglip")
    (alone,) = explain(vit, one).summary.images
    reference = audit(vit, photos, AuditConfig(dtype="float64"))
    (held,) = explain(vit, one, reference=reference).summary.images
    assert alone.verdict.status == held.verdict.status == "most"
    assert alone.verdict.text == held.verdict.text


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    import vitscope.adapters.registry as registry

    monkeypatch.setattr(registry, "_load_by_address", lambda _: named_vit())
    monkeypatch.setattr("vitscope.cli.each_model.check_weights", lambda _: None)
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
    (line,) = [line for line in out.splitlines() if line.startswith("cannot tell what attention")]
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
    assert summary.reference.source == "given"
    assert f"24 images of the audit {audits}/tiny-dinov2_reg" in "".join(
        summary.images[0].verdict.basis
    )


def test_an_audit_in_out_is_used_and_stays(command, photos, one, tmp_path):
    out = tmp_path / "out"
    assert command("audit", photos, *MODEL, "--no-report", "--out", out)[0] == 0
    before = (out / "tiny-dinov2_reg" / "summary.json").read_bytes()
    for more in ((), ("--overwrite",)):
        code, printed, _ = command("explain", one, *MODEL, "--out", out, *more)
        assert code == 0
        assert "next to this result" in " ".join(printed.split())
        told = Explanation.load(out / "tiny-dinov2_reg-explained").summary.reference
        assert told.source == "found"
        assert Path(told.folder) == out / "tiny-dinov2_reg"
    assert (out / "tiny-dinov2_reg" / "summary.json").read_bytes() == before


def test_notes_on_references_that_were_not_used_are_printed(command, one, home):
    code, out, _ = command("explain", one, *MODEL, "--size", 40, "--out", home)
    assert code == 0
    assert "not used: the reference" in " ".join(out.split())


# --- figures -------------------------------------------------------------------------------------


def words_of(explanation):
    texts = explanation.plot("maps", heads=True).texts
    return " ".join(" ".join(text.get_text() for text in texts).replace("\u00a0", " ").split())


def test_a_figure_shows_one_account(one, audited):
    result = explain(named_vit(), one, reference=audited)
    numbers, words = result.read_image(0).numbers, words_of(result)
    assert f"patches {100 * numbers.centred_share['patches']:.1f} %".replace("-", "−") in words
    assert f"cos(c_patches, t) = {numbers.centred_cosine['attention']['patches']:.3f}" in words
    assert "raw" not in words
    assert "bias" not in words
    assert f"{100 * numbers.share['patches']:.1f} %" not in words
    alone = explain(named_vit(), one)
    numbers, words = alone.read_image(0).numbers, words_of(alone)
    assert f"patches {100 * numbers.share['patches']:.1f} %".replace("-", "−") in words
    assert "raw: % of the whole output r" in words
    assert "raw: cos(c_patches, t)" in words
    assert "Cannot tell what attention leaves out without a reference" in words
    assert not any(claim in words for claim in ("patches together", "mean r,", "leaves little out"))


def test_a_notebook_shows_raw_numbers_as_raw(one, audited):
    alone = explain(named_vit(), one)._repr_html_()
    assert "cannot tell what attention leaves out without a reference" in alone
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
    assert not math.isnan(json.loads(text)["images"][0]["verdict"]["share"])
    assert asdict(result.read_image(0).verdict)["status"] in VERDICTS
