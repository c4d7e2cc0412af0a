"""Maps of single tokens against the plain reference, and against the ledger they refine."""

import pytest
import torch
from test_ledger import random_trace

from audits import tiny_vit
from vitscope import decompose
from vitscope.ledger import make_ledger
from vitscope.maps.method import MapInput
from vitscope.maps.targets import explain_cosine
from vitscope.row_maps import make_row_maps


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("scale", [True, False])
def test_maps_equal_the_plain_reference(skip, scale):
    order = None if skip else {"patches": 6}
    trace, reference = random_trace(1, skip=skip, scale=scale, order=order)
    maps = make_row_maps(trace, make_ledger(trace))
    r = reference.r
    torch.testing.assert_close(maps.attention, reference.attention)
    torch.testing.assert_close(maps.contribution_norm, reference.token_contributions.norm(dim=-1))
    share = torch.einsum("bnd,bd->bn", reference.token_contributions, r) / (r * r).sum(-1)[:, None]
    torch.testing.assert_close(maps.share, share)
    torch.testing.assert_close(maps.head_share.sum(dim=1), share)


def test_grid_is_laid_out_row_by_row():
    trace, _ = random_trace(2)
    maps = make_row_maps(trace, make_ledger(trace))
    grid = maps.on_grid(maps.attention)
    assert grid.shape == (3, 2, 2, 3)
    assert torch.equal(grid[..., 1, 0], maps.attention[..., 3 + 3])


def test_tokens_of_a_model_add_up_to_its_groups():
    vit = tiny_vit().to("cpu", torch.float64)
    pixels = torch.randn(2, 3, 16, 40, generator=torch.Generator().manual_seed(0))
    maps = MapInput(vit=vit, pixels=pixels, choice=explain_cosine).row
    ledger = decompose(vit, pixels)
    r = ledger.residual_total
    for name, positions in maps.layout.groups.items():
        expected = (ledger.group_contribution(name) * r).sum(-1) / (r * r).sum(-1)
        found = maps.share[:, positions.start : positions.stop].sum(dim=1)
        torch.testing.assert_close(found, expected)
    assert maps.on_grid(maps.share).shape == (2, 2, 5)


def test_maps_of_some_images_are_theirs_in_the_order_asked_for():
    trace, _ = random_trace(3)
    ledger = make_ledger(trace)
    every, some = make_row_maps(trace, ledger), make_row_maps(trace, ledger, [2, 0])
    for field in ("attention", "contribution_norm", "share", "head_share"):
        torch.testing.assert_close(getattr(some, field), getattr(every, field)[[2, 0]])
