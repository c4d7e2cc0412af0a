"""The verdict on models of known source: against a plain reference, and wherever it is shown."""

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file
from scipy.stats import t
from timm.models.vision_transformer import VisionTransformer

from audits import tiny_vit
from images import write_images
from vitscope import AuditConfig, audit, explain, wrap_model
from vitscope.figures.saved import load_results
from vitscope.report.page import render_report
from vitscope.report.verdicts import describe_verdict
from vitscope.terminal import make_comparison, make_report
from vitscope.testing import randomize
from vitscope.testing.planted import plant
from vitscope.training.curves import list_numbers

NUM_IMAGES = 120
CONFIG = AuditConfig(dtype="float64", gallery=0)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), NUM_IMAGES)


@pytest.fixture(scope="module")
def audits(images, tmp_path_factory):
    """Audits of planted and random models, each made once."""
    made = {}

    def get(name):
        if name not in made:
            planted = wrap_model(plant(name), model_id=name) if name in PLANTED else tiny_vit(name)
            config = AuditConfig(dtype="float64", gallery=0, layers="all")
            out = tmp_path_factory.mktemp("out") / name
            made[name] = audit(planted, images, config, out=out)
        return made[name]

    return get


PLANTED = {
    "patches": ("holds", "both"),
    "half_and_half": ("weakened", "source"),
    "skip_copy": ("broken", "source"),
    "registers_copy": ("broken", "source"),
}


def read_terms(result, layer):
    shards = sorted((result.folder / "features" / f"{layer:03d}").glob("*.safetensors"))
    rows = [load_file(shard) for shard in shards]
    names = [name for name in rows[0] if name.startswith("term/")]
    terms = {n.removeprefix("term/"): np.concatenate([r[n] for r in rows]) for n in names}
    return {name: rows.astype(np.float64) for name, rows in terms.items()}


def reference_share(term, r):
    """Σ ⟨c − mean c, r − mean r⟩ / Σ ‖r − mean r‖²."""
    c, r = term - term.mean(axis=0), r - r.mean(axis=0)
    return (c * r).sum() / (r * r).sum()


def reference_cka(x, y):
    """Unbiased linear CKA from the two n × n matrices."""

    def hsic(a, b):
        n = len(a)
        k, l = a @ a.T, b @ b.T  # noqa: E741
        np.fill_diagonal(k, 0)
        np.fill_diagonal(l, 0)
        mixed = k.sum(axis=0) @ l.sum(axis=0)
        last = k.sum() * l.sum() / ((n - 1) * (n - 2))
        return (np.sum(k * l) + last - 2 / (n - 2) * mixed) / (n * (n - 3))

    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def reference_interval(statistic, identities, *features):
    """Delete-one-block jackknife of unequal blocks, θ ± t(9) · standard error."""
    blocks = np.array([int(digest[:15], 16) % 10 for digest in identities])
    n, value = len(blocks), statistic(*features)
    present = np.unique(blocks)
    assert len(present) == 10
    left = np.array([statistic(*(f[blocks != b] for f in features)) for b in present])
    h = n / np.array([(blocks == b).sum() for b in present])
    pseudo = h * value - (h - 1) * left
    centre = 10 * value - ((1 - 1 / h) * left).sum()
    half = t.ppf(0.975, 9) * np.sqrt(((pseudo - centre) ** 2 / (h - 1)).mean())
    return value, value - half, value + half


def level(number, holds_from):
    return 2 if number >= holds_from else 1 if number >= 0.5 else 0


@pytest.mark.parametrize("name", [*PLANTED, "dinov2_reg"])
def test_readings_and_verdict_of_the_last_layer_are_the_references(audits, name):
    result = audits(name)
    summary, terms = result.summary, read_terms(result, 1)
    r = sum(terms.values())
    identities = result.images["image_id"].to_pylist()
    value, low, high = reference_interval(reference_share, identities, terms["patches"], r)
    share = summary.last.variance_share["residual"]["patches"]
    # Both are float64 sums over 120 images; the interval is a difference of ten of them.
    assert share.value == pytest.approx(value, abs=1e-11)
    assert share.ci95 == pytest.approx((low, high), abs=1e-9)
    near = sorted(level(round(1 - abs(1 - end), 3), 0.8) for end in (low, high))
    value, low, high = reference_interval(reference_cka, identities, r, terms["patches"])
    cka = summary.last.cka["residual"]["patches"]
    assert cka.unbiased == pytest.approx(value, abs=1e-9)
    assert cka.ci95 == pytest.approx((low, min(1, high)), abs=1e-7)
    aligned = sorted(level(round(end, 3), 0.9) for end in (low, high))
    worst, best = (min(pair) for pair in zip(near, aligned, strict=True))
    expected = ("broken", "weakened", "holds")[worst] if worst == best else "borderline"
    if (worst, best) == (0, 2):
        expected = "not enough images"
    assert summary.last.verdict.status == expected


