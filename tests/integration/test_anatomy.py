"""Tokens, depths and directions through the whole audit, on tiny models in float64.

Whatever is read off the model in a second forward with own hooks must give the same numbers; 1e-9
is far above the rounding of float64 sums, and far below any difference that means something.
"""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.stats import spearmanr

from audits import NUM_IMAGES, assert_same_numbers, numbers, read_strictly, tiny_vit
from tiny_forward import REGISTERS, Forward
from vitscope import AuditConfig, AuditResult, audit, decompose
from vitscope.errors import UsageError

EXACT = AuditConfig(dtype="float64")
STATES = ("hidden", "normed", "keys", "values")


@pytest.fixture(scope="module")
def plain(images):
    return audit(tiny_vit("dinov2"), images, EXACT)


@pytest.fixture(scope="module")
def pooled(images):
    """A pooling head over the patches alone, of a model with [CLS] and registers before them."""
    return audit(tiny_vit("vit_map"), images, EXACT)


@pytest.fixture(scope="module")
def listed(images):
    return audit(tiny_vit(), images, AuditConfig(dtype="float64", layers="all"))


@pytest.fixture(scope="module")
def forward(images):
    return Forward("dinov2_reg", images)


def distribution(values):
    return {
        "mean": values.mean(),
        "std": values.std(),
        "p05": np.quantile(values, 0.05),
        "p50": np.quantile(values, 0.5),
        "p95": np.quantile(values, 0.95),
        "n": len(values),
    }


def mean_cosine(rows):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = unit @ unit.T
    return pairs[~np.eye(len(rows), dtype=bool)].mean()


def share_that_varies(rows):
    return rows.var(axis=0, ddof=1).sum() / (rows**2).sum(axis=1).mean()


def near(value):
    return pytest.approx(value, rel=1e-9, abs=1e-9)


# --- what is there, and what is absent ----------------------------------------------------------


def test_with_registers_everything_is_there(result):
    summary = read_strictly(result)
    terms = {"cls", "registers", "patches", "skip"}
    assert set(summary.last.gram_ledger["residual"]) == terms
    assert set(summary.last.gram_ledger["attention"]) == terms - {"skip"}
    for pairs in summary.last.gram_ledger.values():
        for row in pairs.values():
            assert set(row) == set(pairs)
            assert all(len(share.ci95) == 2 for share in row.values())
    directions = summary.last.directions
    assert directions.num_directions == 10
    assert set(directions.effective_rank) == set(directions.pairs) == terms
    for term, row in directions.pairs.items():
        assert set(row) == terms - {term}
        for pair in row.values():
            assert len(pair.principal_angles_deg) == 10
            assert 0 <= pair.shared_variance <= 1
            assert pair.shared_variance_if_unrelated == 10 / 32
    tokens = ("cls", *REGISTERS, "highest_patch")
    check_anatomy(summary.last.anatomy, tokens)
    assert summary.last.anatomy.dominant_register is not None
    check_depths(summary, 2)
    assert summary.interdependence.over_layers is None


def check_anatomy(anatomy, tokens):
    assert set(anatomy.norms) == {*tokens, "patches"}
    assert set(anatomy.tokens) == set(tokens)
    for token in anatomy.tokens.values():
        assert set(token.states) == set(STATES)
        for state in token.states.values():
            assert len(state.pairwise_cosine.ci95) == len(state.variance_share.ci95) == 2
        # All of the 32 dimensions there are.
        top = token.top_dimensions
        assert {len(top.indices), len(top.before), len(top.after)} == {32}


def check_depths(summary, num_blocks):
    assert len(summary.high_norm_tokens) == num_blocks + 1
    for row in summary.high_norm_tokens:
        assert 0 < row.median <= row.p99 * 1.0001
        assert row.p99 <= row.max * 1.05  # to within a bin
    assert len(summary.layer_similarity) in {0, num_blocks + 1}


def test_without_registers_there_is_no_dominant_one(plain):
    summary = read_strictly(plain)
    check_anatomy(summary.last.anatomy, ("cls", "highest_patch"))
    assert summary.last.anatomy.dominant_register is None
    assert summary.last.anatomy.analysed is None
    assert summary.interdependence is None
    assert "registers" not in summary.last.gram_ledger["residual"]
    assert "patch_share" not in summary.covariates.correlations
    check_depths(summary, 2)


def test_a_pooling_head_has_neither_tokens_nor_layers_to_follow(pooled, images):
    summary = read_strictly(pooled)
    assert summary.last.anatomy is None
    assert summary.layer_similarity == ()
    assert summary.interdependence is None
    assert set(summary.last.gram_ledger["residual"]) == {"patches"}
    assert summary.last.directions.pairs == {"patches": {}}
    check_depths(summary, 2)
    assert pooled.read_token_sums() == {}
    assert not any(n.startswith(("token_norm", "layer_sim")) for n in pooled.images.column_names)
    # [CLS] and two registers come before the patches, and are none of them.
    streams = Forward("vit_map", images).streams
    for row, stream in zip(summary.high_norm_tokens, streams, strict=True):
        norms = np.linalg.norm(stream[:, 3:], axis=2)
        assert norms.shape == (NUM_IMAGES, 16)
        assert row.max == near(norms.max())
        assert abs(math.log2(row.median / np.quantile(norms, 0.5, method="lower"))) <= 1 / 32


