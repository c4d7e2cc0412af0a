"""Real DINOv2 ViT-S/14 weights: the paper's image of a small model, through every back end."""

import re

import pytest
import timm
import torch

from hub_twin import DinoVisionTransformer
from vitscope import AuditConfig, ImageSet, audit, decompose, wrap_model
from vitscope.adapters.transformers_families import FAMILIES
from vitscope.images.image_set import iter_batches
from vitscope.images.photographs import write_demo_photographs
from vitscope.weights.embedded import embedded_available, load_embedded_dinov2

pytestmark = [
    pytest.mark.real_weights,
    pytest.mark.skipif(
        not embedded_available(), reason="the packages of the demo extra are absent"
    ),
]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    write_demo_photographs(folder)
    # The whole of each photograph, not its crops: images that are independent.
    return sorted(folder.glob("*whole*"))


@pytest.fixture(scope="module")
def real():
    return load_embedded_dinov2()


@pytest.fixture(scope="module")
def summary(real, photographs):
    vit = wrap_model(real, preprocessing=FAMILIES["dinov2"].preprocessing)
    return audit(vit, photographs, AuditConfig(batch_size=17)).summary


def test_the_numbers_are_those_of_a_small_model(summary):
    """The figures were measured on 250 ImageNet photographs; these are 51 others.

    Norms differ from image to image by a tenth (standard deviation 3.3 of 30.5), and these
    images hold textures and drawings that ImageNet has few of: 8 % is the margin of their mean.
    """
    assert summary.ledger.max_balance_error < 1e-5
    assert summary.last.attention_mass["patches"].mean == pytest.approx(0.945, abs=0.025)
    norms = {name: value.mean for name, value in summary.last.contribution_norm.items()}
    assert norms["patches"] == pytest.approx(30.5, rel=0.08)
    assert norms["skip"] == pytest.approx(15.9, rel=0.08)
    assert norms["cls"] == pytest.approx(1.0, abs=0.4)
    assert norms["bias"] == pytest.approx(38.7, rel=0.01)
    cka = {r: summary.last.cka[r] for r in ("residual", "attention")}
    assert cka["residual"]["patches"].biased == pytest.approx(0.997, abs=0.003)
    assert cka["attention"]["patches"].biased == pytest.approx(0.9997, abs=0.0005)
    assert cka["residual"]["skip"].biased == pytest.approx(0.62, abs=0.1)
    shares = {n: s.value for n, s in summary.last.variance_share["residual"].items()}
    assert shares == pytest.approx({"patches": 0.910, "skip": 0.078, "cls": 0.012}, abs=0.02)
    centred = summary.last.centred_cosine["attention"]["patches"]
    assert centred.p50 == pytest.approx(0.998, abs=0.003)
    verdict = summary.last.verdict
    assert verdict.alignment == verdict.source == ("holds", "holds")
    assert summary.last.verdict.status == "not enough images"  # 51: a kind of image may be missing
    assert summary.last.verdict.main_other_source == "skip"


def test_the_cls_token_turns_at_the_very_last_layer(summary):
    """−0.01 at the embeddings, −0.32 before the last block, on those 250; here −0.02 and −0.34."""
    means = [row.mean for row in summary.layer_similarity]
    assert len(means) == 13
    assert means[0] == pytest.approx(-0.01, abs=0.03)
    assert means[11] == pytest.approx(-0.32, abs=0.06)
    assert all(-0.45 < mean < 0 for mean in means[:12])
    last = summary.layer_similarity[12]
    assert (last.p05, last.mean, last.p95) == pytest.approx((1, 1, 1), abs=1e-14)


def test_a_small_model_without_registers_is_clean(summary):
    """No patch is an outlier at any depth, though norms reach three times the median."""
    rows = summary.high_norm_tokens
    assert len(rows) == 13
    for depth, row in enumerate(rows):
        assert (row.threshold, row.position_share) == (None, None)
        # None are found; of the last depth norms are known of verified images alone.
        assert row.fraction is row.images_fraction is None
        assert (row.fraction_at_most is None) == (depth == 12)
    assert max(row.max / row.median for row in rows) > 2.5
    anatomy = summary.last.anatomy
    assert (anatomy.dominant_register, anatomy.analysed) == (None, None)
    assert set(anatomy.tokens) == {"cls", "highest_patch"}
    assert summary.interdependence is None


def test_patches_write_more_than_the_skip_connection_carries(summary):
    """The paper's Fig. 5a for a small model; 30.5 against 15.9 on ImageNet."""
    norms = {name: value.mean for name, value in summary.last.contribution_norm.items()}
    assert norms["patches"] / norms["skip"] == pytest.approx(30.5 / 15.9, rel=0.15)
    # What the skip connection carries is what enters the block on [CLS].
    assert norms["skip"] == pytest.approx(summary.last.anatomy.norms["cls"].mean, rel=1e-6)
    ledger = summary.last.gram_ledger["residual"]
    assert ledger["patches"]["patches"].unbiased == pytest.approx(0.91, abs=0.05)
    assert ledger["patches"]["patches"].unbiased > 10 * ledger["skip"]["skip"].unbiased


def rename(state):
    """transformers' names of DINOv2 weights as timm and the hub code have them."""
    pairs = (
        (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.", ""),
        (r"encoder\.layer\.", "blocks."),
        (r"attention\.o_proj", "attn.proj"),
        (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
        (r"^layernorm\.", "norm."),
    )
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    for name in [name for name in renamed if ".attention.q_proj." in name]:
        parts = [renamed.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        renamed[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    return renamed


def as_timm(real):
    module = timm.create_model("vit_small_patch14_dinov2", dynamic_img_size=True)
    state = rename(real.state_dict())
    state.pop("mask_token")
    module.load_state_dict(state)
    return module


def as_hub(real):
    module = DinoVisionTransformer(
        img_size=518, patch_size=14, embed_dim=384, depth=12, num_heads=6, init_values=1.0
    )
    module.load_state_dict(rename(real.state_dict()))
    return module


@pytest.mark.parametrize("convert", [as_timm, as_hub])
def test_the_same_weights_give_the_same_ledger_in_every_library(real, photographs, convert):
    # At 518 px nothing is resampled: back ends resample position embeddings each in their own way.
    preprocessing = FAMILIES["dinov2"].preprocessing.with_size((518, 518))
    images = ImageSet.from_sources(photographs[:1], preprocessing)
    pixels = next(iter_batches(images, batch_size=1)).pixels
    expected = decompose(wrap_model(real), pixels)
    found = decompose(wrap_model(convert(real)), pixels)
    assert found.groups == expected.groups
    # Twelve float32 blocks apart by the order of their sums: 1e-5 of the row's size is rounding.
    size = expected.residual_total.norm(dim=-1).max()
    for name in ("attention_mass", "contributions", "skip", "bias"):
        difference = (getattr(found, name) - getattr(expected, name)).norm(dim=-1).max()
        assert difference <= 1e-5 * size, name