@pytest.mark.parametrize(("name", "expected"), PLANTED.items())
def test_planted_sources_are_found_out(audits, name, expected):
    summary = audits(name).summary
    assert summary.last.cka["residual"]["patches"].unbiased > 0.98
    assert (summary.last.verdict.status, summary.last.verdict.decided_by) == expected
    assert "CKA cannot distinguish sources here" in summary.last.verdict.text
    assert summary.last.verdict.main_other_source == (
        "skip" if name in {"half_and_half", "skip_copy"} else "registers"
    )


def test_one_percent_of_what_was_there_already_is_broken(audits):
    shares = audits("skip_copy").summary.last.variance_share["residual"]
    assert shares["patches"].value < 0.02
    assert shares["skip"].value > 0.98


def test_every_layer_has_its_verdict_everywhere(audits):
    result = audits("skip_copy")
    summary = result.summary
    layers = summary.layers
    assert [layer.verdict.status for layer in layers] == ["holds", "broken"]
    console = Console(width=200, record=True, file=StringIO())
    console.print(make_report(summary), make_comparison([summary]))
    shown = console.export_text()
    page = render_report(load_results([result.folder]))
    for text in (shown, result._repr_html_(), page):
        assert "The verdict of each layer" in text
        assert summary.last.verdict.text[1:] in " ".join(text.split()).replace(
            "&#39;", "'"
        ).replace("&#x27;", "'")
    (loaded,) = load_results([result.folder])
    rows = describe_verdict(loaded)["table"].sections[0]
    assert [(row[0], row[-1]) for row in rows] == [("0", "holds"), ("1", "broken")]


def test_training_logs_the_verdict_and_both_intervals_of_each_layer(audits):
    summary = audits("skip_copy").summary
    numbers = list_numbers(summary)
    assert numbers["vitscope/verdict"] == 0
    assert numbers["vitscope/layer_00/verdict"] == 2
    for prefix, content in (("", summary.last), ("layer_00/", summary.layers[0])):
        for name in ("cka", "variance_share"):
            low, high = getattr(content, name)["residual"]["patches"].ci95
            assert numbers[f"vitscope/{prefix}{name}_residual_patches_low"] == low
            assert numbers[f"vitscope/{prefix}{name}_residual_patches_high"] == high

    def judged(**changes):
        verdict = replace(summary.last.verdict, **changes)
        return replace(summary, layers=(replace(summary.last, verdict=verdict),))

    spans = {"alignment": ("holds", "holds"), "source": ("weakened", "holds")}
    assert list_numbers(judged(status="borderline", **spans))["vitscope/verdict"] == 1.5
    assert "vitscope/verdict" not in list_numbers(judged(status="not enough images"))


def test_a_pooling_head_that_reads_other_tokens_has_both_readings(images):
    module = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=1,
        num_heads=4,
        num_classes=0,
        reg_tokens=2,
        global_pool="map",
        pool_include_prefix=True,
    )
    vit = wrap_model(randomize(module), model_id="pooling head")
    summary = audit(vit, images, CONFIG).summary
    assert set(summary.last.variance_share["residual"]) == {"patches", "cls", "registers"}
    assert summary.last.verdict.main_other_source in {"cls", "registers"}
    assert summary.last.verdict.status != "not enough images"
    assert "by construction" not in summary.last.verdict.text


def test_a_pooling_head_that_reads_patches_alone_holds_by_construction(images):
    few = sorted(images.iterdir())[:5]
    summary = audit(tiny_vit("siglip"), few, CONFIG).summary
    assert (summary.last.verdict.status, summary.last.verdict.decided_by) == ("holds", None)
    assert summary.last.verdict.text.startswith("patch integration holds by construction: ")


def test_every_verdict_on_a_model_that_averages_its_patches_says_so_first(images):
    few = sorted(images.iterdir())[:5]
    vit = tiny_vit("vit_avg")
    told = "[CLS] is not this model's output (timm averages its patches): "
    audited = audit(vit, few, AuditConfig(dtype="float64", gallery=0, layers="all"))
    for layer in audited.summary.layers:
        assert layer.verdict.text.startswith(f"{told}not enough images")
    (image,) = explain(vit, few[:1]).summary.images
    assert image.verdict.text.startswith(f"{told}cannot tell")


def test_no_interval_of_cka_passes_one(images):
    """Ten images of a CKA near 1: estimate ± half the width would end beyond."""
    few = sorted(images.iterdir())[:10]
    summary = audit(tiny_vit(), few, CONFIG).summary
    cka = summary.last.cka["residual"]
    cut = {part: one for part, one in cka.items() if one.ci95 and one.ci95[1] == 1}
    assert cut
    assert all(one.ci95 is None or one.ci95[1] <= 1 for one in cka.values())