# --- numbers -----------------------------------------------------------------------------------


def test_layer_similarity_is_the_cosine_with_the_last_depth(result, forward):
    last = forward.streams[-1][:, 0]
    for depth, stream in enumerate(forward.streams):
        row = stream[:, 0]
        norms = np.linalg.norm(row, axis=1) * np.linalg.norm(last, axis=1)
        cosines = (row * last).sum(axis=1) / norms
        found = result.summary.layer_similarity[depth]
        assert asdict(found) == near(distribution(cosines))
        column = result.images.column(f"layer_similarity_{depth:02d}").to_numpy()
        np.testing.assert_allclose(column, cosines, atol=1e-12)
    assert found.mean == pytest.approx(1, abs=1e-15)


def test_norms_and_the_dominant_register_are_those_of_the_blocks_input(result, forward):
    norms = np.linalg.norm(forward.streams[1], axis=2)
    expected = {"cls": norms[:, 0]}
    expected |= {name: norms[:, 1 + i] for i, name in enumerate(REGISTERS)}
    expected |= {"highest_patch": norms[:, 5:].max(axis=1), "patches": norms[:, 5:].mean(axis=1)}
    anatomy = result.summary.last.anatomy
    assert set(anatomy.norms) == set(expected)
    for name, values in expected.items():
        assert asdict(anatomy.norms[name]) == near(distribution(values))
        np.testing.assert_allclose(result.images.column(f"token_norm_{name}").to_numpy(), values)
    winners = norms[:, 1:5].argmax(axis=1)
    counts = [int((winners == i).sum()) for i in range(4)]
    index = counts.index(max(counts))
    others = np.delete(norms[:, 1:5], index, axis=1)
    assert asdict(anatomy.dominant_register) == {
        "index": index,
        "share": near(max(counts) / NUM_IMAGES),
        "counts": tuple(counts),
        "ratio": near(norms[:, 1 + index].mean() / others.mean()),
    }
    assert anatomy.analysed == f"register_{index}"


@pytest.mark.parametrize("token", ["cls", *REGISTERS, "highest_patch"])
@pytest.mark.parametrize("layer", [0, 1])
def test_states_of_tokens_vary_as_they_do_in_the_model(listed, forward, layer, token):
    found = listed.summary.layers[layer].anatomy.tokens[token]
    states = forward.states(layer, token)
    for state, rows in states.items():
        assert found.states[state].pairwise_cosine.value == near(mean_cosine(rows))
        assert found.states[state].variance_share.value == near(share_that_varies(rows))
    before, after = states["hidden"].mean(axis=0), states["normed"].mean(axis=0)
    indices = np.argsort(-before, kind="stable")
    top = found.top_dimensions
    assert top.before == near(before[indices])
    assert top.after == near(after[list(top.indices)])
    assert sorted(top.indices) == list(range(32))


def test_the_first_block_is_given_the_same_cls_token_for_every_image(listed):
    anatomy = listed.summary.layers[0].anatomy
    for token in ("cls", *REGISTERS):
        for state in STATES:
            found = anatomy.tokens[token].states[state]
            assert found.pairwise_cosine.value == pytest.approx(1, abs=1e-12)
            assert found.variance_share.value == pytest.approx(0, abs=1e-12)
    assert anatomy.tokens["highest_patch"].states["hidden"].variance_share.value > 0.1


def test_terms_share_geometry_and_directions_as_the_definitions_say(result, forward):
    rows = decompose(forward.vit, forward.pixels).residual_terms
    terms = {n: (t - t.mean(dim=0)).numpy() for n, t in rows.items() if n != "non_patch"}
    total = sum(terms.values())
    summary = result.summary
    gram = total @ total.T
    for a, x in terms.items():
        for b, y in terms.items():
            share = (gram * (x @ y.T)).sum() / (gram * gram).sum()
            assert summary.last.gram_ledger["residual"][a][b].biased == near(share)
        shares = (x * total).sum(axis=1) / (total * total).sum(axis=1)
        assert asdict(summary.last.centred_share[a]) == near(distribution(shares))
        np.testing.assert_allclose(
            result.images.column(f"centred_share_{a}").to_numpy(), shares, atol=1e-9
        )
    leading = {n: np.linalg.svd(x, full_matrices=False)[2][:10].T for n, x in terms.items()}
    for a, row in summary.last.directions.pairs.items():
        for b, pair in row.items():
            angles = np.rad2deg(subspace_angles(leading[a], leading[b]))[::-1]
            assert pair.principal_angles_deg == pytest.approx(angles, abs=1e-5)
            inside = ((terms[a] @ leading[b]) ** 2).sum() / (terms[a] ** 2).sum()
            assert pair.shared_variance == near(inside)


