"""The models of the study: what each may read, what it costs, and that its ledger says so."""

import numpy as np
import pytest
import torch
from plan import PRESETS
from torch import nn
from torch.testing import assert_close
from variants import VARIANTS, describe_costs, make_variant

from vitscope import decompose, wrap_model
from vitscope.images.preprocessing import Preprocessing
from vitscope.maps.token_maps import map_tokens
from vitscope.testing import check_adapter, randomize
from vitscope.training import TrainingAudit

OF_REGISTERS = ("V0+2", "V1", "V4", "V6")
PREPROCESSING = Preprocessing(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)


def make(name, **settings):
    made = make_variant(name, **{"depth": 2, "width": 24, "patch": 8} | settings)
    return randomize(made).double()


def draw_pixels(count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 32, 32, generator=generator, dtype=torch.float64)


def read_input(block, model, pixels, change=lambda tokens: tokens):
    """The tokens that a block is given, and the model's output if it is given others."""
    given = []

    def hook(_, args):
        given.append(args[0])
        return (change(args[0].clone()),)

    handle = block.register_forward_pre_hook(hook)
    with torch.no_grad():
        output = model(pixels)
    handle.remove()
    return given[0], output


def attend_by_loop(block, tokens, seen):
    """What each token writes on [CLS], from the definition: Σ_h W_O,h a_h[i] v_h[i]."""
    attention = block.attn
    size = attention.head_dim
    rows = attention.qkv(block.norm1(tokens))
    written = torch.zeros_like(tokens)
    masses = torch.zeros(len(tokens), attention.num_heads, tokens.shape[1]).double()
    for image, row in enumerate(rows):
        for head in range(attention.num_heads):
            part = slice(head * size, (head + 1) * size)
            queries, keys, values = (each[:, part] for each in row.chunk(3, dim=-1))
            scores = {i: (float(queries[0] @ keys[i]) / size**0.5) for i in seen}
            total = sum(torch.tensor(score).double().exp() for score in scores.values())
            for i, score in scores.items():
                weight = torch.tensor(score).double().exp() / total
                masses[image, head, i] = weight
                written[image, i] += attention.proj.weight[:, part] @ (weight * values[i])
    return written, masses


# --- read by vitscope --------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_the_ledger_of_every_layer_balances(name):
    vit = wrap_model(make(name))
    assert max(check_adapter(vit, draw_pixels()).values()) < 1e-10
    assert sorted(vit.blocks) == {"V2": [1], "V5": [2]}.get(name, [0, 1])
    layout = vit.make_layout(32, 32)
    assert len(layout.groups.get("registers", ())) == (2 if name in OF_REGISTERS else 0)


@pytest.mark.parametrize("name", ["V2", "V3", "V4"])
@torch.no_grad()
def test_the_ledger_of_the_last_row_is_that_of_a_loop_over_tokens(name):
    model, pixels = make(name), draw_pixels()
    block = model.blocks[-1]
    tokens, feature = read_input(block, model, pixels)
    first_patch = 3 if name == "V4" else 1
    seen = [0, *range(first_patch, tokens.shape[1])]
    written, masses = attend_by_loop(block, tokens, seen)
    ledger = decompose(wrap_model(model), pixels)
    assert_close(ledger.group_contribution("patches"), written[:, first_patch:].sum(dim=1))
    assert_close(ledger.group_contribution("cls"), written[:, 0])
    mass = dict(zip(ledger.groups, ledger.attention_mass.unbind(-1), strict=True))
    assert_close(mass["patches"], masses[..., first_patch:].sum(dim=-1))
    constant = model.cls_token[0, 0] + model.pos_embed[0, 0] if name == "V2" else block.constant
    assert_close(ledger.skip, constant.expand(2, -1))
    r = constant + written.sum(dim=1) + block.attn.proj.bias
    assert_close(ledger.residual_total, r)
    assert_close(feature, model.norm(r + block.mlp(block.norm2(r))))
    if name == "V4":
        assert not mass["registers"].any()
        assert not ledger.group_contribution("registers").any()


@pytest.mark.parametrize("name", ["V2", "V4"])
def test_maps_follow_the_output_back(name):
    vit = wrap_model(make(name))
    maps = map_tokens(vit, draw_pixels(), ["traced", "rollout"], references=draw_pixels(3)[2:])
    assert maps["traced"].isfinite().all()
    assert_close(maps["rollout"].sum(dim=1), torch.ones(2).double())


def test_a_variant_is_audited_while_it_trains():
    generator = np.random.default_rng(0)
    images = list(generator.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8))
    model = nn.ModuleDict({"backbone": make("V4").float()}).train()
    audit = TrainingAudit(images, batch_size=6, submodule="backbone", preprocessing=PREPROCESSING)
    summary = audit.run(model).summary
    assert summary.model.family == "study/vit"
    shares = summary.last.variance_share["residual"]
    assert shares["skip"].value == pytest.approx(0, abs=1e-12)
    assert shares["registers"].value == 0
    assert model.training


