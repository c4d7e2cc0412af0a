"""The ledger against plain sums over tokens, and its identities as properties."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import assert_ledger_matches, make_reference
from vitscope.decomposition import compute_readouts
from vitscope.errors import ImbalanceError, NonFiniteError, UnsupportedModelError, UsageError
from vitscope.layout import make_grid, make_layout
from vitscope.ledger import (
    balance_tolerance,
    check_balance,
    compute_scalars,
    make_ledger,
)
from vitscope.models.base import ViTAdapter
from vitscope.trace import AttentionTail, ClsTrace

BATCH, HEADS, HEAD_DIM, DIM = 3, 2, 4, 6


def random_trace(seed=0, *, order=None, skip=True, scale=True, bias=True, dtype=torch.float64):
    """A trace whose model tensors are what a model would have computed, and its plain reference."""
    generator = torch.Generator().manual_seed(seed)
    order = order or {"cls": 1, "registers": 2, "patches": 6}
    layout = make_layout(order, (2, 3), pooling_query=not skip)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n = layout.num_tokens
    q, k, v = (randn(BATCH, HEADS, n, HEAD_DIM) for _ in range(3))
    tail = AttentionTail(
        weight=randn(DIM, HEADS * HEAD_DIM).to(dtype),
        bias=randn(DIM).to(dtype) if bias else None,
        scale=randn(DIM).to(dtype) if scale else None,
    )
    stream = randn(BATCH, n, DIM) if skip else None
    query = layout.query or 0
    reference = make_reference(
        q,
        k,
        v,
        scale=0.7,
        out_weight=tail.weight,
        out_bias=tail.bias,
        layer_scale=tail.scale,
        stream=stream,
        query=query,
    )
    trace = ClsTrace(
        layer=5,
        layout=layout,
        logits=(0.7 * torch.einsum("bhd,bhnd->bhn", q[:, :, query], k)).to(dtype),
        values=v.to(dtype),
        skip=None if stream is None else stream[:, query].to(dtype),
        tail=tail,
        branch=reference.t.to(dtype),
        residual=reference.r.to(dtype),
        output=reference.r.to(dtype),
    )
    return trace, reference


@pytest.mark.parametrize(
    ("skip", "scale", "bias"), list(itertools.product([True, False], repeat=3))
)
def test_ledger_equals_the_sum_over_tokens(skip, scale, bias):
    order = None if skip else {"patches": 6}
    trace, reference = random_trace(1, skip=skip, scale=scale, bias=bias, order=order)
    ledger = make_ledger(trace)
    assert_ledger_matches(ledger, trace.layout, reference, tolerance=1e-13)
    assert ledger.balance_error.max() < 1e-13
    assert ledger.residual_error.max() < 1e-13


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    order=st.permutations(["cls", "registers", "distillation", "patches"]),
    registers=st.integers(0, 3),
)
def test_shares_add_up_whatever_the_layout(seed, order, registers):
    sizes = {"cls": 1, "registers": registers, "distillation": 1, "patches": 6}
    trace, reference = random_trace(seed, order={name: sizes[name] for name in order})
    ledger = make_ledger(trace)
    assert_ledger_matches(ledger, trace.layout, reference, tolerance=1e-12)
    torch.testing.assert_close(
        ledger.attention_mass.sum(dim=-1), torch.ones(BATCH, HEADS).double(), rtol=0, atol=1e-13
    )
    scalars = compute_scalars(ledger)
    shares = sum(value for path, value in scalars.items() if path[0] == "share")
    # Shares are quotients by ‖r‖²: their rounding grows with the terms' size against r's.
    size = max(float(value.abs().max()) for path, value in scalars.items() if path[0] == "share")
    torch.testing.assert_close(shares, torch.ones(BATCH).double(), rtol=0, atol=1e-13 * (1 + size))
    assert ("attention_mass", "registers") in scalars or registers == 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_order_within_a_group_changes_nothing(seed):
    trace, _ = random_trace(seed)
    permutation = torch.arange(trace.layout.num_tokens)
    patches = trace.layout.groups["patches"]
    shuffled = torch.randperm(len(patches), generator=torch.Generator().manual_seed(seed))
    permutation[patches.start : patches.stop] = patches.start + shuffled
    fields = vars(trace) | {
        "logits": trace.logits[..., permutation],
        "values": trace.values[:, :, permutation],
    }
    a, b = make_ledger(trace), make_ledger(ClsTrace(**fields))
    torch.testing.assert_close(a.contributions, b.contributions, rtol=1e-12, atol=1e-12)


def spread(heads):
    """Largest attention on a patch, and the entropy, of one image with 6 patches at the end."""
    means = [sum(head[i] for head in heads) / len(heads) for i in range(len(heads[0]) - 6, 9)]
    parts = [mean / sum(means) for mean in means]
    return max(means), -sum(part * math.log(part) for part in parts) / math.log(6)


def test_scalars_equal_their_definitions():
    trace, reference = random_trace(2)
    scalars = compute_scalars(make_ledger(trace))
    groups = trace.layout.groups
    c = {n: reference.token_contributions[:, p.start : p.stop].sum(1) for n, p in groups.items()}
    mass = {
        n: reference.attention[..., p.start : p.stop].sum(-1).mean(1) for n, p in groups.items()
    }
    t, r, bias, skip = reference.t, reference.r, reference.bias, reference.skip

    def cos(a, b):
        return torch.nn.functional.cosine_similarity(a, b, dim=-1, eps=0)

    expected = {("patch_share",): mass["patches"] / (mass["patches"] + mass["registers"])}
    largest, entropy = zip(*map(spread, reference.attention.tolist()), strict=True)
    expected["largest_patch_attention",] = torch.tensor(largest, dtype=torch.float64)
    expected["attention_entropy",] = torch.tensor(entropy, dtype=torch.float64)
    for name in groups:
        expected["attention_mass", name] = mass[name]
        expected["contribution_norm", name] = c[name].norm(dim=-1)
        expected["cosine", "attention", name] = cos(c[name], t)
        expected["cosine", "residual", name] = cos(c[name], r)
        expected["restricted_cosine", "attention", name] = cos(c[name] + bias, t)
        expected["share", name] = (c[name] * r).sum(-1) / (r * r).sum(-1)
    non_patch = r - c["patches"] - bias
    expected["cosine", "residual", "skip"] = cos(skip, r)
    expected["cosine", "residual", "non_patch"] = cos(non_patch, r)
    expected["share", "skip"] = (skip * r).sum(-1) / (r * r).sum(-1)
    expected["share", "bias"] = (bias * r).sum(-1) / (r * r).sum(-1)
    for name, vector in {
        "skip": skip,
        "bias": bias.expand_as(t),
        "attention_total": t,
        "residual_total": r,
    }.items():
        expected["contribution_norm", name] = vector.norm(dim=-1)
    found = {path: value for path, value in scalars.items() if path != ("balance_error",)}
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        torch.testing.assert_close(found[path], value, rtol=1e-11, atol=1e-12, msg=str(path))


def test_pooling_query_has_no_skip_and_no_non_patch():
    trace, _ = random_trace(3, skip=False, order={"patches": 6})
    ledger = make_ledger(trace)
    scalars = compute_scalars(ledger)
    assert not any("skip" in path or "non_patch" in path for path in scalars)
    torch.testing.assert_close(ledger.residual_total, ledger.attention_total)


@pytest.mark.parametrize(
    ("attention", "entropy"),
    [([0.5, 0.0, 0.0], 0.0), ([0.2, 0.2, 0.2], 1.0), ([0.3], math.nan), ([0.0, 0.0], math.nan)],
    ids=["all on one", "all alike", "one patch", "none"],
)
def test_the_ends_of_the_entropy(attention, entropy):
    ledger = make_ledger(random_trace(5)[0])
    rows = torch.tensor([attention] * BATCH, dtype=torch.float64)
    found = compute_scalars(replace(ledger, patch_attention=rows))["attention_entropy",]
    assert found.tolist() == pytest.approx([entropy] * BATCH, abs=1e-15, nan_ok=True)


def finish(row):
    return torch.tanh(row) + row


def embed(row):
    return row[:, :4] / row.norm(dim=-1, keepdim=True)


def make_vit(last_layer):
    functions = {"finish_block": lambda _, row: finish(row), "embed": embed}
    return MagicMock(spec=ViTAdapter, last_layer=last_layer, **functions)


@pytest.mark.parametrize("renormalize", [False, True])
def test_readouts_equal_their_definitions(renormalize):
    trace, reference = random_trace(4)
    ledger = make_ledger(trace)
    found = compute_readouts(make_vit(ledger.layer), ledger, renormalize=renormalize)
    gamma = trace.tail.scale
    for name, positions in trace.layout.groups.items():
        part = slice(positions.start, positions.stop)
        attention = reference.attention.clone()
        keep = torch.zeros(attention.shape[-1]).double()
        keep[part] = 1
        attention *= keep
        if renormalize:
            attention /= attention.sum(dim=-1, keepdim=True)
        values = torch.einsum("bhn,bhnd->bhd", attention, trace.values).flatten(1)
        written = (values @ trace.tail.weight.T + trace.tail.bias) * gamma
        expected = {
            "values": values,
            "attention": written,
            "block": finish(reference.skip + written),
            "embedding": embed(finish(reference.skip + written)),
        }
        for readout, value in expected.items():
            torch.testing.assert_close(found[readout][name], value, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found["values"]["full"], reference.token_values.sum(1))
    torch.testing.assert_close(found["attention"]["full"], reference.t)
    torch.testing.assert_close(found["embedding"]["full"], embed(finish(reference.r)))
    assert "embedding" not in compute_readouts(make_vit(ledger.layer + 1), ledger)


def test_a_group_with_vanishing_mass_stays_finite():
    trace, _ = random_trace(5, dtype=torch.float32)
    registers = trace.layout.groups["registers"]
    logits = trace.logits.clone()
    logits[..., registers.start : registers.stop] -= 200
    ledger = make_ledger(ClsTrace(**(vars(trace) | {"logits": logits})))
    assert ledger.attention_mass[..., 1].max() == 0
    renormalised = compute_readouts(make_vit(11), ledger, renormalize=True)
    assert all(row.isfinite().all() for part in renormalised.values() for row in part.values())


@pytest.mark.parametrize(
    ("field", "message"), [("branch", "attention branch"), ("residual", "residual stream")]
)
def test_imbalance_stops_with_layer_error_and_cause(field, message):
    trace, _ = random_trace(6)
    wrong = getattr(trace, field).clone()
    wrong[1] *= 1.01
    ledger = make_ledger(ClsTrace(**(vars(trace) | {field: wrong})))
    with pytest.raises(ImbalanceError, match=rf"layer 5 .*{message}.*9\.90e-03.*likely cause"):
        check_balance(ledger, 1e-4)
    check_balance(ledger, 2e-2)


def test_nan_never_balances():
    trace, _ = random_trace(7)
    ledger = make_ledger(trace)
    ledger.balance_error[0] = float("nan")
    with pytest.raises(ImbalanceError):
        check_balance(ledger, 1e9)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_rows_are_named(value):
    trace, _ = random_trace(8)
    branch = trace.branch.clone()
    branch[2, 0] = value
    with pytest.raises(NonFiniteError, match="layer 5 for image 2"):
        make_ledger(ClsTrace(**(vars(trace) | {"branch": branch})))


def test_half_precision_is_accounted_in_float32():
    trace, _ = random_trace(9, dtype=torch.bfloat16)
    ledger = make_ledger(trace)
    assert ledger.contributions.dtype == torch.float32
    check_balance(ledger, balance_tolerance(torch.bfloat16))


def test_tolerances_are_the_specified_ones(monkeypatch):
    assert balance_tolerance(torch.float64) == 1e-10
    assert balance_tolerance(torch.float32) == 1e-4
    assert balance_tolerance(torch.float16) == balance_tolerance(torch.bfloat16) == 3e-2
    assert balance_tolerance(torch.float32, torch.device("cuda")) == 1e-4
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision="tf32"))
    assert balance_tolerance(torch.float32, torch.device("cuda")) == 3e-2
    assert balance_tolerance(torch.float32) == 1e-4


def test_layout_says_what_it_expected():
    layout = make_layout({"cls": 1, "registers": 4, "patches": 0}, (37, 37))
    with pytest.raises(
        UnsupportedModelError, match=r"1 cls \+ 4 registers \+ 37 x 37 .* 1374.*1370"
    ):
        layout.check_num_tokens(1370)


def test_a_layout_whose_feature_comes_from_nowhere_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"no \[CLS\] token"):
        make_layout({"registers": 4, "patches": 0}, (2, 2))


def test_an_averaged_layout_has_no_query():
    order = {"cls": 1, "registers": 4, "patches": 0}
    layout = make_layout(order, (2, 2), averaged="patches")
    assert (layout.query, layout.averaged) == (None, range(5, 9))
    assert make_layout(order, (2, 2), averaged="all").averaged == range(9)


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [(225, 224, "height of 225.*224 or 238"), (224, 7, "width of 7")],
)
def test_sizes_that_do_not_fit_are_refused_with_the_nearest(height, width, message):
    with pytest.raises(UsageError, match=message):
        make_grid(height, width, (14, 14))


def test_grid_is_rows_by_columns():
    assert make_grid(28, 42, (14, 14)) == (2, 3)
    assert make_grid(32, 32, (16, 8)) == (2, 4)
