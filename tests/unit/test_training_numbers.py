"""The numbers that are logged during training are those of the summary."""

import math
from dataclasses import replace

import numpy as np
import pytest

from audits import tiny_vit
from images import write_images
from vitscope import AuditConfig, audit
from vitscope.metrics.distribution import compute_distribution
from vitscope.training.curves import list_numbers


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = write_images(tmp_path_factory.mktemp("images"), 21)
    return audit(tiny_vit(), folder, AuditConfig(layers="all", gallery=0)).summary


def test_each_number_is_the_summarys(summary):
    numbers = list_numbers(summary)
    cka = summary.last.cka["residual"]["patches"]
    share = summary.last.variance_share["residual"]["patches"]
    expected = {
        "attention_mass_patches": summary.last.attention_mass["patches"].mean,
        "patch_share": summary.last.patch_share.mean,
        "contribution_norm_skip": summary.last.contribution_norm["skip"].mean,
        "centred_cosine_residual_patches": summary.last.centred_cosine["residual"]["patches"].mean,
        "variance_share_residual_skip": summary.last.variance_share["residual"]["skip"].value,
        "cka_embedding_registers": summary.last.cka["embedding"]["registers"].unbiased,
        "cka_residual_patches": cka.unbiased,
        "cka_residual_patches_low": cka.ci95[0],
        "cka_residual_patches_high": cka.ci95[1],
        "variance_share_residual_patches_low": share.ci95[0],
        "variance_share_residual_patches_high": share.ci95[1],
        "token_norm_register_2": summary.last.anatomy.norms["register_2"].mean,
        "layer_similarity_before_last": summary.layer_similarity[-2].mean,
        "balance_error": summary.ledger.max_balance_error,
        "num_images": 21,
        "layer_00/token_norm_cls": summary.layers[0].anatomy.norms["cls"].mean,
        "layer_01/patch_share": summary.last.patch_share.mean,
    }
    for name, value in expected.items():
        assert numbers[f"vitscope/{name}"] == value, name
    shares = summary.last.variance_share["residual"]
    told = sum(numbers[f"vitscope/variance_share_residual_{term}"] for term in shares)
    assert told == pytest.approx(1, abs=1e-9)


def test_all_are_finite_floats_with_names_that_loggers_take(summary):
    numbers = list_numbers(summary)
    assert all(type(value) is float and math.isfinite(value) for value in numbers.values())
    assert all(name.replace("/", "").replace("_", "").isalnum() for name in numbers)


def test_the_fraction_of_high_norm_tokens_is_the_largest_of_all_depths(summary):
    # What the last block makes of patches may not be known.
    depths = [replace(depth, fraction=None) for depth in summary.high_norm_tokens]
    depths[1] = replace(depths[1], fraction=0.25)
    changed = replace(summary, high_norm_tokens=tuple(depths))
    assert list_numbers(changed)["vitscope/high_norm_fraction"] == 0.25


def test_undefined_numbers_are_absent(summary):
    residual = summary.last.cka["residual"]
    undefined = replace(residual["patches"], unbiased=math.nan, ci95=None)
    last = replace(
        summary.last,
        cka=summary.last.cka | {"residual": residual | {"patches": undefined}},
        patch_share=compute_distribution(np.array([])),
        anatomy=None,
    )
    changed = replace(summary, layers=(summary.layers[0], last), layer_similarity=())
    missing = list_numbers(summary).keys() - list_numbers(changed).keys()
    gone = {name for name in missing if not name.startswith("vitscope/layer_01/")}
    assert len(missing) == 2 * len(gone) - 1  # a similarity is of the model, not of a layer
    tokens = {name for name in list_numbers(summary) if name.startswith("vitscope/token_norm")}
    assert gone == tokens | {
        "vitscope/cka_residual_patches",
        "vitscope/cka_residual_patches_low",
        "vitscope/cka_residual_patches_high",
        "vitscope/patch_share",
        "vitscope/layer_similarity_before_last",
    }