# --- what each may read ------------------------------------------------------------------------


def test_cls_of_v2_is_the_same_for_all_images_and_read_by_none_before_the_last_block():
    model, pixels = make("V2"), draw_pixels()
    tokens, _ = read_input(model.blocks[-1], model, pixels)
    with torch.no_grad():
        model.cls_token += torch.randn(24)
    changed, _ = read_input(model.blocks[-1], model, pixels)
    assert not torch.equal(changed[:, 0], tokens[:, 0])
    assert torch.equal(changed[:, 1:], tokens[:, 1:])
    assert torch.equal(tokens[0, 0], tokens[1, 0])


@pytest.mark.parametrize(("name", "is_read"), [("V0+2", False), ("V1", True), ("V4", False)])
def test_registers_are_read_at_the_last_block_or_not(name, is_read):
    def change(tokens):
        tokens[:, 1:3] += 1
        return tokens

    model, pixels = make(name), draw_pixels()
    _, output = read_input(model.blocks[-1], model, pixels)
    _, changed = read_input(model.blocks[-1], model, pixels, change)
    assert torch.equal(changed, output) != is_read


@torch.no_grad()
def test_v0_with_tokens_that_nobody_reads_is_v0():
    plain, more, pixels = make("V0"), make("V0+2"), draw_pixels()
    positions = more.pos_embed[:, [0, *range(3, more.pos_embed.shape[1])]]
    others = {name: w for name, w in more.state_dict().items() if name != "reg_token"}
    plain.load_state_dict(others | {"pos_embed": positions})
    assert_close(more(pixels), plain(pixels))


@pytest.mark.parametrize("name", ["V3", "V4"])
def test_the_last_block_does_not_add_the_token_to_what_it_reads(name):
    # With a query, key and value of its own the old [CLS] is still read.
    model, pixels = make(name), draw_pixels()
    block = model.blocks[-1]

    def double(tokens):  # what the norm before the attention does not see
        tokens[:, 0] *= 2
        return tokens

    block.norm1.eps = 0
    _, output = read_input(block, model, pixels)
    _, changed = read_input(block, model, pixels, double)
    assert_close(changed, output)


def test_v6_drops_paths_and_v1_does_not():
    rates = [block.drop_path1.drop_prob for block in make("V6").blocks[1:]]
    assert rates == [pytest.approx(0.1)]
    assert not hasattr(make("V1").blocks[1].drop_path1, "drop_prob")


# --- what each costs ---------------------------------------------------------------------------


def test_variants_cost_the_same():
    depth = 6
    costs = {name: describe_costs(make_variant(name, depth=depth)) for name in VARIANTS}
    tokens, width = 65, 96
    products = 12 * width**2 * tokens * depth + 2 * width * tokens**2 * depth + 64 * 48 * width
    assert costs["V0"].flops == 2 * products
    for name, cost in costs.items():
        assert cost.parameters == pytest.approx(costs["V0"].parameters, rel=0.01)
        same = "V0+2" if name in OF_REGISTERS else "V0"
        assert cost.flops == pytest.approx(costs[same].flops, rel=0.05 if name == "V5" else 0)
    assert costs["V0+2"].flops / costs["V0"].flops == pytest.approx(1.034, abs=1e-3)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "smoke"])
def test_all_models_of_a_preset_are_matched(name):
    preset = PRESETS[name]
    with torch.device("meta"):
        costs = {
            key: describe_costs(
                make_variant(key[0], depth=key[1], width=preset.width, heads=preset.heads)
            )
            for key in {(cell.variant, cell.depth) for cell in preset.list_cells()}
        }
    for (_, depth), cost in costs.items():
        base = costs["V0", depth]
        assert cost.parameters == pytest.approx(base.parameters, rel=0.01)
        assert cost.flops == pytest.approx(base.flops, rel=0.05)


@pytest.mark.parametrize("name", ["V2", "V5"])
def test_a_head_is_read_and_not_counted(name):
    model = make(name)
    costs, feature = describe_costs(model), model(draw_pixels())
    model.reset_classifier(5)
    assert describe_costs(model) == costs
    vit = wrap_model(model.double())
    assert vit.info.num_params == costs.parameters
    assert_close(vit.run(draw_pixels()), feature)
    assert_close(vit.classifier.run(draw_pixels()), model.head(feature))


# --- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_is_trained_in_mixed_precision(name):
    model = make(name).float().train()
    with torch.autocast("cpu", torch.bfloat16):
        model(draw_pixels(4).float()).square().sum().backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == ({"reg_token"} if name == "V0+2" else set())


def test_a_variant_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"variant 'V7': expected one of V0, V0\+2, V1"):
        make_variant("V7", depth=2)
