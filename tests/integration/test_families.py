"""Every family, held against its own tensors; and the page that says which are supported."""

import pytest
import torch

from support_table import ALL_MODELS, AVERAGED_MODELS, PAGE, TINY_MODELS, make_row, tiny_pixels
from vitscope import wrap_model
from vitscope.errors import ImbalanceError
from vitscope.testing import check_adapter


@pytest.mark.parametrize("name", ALL_MODELS)
def test_every_family_balances_in_every_layer_as_its_page_says(name):
    assert make_row(name) in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_check_notices_a_wrong_account(name):
    """A bias that the adapter does not know of is found, in every family."""
    vit = wrap_model(TINY_MODELS[name]())
    vit.blocks[vit.last_layer].branch.register_forward_hook(
        lambda _, __, out: (out[0] * 1.01, *out[1:]) if isinstance(out, tuple) else out * 1.01
    )
    with pytest.raises(ImbalanceError):
        check_adapter(vit, tiny_pixels(vit))


@pytest.mark.parametrize("name", AVERAGED_MODELS)
def test_the_check_notices_an_operation_without_a_rule(name):
    vit = wrap_model(AVERAGED_MODELS[name]())
    vit.encoder_blocks[-1].register_forward_hook(
        lambda _, __, out: (out[0].atan(),) if isinstance(out, tuple) else out.atan()
    )
    with pytest.raises(ImbalanceError):
        check_adapter(vit, tiny_pixels(vit))


def test_the_page_lists_nothing_else():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.count("/") > 1]
    assert len([row for row in rows if row.startswith("| ")]) == len(ALL_MODELS)


def test_errors_of_the_check_are_those_of_float64():
    vit = wrap_model(TINY_MODELS["timm/dinov2_reg"]())
    worst = check_adapter(vit, tiny_pixels(vit))
    assert set(worst) == {"balance_error", "residual_error", "block_error", "embedding_error"}
    assert max(worst.values()) < 1e-12
    assert vit.parameter.dtype == torch.float32
