"""The claims read what audits and one-shot runs really write."""

import pytest

from audits import tiny_vit
from images import write_images
from vitscope import AuditConfig, audit
from vitscope.config import OneShotConfig
from vitscope.reproduction.evidence import UntoldError
from vitscope.reproduction.paper_claims import list_claims
from vitscope.runs.one_shot_loop import one_shot

CLAIMS = list_claims()
NUM_IMAGES = 30
CHANCE = "is undefined: the full output does no better than chance"


@pytest.fixture(scope="module")
def summaries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for label in range(6):
        write_images(folder / f"class-{label}", NUM_IMAGES // 6, start=10 * label)
    vit = tiny_vit("dinov2_reg")
    result = audit(vit, folder, AuditConfig(batch_size=16)).summary
    return {
        "COCO": result,
        "ImageNet": result,
        "one-shot": one_shot(vit, folder, OneShotConfig(draws=3)).summary,
    }


@pytest.mark.parametrize("claim", CLAIMS, ids=[f"{c.where} {c.statement}" for c in CLAIMS])
def test_every_number_of_a_claim_is_in_a_result(claim, summaries):
    for quantity in {number.quantity for number in claim.check([]).numbers}:
        found = read(quantity, summaries[claim.data])
        # Random weights may classify no better than chance: then that was read.
        assert found == CHANCE or found.low <= found.value <= found.high, quantity.name


def read(quantity, summary):
    try:
        return quantity.read(summary)
    except UntoldError as reason:
        return str(reason)