def test_registers_and_skip_go_together_by_their_ranks(result):
    table = result.images
    shares = [table.column(f"centred_share_{name}").to_numpy() for name in ("registers", "skip")]
    found = result.summary.interdependence
    assert found.shares == "centred_share"
    assert found.over_images.rho == near(spearmanr(*shares).statistic)
    assert found.over_images.n == NUM_IMAGES


def test_a_clean_model_has_no_high_norm_tokens(result, forward):
    depths = zip(result.summary.high_norm_tokens, forward.streams, strict=True)
    for depth, (row, stream) in enumerate(depths):
        norms = np.linalg.norm(stream[:, 5:], axis=2)
        assert (row.threshold, row.position_share) == (None, None)
        # None are found, which 26 images of 64 patches show of no smaller a part than this.
        assert (row.fraction, row.images_fraction) == (None, None)
        assert row.fraction_at_most >= 25 / norms.size
        assert row.images_fraction_at_most >= 25 / NUM_IMAGES
        highest = result.images.column(f"highest_patch_norm_{depth:02d}").to_numpy()
        assert row.num_images == NUM_IMAGES
        assert row.max == near(norms.max())
        np.testing.assert_allclose(highest, norms.max(axis=1))


def test_outliers_are_not_told_of_a_depth_that_is_known_of_some_images(images, forward):
    result = audit(tiny_vit(), images, AuditConfig(batch_size=8, dtype="float64", verified=0))
    *known, last = result.summary.high_norm_tokens
    assert all(row.fraction_at_most > 0 for row in known)
    norms = np.linalg.norm(forward.streams[-1][:8, 5:], axis=2)
    assert (last.num_images, last.max) == (8, near(norms.max()))
    outliers = ("threshold", "fraction", "images_fraction", "position_share")
    bounds = ("fraction_at_most", "images_fraction_at_most", "doubtful_from")
    assert {getattr(last, name) for name in (*outliers, *bounds)} == {None}
    with pytest.raises(UsageError, match="known of 8 of 26 images"):
        result.high_norm_grid(len(known))


# --- order, batches, merging, files -------------------------------------------------------------


NEW = ("gram_ledger", "directions", "anatomy", "layer_similarity", "high_norm_tokens")
NEW += ("centred_share", "covariates", "interdependence")


def new_numbers(result):
    return {name: number for name, number in numbers(result).items() if name in NEW}


def assert_same_sums(a, b):
    ours, theirs = a.read_patch_norms().save(), b.read_patch_norms().save()
    assert ours.keys() == theirs.keys()
    for name, kept in ours.items():
        # Counts are equal; the highest norm is rounded as the batch it was in has it.
        rtol = 1e-14 if name == "highest" else 0
        torch.testing.assert_close(kept, theirs[name], rtol=rtol, atol=0)
    ours, theirs = a.read_token_sums()[1].save(), b.read_token_sums()[1].save()
    assert ours.keys() == theirs.keys()
    for name, total in ours.items():
        torch.testing.assert_close(total, theirs[name], rtol=1e-10, atol=1e-10)


def test_three_parts_in_any_order_and_batch_size_are_the_whole(images):
    names = sorted(images.iterdir())[::-1]
    # Which batches are verified, and so known at the last depth, hangs on how they are made up.
    result, *parts = (
        audit(tiny_vit(), part, AuditConfig(dtype="float64", batch_size=size, verified=1))
        for part, size in ((names, 8), (names[11:15], 3), (names[15:], 5), (names[:11], 1))
    )
    merged = parts[0].merge(*parts[1:])
    assert_same_sums(result, merged)
    assert_same_numbers(new_numbers(result), new_numbers(merged), 1e-9)
    tables = [found.images.sort_by("path") for found in (result, merged)]
    for name in result.images.column_names:
        if name.startswith(("token_norm", "layer_sim", "highest_patch", "centred", "covariate")):
            a, b = (table[name].to_numpy() for table in tables)
            np.testing.assert_allclose(a, b, atol=1e-9, err_msg=name)


def test_sums_that_were_saved_give_the_summary_back(result, tmp_path):
    copy = AuditResult.load(result.save(tmp_path / "copy").folder)
    sums = copy.read_token_sums()[1]
    assert sums.tokens == ("cls", *REGISTERS, "highest_patch")
    for token, parts in result.summary.last.anatomy.tokens.items():
        for state in STATES:
            cosine = sums.estimate_pairwise_cosine(state, token)
            share = sums.estimate_variance_share(state, token)
            for name, found in (("pairwise_cosine", cosine), ("variance_share", share)):
                assert getattr(parts.states[state], name) == found
    counts = copy.read_patch_norms()
    assert (counts.num_images(0), counts.num_depths) == (NUM_IMAGES, 3)
    for depth, row in enumerate(result.summary.high_norm_tokens):
        assert counts.fit(depth).median == row.median
    assert_same_sums(result, copy)
