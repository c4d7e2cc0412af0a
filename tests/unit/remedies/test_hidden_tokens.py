"""Hidden tokens, against an attention written from the definition."""

import pytest
import torch

from audits import tiny_vit
from edited_vit import EditedViT, draw_pixels, record_streams, wrap_tiny
from vitscope.errors import UnsupportedModelError
from vitscope.ledger import make_ledger
from vitscope.maps.attention_calls import AttentionCalls, BlockAttentions
from vitscope.remedies.attention import HiddenTokens
from vitscope.remedies.registry import parse_remedy

PREFIX = 5


def mask(products, values, hidden):
    seen = [i for i in range(len(products)) if i not in hidden]
    weights = [float(products[i].exp()) for i in seen]
    return sum(w * values[i] for w, i in zip(weights, seen, strict=True)) / sum(weights)


def unread(products, values, hidden):
    weights = products.exp() / products.exp().sum()
    return sum(weights[i] * values[i] for i in range(len(products)) if i not in hidden)


def hide(how, rows, hidden):
    def read(row, products, values):
        return how(products, values, hidden if rows == "all" or row == 0 else ())

    return read


@pytest.mark.parametrize("rows", ["cls", "all"])
@pytest.mark.parametrize("how", [mask, unread])
@pytest.mark.parametrize("tokens", ["registers", "cls", "high_norm"])
def test_hidden_tokens(how, rows, tokens):
    vit = wrap_tiny("timm/dinov2_reg")
    pixels = draw_pixels(vit, 2)
    streams = record_streams(vit, pixels)
    threshold = float(streams[:, 0, PREFIX:].norm(dim=-1).median())
    expected = []
    for of_image in streams:
        high = [i for i in range(PREFIX, of_image.shape[1]) if of_image[0, i].norm() >= threshold]
        hidden = {"registers": [1, 2, 3, 4], "cls": [0], "high_norm": high}[tokens]
        plain = EditedViT(vit.module, read={0: hide(how, rows, hidden)})
        expected.append(plain.run(of_image[0]).feature)
    setting = f",threshold={threshold}" if tokens == "high_norm" else ""
    text = f"{how.__name__}:tokens={tokens},rows={rows},layers=0{setting}"
    with parse_remedy(text).applied(vit) as edited:
        found = edited.run(pixels)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", ["all", "cls"])
def test_tokens_are_masked_in_half_precision_too(dtype, rows):
    vit = tiny_vit("dinov2_reg")
    masses = []
    with parse_remedy(f"mask:rows={rows}").applied(vit) as edited, edited.placed("cpu", dtype):
        edited.trace(
            torch.randn(2, 3, 32, 32),
            [1],
            lambda trace: masses.append(make_ledger(trace).attention_mass),
        )
    registers = tiny_vit("dinov2_reg").make_layout(32, 32).groups
    assert (masses[0][..., list(registers).index("registers")] == 0).all()


@pytest.mark.parametrize("named", ["other", "mat2"])
def test_values_may_be_multiplied_by_keyword(named):
    seen = []

    class Seen(AttentionCalls):
        def read(self, call, weights, values):
            seen.append((weights, values))
            return call(weights, values)

    multiply = torch.matmul if named == "other" else torch.bmm
    logits, values = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 3, 2)
    with Seen():
        weights = logits.softmax(dim=-1)
        if named == "mat2":
            weights = torch.Tensor.squeeze(weights, 0)
            weights._is_attention = True
            values = values[0]
        found = multiply(weights, **{named: values})
    assert torch.equal(found, weights @ values)
    assert torch.equal(seen[0][1], values)


@pytest.mark.parametrize(
    ("kind", "advice"),
    [(BlockAttentions, "call set_attn_"), (HiddenTokens, "vitscope cannot hide tokens .* edit")],
)
def test_a_block_whose_attention_goes_unseen_is_refused(kind, advice):
    calls = kind()
    calls.enter(3)
    assert calls.is_inside
    with pytest.raises(UnsupportedModelError, match=f"0 attentions .* block 3, .* 1: {advice}"):
        calls.leave()
    assert not calls.is_inside
