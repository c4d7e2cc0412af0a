"""Models that average their tokens: maps that need no row are made of them, the rest is refused."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from support_table import AVERAGED_MODELS, tiny_pixels
from vitscope import audit, decompose, explain, map_tokens, one_shot, wrap_model
from vitscope.errors import UnsupportedModelError
from vitscope.maps.method import MapInput
from vitscope.maps.passes import run_blocks
from vitscope.maps.references import make_references
from vitscope.maps.registry import METHODS
from vitscope.maps.targets import explain_self
from vitscope.maps.traced import trace_output
from vitscope.testing import randomize

WITHOUT_ROW = {
    "rollout_norm": r"only where the global feature is \[CLS\].*: use rollout",
    **dict.fromkeys(
        ("attention", "contribution_norm", "share", "cdam", "gradcam", "vit_cx"),
        "no attention row makes the global feature of .*: choose maps that need none",
    ),
}
TOWER = "timm/vit_reg_gap"


def adapt(name):
    return wrap_model(AVERAGED_MODELS[name]()).to("cpu", torch.float64)


def make_input(name):
    vit = adapt(name)
    pixels = tiny_pixels(vit).double()
    references = make_references(vit, [pixels.flip(-1), pixels.flip(-2)])
    return MapInput(vit=vit, pixels=pixels, choice=explain_self, references=references)


@pytest.fixture(scope="module")
def given():
    return {name: make_input(name) for name in AVERAGED_MODELS}


@pytest.mark.parametrize("name", AVERAGED_MODELS)
def test_they_are_read_as_averages(given, name):
    vit = given[name].vit
    layout = given[name].layout
    assert (vit.info.global_feature, layout.query, dict(vit.blocks)) == ("average", None, {})
    assert len(vit.encoder_blocks) == vit.info.depth
    assert layout.averaged is not None


@pytest.mark.parametrize("run", [audit, decompose, explain, map_tokens, one_shot])
def test_what_needs_a_row_is_refused_in_one_sentence(run, images):
    vit = adapt(TOWER)
    given = tiny_pixels(vit) if run in {decompose, map_tokens} else images
    with pytest.raises(UnsupportedModelError, match=r"no attention row.*traced") as caught:
        run(vit, given, **({"labels": [0, 1] * 13} if run is one_shot else {}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", AVERAGED_MODELS)
def test_every_map_is_made_or_refused_with_its_reason(given, name, method):
    if method in WITHOUT_ROW:
        with pytest.raises(UnsupportedModelError, match=WITHOUT_ROW[method]) as caught:
            METHODS[method].check(given[name].vit)
        assert "\n" not in str(caught.value)
        return
    found = METHODS[method].compute(given[name])
    assert found.values.shape == given[name].tokens.shape[:2]
    assert found.values.isfinite().all()
    if method.startswith("traced"):
        torch.testing.assert_close(found.values.sum(dim=1), found.total, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", AVERAGED_MODELS)
def test_every_patch_kept_is_the_model_itself(given, name):
    one = given[name]
    every = torch.arange(len(one.patches)).expand(len(one.pixels), -1)
    run = run_blocks(one.vit, one.pixels, kept=every)
    # AIMv2 and InternViT compute their norms in float32 whatever the model's precision.
    close = 1e-5 if name in {"transformers/aimv2_headless", "transformers/internvl_mean"} else 1e-12
    torch.testing.assert_close(run.feature, one.vit.run(one.pixels), rtol=close, atol=close)


@pytest.mark.parametrize("name", ["timm/vit_reg_gap", "timm/vit_all"])
@torch.no_grad()
def test_rollout_is_the_mean_row_of_the_product_over_the_averaged_tokens(given, name):
    one = given[name]
    module, product = one.vit.module, None
    for block, stream in zip(module.blocks, one.own.streams, strict=False):
        q, k, _ = block.attn.qkv(block.norm1(stream)).unflatten(-1, (3, 4, 8)).unbind(2)
        logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
        half = (logits.softmax(dim=-1).mean(dim=1) + torch.eye(19)) / 2
        product = half if product is None else half @ product
    start = 3 if name == "timm/vit_reg_gap" else 0
    expected = product[:, start:].mean(dim=1)
    torch.testing.assert_close(METHODS["rollout"].compute(one).values, expected)


@pytest.mark.parametrize("name", AVERAGED_MODELS)
def test_where_the_output_lives_by_depth(given, name):
    """At depth 0 in the patches; at the last in the tokens that are averaged, and nowhere else."""
    one = given[name]
    trace = trace_output(one)
    assert trace.gap.max() <= 1e-8
    others = [i for i in range(one.num_tokens) if i not in one.patches]
    unread = [i for i in range(one.num_tokens) if i not in one.layout.averaged]
    assert (trace.parts[:, 0, others] == 0).all()
    assert (trace.parts[:, -1, unread] == 0).all()
    assert (trace.parts[:, 1, others] != 0).all()


@pytest.mark.parametrize("pooling", ["avgmax", "max", ""])
def test_other_poolings_without_cls_are_refused_by_name(pooling):
    module = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=1,
        num_heads=4,
        num_classes=0,
        class_token=False,
        global_pool=pooling,
    )
    with pytest.raises(UnsupportedModelError, match=f"pooling of its tokens by '{pooling}'"):
        wrap_model(randomize(module))
