"""Planted sinks have their kind (P5), and are switched off in their heads alone."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from support_table import TINY_MODELS
from vitscope import wrap_model
from vitscope.errors import UsageError
from vitscope.maps.passes import run_blocks
from vitscope.remedies.attention import Hiding
from vitscope.remedies.editor import Editor, Running
from vitscope.remedies.registry import parse_remedy
from vitscope.remedies.sinks import HeadSink, HeadSinks, SwitchSinks
from vitscope.testing import check_adapter

_WIDTH, _HALF = 32, 16
_OUT = slice(24, 32)  # where the second block's heads write


def plant():
    """The first block writes the patches' mean to [CLS]; the second has a sink in each head.

    In head 0 the sink's value is 0, in head 1 it is that mean, large.
    """
    torch.manual_seed(0)
    module = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=_WIDTH, depth=2, num_heads=2, num_classes=0
    ).double()
    with torch.no_grad():
        for block in module.blocks:
            for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
        first, second = (block.attn for block in module.blocks)
        first.qkv.weight[2 * _WIDTH : 2 * _WIDTH + 8, :8] = torch.eye(8)
        first.proj.weight[8:16, :8] = 10 * torch.eye(8)
        module.pos_embed.zero_()
        module.cls_token.zero_()
        module.cls_token[..., 16] = 30.0  # the mark of [CLS]
        module.patch_embed.proj.weight[8:24].zero_()
        module.patch_embed.proj.bias.zero_()
        _, keys, values = second.qkv.weight.unflatten(0, (3, _WIDTH))
        for start in (0, _HALF):
            second.qkv.bias[start] = 10.0  # every query
            keys[start, 16] = 0.36
        # Head 0 reads a difference, in which the layer norm's mean cancels, and [CLS] has none.
        values[:4, :8] = torch.cat([torch.eye(4), -torch.eye(4)], dim=1)
        values[_HALF : _HALF + 8, 8:16] = torch.eye(8)
        values[_HALF + 8, 16] = 5.0
        second.proj.weight[_OUT, _HALF : _HALF + 8] = torch.eye(8)
        second.proj.weight[20:24, :4] = torch.eye(4)
        module.blocks[1].norm1.weight.fill_(1.0)
    return wrap_model(module.eval())


@pytest.fixture(scope="module")
def pixels():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)


def test_each_head_has_its_kind(pixels):
    vit = plant()
    sinks = SwitchSinks().find(vit, lambda: [pixels[:1], pixels[1:]])
    assert sinks.num_images == 4
    assert [(s.layer, s.head, s.kind) for s in sinks.found] == [
        (0, 0, "none"),
        (0, 1, "none"),
        (1, 0, "no-op"),
        (1, 1, "broadcast"),
    ]
    off, broadcast = sinks.found[2:]
    assert off.group == broadcast.group == "cls"
    assert off.position == broadcast.position == 0
    assert 10 < off.concentration < 1000
    assert off.value_ratio < 1e-12
    assert broadcast.value_ratio > 1
    assert broadcast.rank_one_share > 0.99
    # Every threshold counts.
    for settings in ({"concentration": 1000.0}, {"small_value": -1.0}, {"low_rank": 1.1}):
        others = SwitchSinks(**settings).find(vit, lambda: [pixels])
        assert [s.kind for s in others.found] != [s.kind for s in sinks.found]


def run_last_block(vit, pixels):
    """Output of the last block, and queries, keys and values in heads."""
    kept = {}
    block = vit.module.blocks[1]
    handles = [
        block.register_forward_hook(lambda _, __, output: kept.update(output=output)),
        block.attn.qkv.register_forward_hook(lambda _, __, output: kept.update(qkv=output)),
    ]
    with torch.no_grad():
        vit.run(pixels)
    for handle in handles:
        handle.remove()
    batch, length, _ = kept["qkv"].shape
    return kept["output"], kept["qkv"].view(batch, length, 3, 2, _HALF).permute(2, 0, 3, 1, 4)


def test_a_sink_is_switched_off_in_its_head_alone(pixels):
    vit = plant()
    before, (query, key, value) = run_last_block(vit, pixels)
    weights = (query @ key.mT / _HALF**0.5).softmax(dim=-1)
    for kind, head in (("no-op", 0), ("broadcast", 1)):
        remedy = parse_remedy(f"sinks:kind={kind}").fitted(vit, lambda: [pixels])
        with remedy.applied(vit) as edited:
            assert max(check_adapter(edited, pixels).values()) < 1e-10
            after, _ = run_last_block(edited, pixels)
        unread = torch.zeros_like(value)
        unread[:, head, 0] = value[:, head, 0]
        lost = vit.module.blocks[1].attn.proj((weights @ unread).transpose(1, 2).flatten(2))
        torch.testing.assert_close(before - after, lost)
        assert (lost.abs().max() > 1) == (kind == "broadcast")


def test_masking_renormalises(pixels):
    vit = plant()
    with parse_remedy("sinks").fitted(vit, lambda: [pixels]).applied(vit) as edited:
        unread, (query, key, _) = run_last_block(edited, pixels)
    with parse_remedy("sinks:how=mask").fitted(vit, lambda: [pixels]).applied(vit) as edited:
        assert max(check_adapter(edited, pixels).values()) < 1e-10
        masked, _ = run_last_block(edited, pixels)
    weights = (query @ key.mT / _HALF**0.5).softmax(dim=-1)
    left = 1 - weights[:, 0, :, :1]
    torch.testing.assert_close(masked[..., 20:24] * left, unread[..., 20:24])


_FAMILIES = (
    "timm/vit",
    "timm/rope_grouped",
    "open_clip/plain",
    "torchvision/vit",
    "transformers/beit",
    "transformers/siglip",
)


@pytest.mark.parametrize("how", ["mask", "unread"])
@pytest.mark.parametrize("name", _FAMILIES)
def test_tokens_are_hidden_from_single_heads_in_every_library(name, how):
    vit = wrap(name)
    images = make_images(vit)

    def hide(heads, merged=False):
        def find(tokens, _):
            places = torch.zeros(len(tokens), vit.info.num_heads, tokens.shape[1]).bool()
            places[:, heads, 2] = True
            return places.any(dim=1) if merged else places

        editor = Editor(vit, "hide")
        editor.hide_tokens(vit.info.depth - 1, find, Hiding(how))
        with editor.applied() as edited:
            assert max(check_adapter(edited, images).values()) < 1e-10
            return edited.run(images)

    everywhere = hide([0], merged=True)
    torch.testing.assert_close(hide([0, 1, 2, 3]), everywhere)
    assert not torch.allclose(hide([1]), everywhere)


def make_images(vit, count=2):
    generator = torch.Generator().manual_seed(0)
    size = vit.preprocessing.size
    return torch.randn(count, 3, *size, generator=generator, dtype=torch.float64)


def wrap(name):
    return wrap_model(TINY_MODELS[name]()).to("cpu", torch.float64)


@pytest.mark.parametrize("name", [*_FAMILIES, "timm/vit_map"])
def test_every_head_of_every_library_is_seen(name):
    vit = wrap(name)
    images = make_images(vit)
    before = vit.run(images)
    sinks = SwitchSinks().find(vit, lambda: [images])
    heads = range(vit.info.num_heads)
    assert [s[:2] for s in sinks.found] == [(i, h) for i in range(vit.info.depth) for h in heads]
    assert all(s.concentration > 1 and 0 < s.rank_one_share < 1 for s in sinks.found)
    assert torch.equal(vit.run(images), before)


def test_attention_that_is_computed_step_by_step_has_the_same_sinks():
    tables = []
    for how in ("sdpa", "eager"):
        module = TINY_MODELS["transformers/clip"]()
        module.set_attn_implementation(how)
        vit = wrap_model(module)
        tables.append(SwitchSinks().find(vit, lambda vit=vit: [make_images(vit).float()]).found)
    for first, second in zip(*tables, strict=True):
        assert first[2:5] == pytest.approx(second[2:5], rel=1e-4)
        assert first[5:] == second[5:]


def test_the_sink_patch_is_the_one_with_the_highest_norm():
    vit = wrap("timm/dinov2_reg")
    images = make_images(vit, 8)
    sink = HeadSink(1, 2, 20.0, 0.0, 0.5, "patches", None, "no-op")
    others = [HeadSink(1, head, 1.0, 1.0, 0.5, "cls", 0, "none") for head in (0, 1, 3)]
    remedy = SwitchSinks(sinks=HeadSinks((sink, *others), 8))
    with remedy.applied(vit) as edited:
        assert max(check_adapter(edited, images).values()) < 1e-10
        together = edited.run(images)
        alone = torch.cat([edited.run(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)

    stream = run_blocks(vit, images).streams[1]
    places = remedy._find(
        [sink, *others], stream, Running(vit.make_layout(*images.shape[-2:]), images)
    )
    norms = stream[:, 5:].norm(dim=-1)
    assert places.sum(dim=(1, 2)).tolist() == [1] * 8
    assert places[:, 2].int().argmax(dim=1).tolist() == (norms.argmax(dim=1) + 5).tolist()


def test_nothing_to_switch_off_is_said(pixels):
    vit = plant()
    with pytest.raises(UsageError, match="of 2 heads: 2 none"):
        parse_remedy("sinks:layers=0").fitted(vit, lambda: [pixels])
