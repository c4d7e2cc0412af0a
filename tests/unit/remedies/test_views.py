"""Averages over views: every patch comes back to its place, and only from views that saw it."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from support_table import TINY_MODELS
from vitscope import wrap_model
from vitscope.errors import UsageError
from vitscope.maps.passes import run_blocks
from vitscope.remedies.registry import parse_remedy
from vitscope.remedies.views import average_views, choose_shifts

_PATCH, _ROWS, _COLUMNS = 4, 7, 14


def plant():
    """Each token depends on its own pixels alone, whether they are flipped or not."""
    torch.manual_seed(0)
    module = VisionTransformer(
        img_size=(_ROWS * _PATCH, _COLUMNS * _PATCH),
        patch_size=_PATCH,
        embed_dim=32,
        depth=1,
        num_heads=4,
        num_classes=0,
    ).double()
    with torch.no_grad():
        module.blocks[0].attn.proj.weight.zero_()
        module.pos_embed.zero_()
        filters = module.patch_embed.proj.weight
        filters.copy_(filters + filters.flip(-1))
    generator = torch.Generator().manual_seed(0)
    size = (2, 3, _ROWS * _PATCH, _COLUMNS * _PATCH)
    pixels = torch.randn(size, generator=generator, dtype=torch.float64)
    return wrap_model(module.eval()), pixels


def test_what_does_not_depend_on_the_place_is_as_it_was():
    vit, pixels = plant()
    assert len(choose_shifts(_ROWS, _COLUMNS, 5, 42)) == 5
    patches = average_views(vit, pixels).patches
    torch.testing.assert_close(patches, run_blocks(vit, pixels).streams[-1][:, 1:])


def test_what_depends_on_the_place_is_averaged_over_the_views_that_saw_it():
    vit, pixels = plant()
    artefact = torch.arange(1.0, 1 + _ROWS * _COLUMNS).double().view(_ROWS, _COLUMNS)
    content = average_views(vit, pixels).patches
    with torch.no_grad():
        vit.module.pos_embed[0, 1:] = artefact.flatten()[:, None]  # the layer norm does not see it
        seen = [[[] for _ in range(_COLUMNS)] for _ in range(_ROWS)]
        for down, right in choose_shifts(_ROWS, _COLUMNS, 5, 42):
            for row in range(_ROWS):
                for column in range(_COLUMNS):
                    y, x = row + down, column + right
                    if 0 <= y < _ROWS and 0 <= x < _COLUMNS:
                        seen[row][column] += [artefact[y, x], artefact[y, _COLUMNS - 1 - x]]
    expected = torch.tensor([[sum(each) / len(each) for each in row] for row in seen])
    left = average_views(vit, pixels).patches - content
    torch.testing.assert_close(left, expected.double().flatten()[:, None].expand_as(left))


@pytest.mark.parametrize("name", ["timm/dinov2_reg", "timm/siglip", "transformers/clip"])
def test_the_feature_is_the_mean_of_the_runs(name):
    vit = wrap_model(TINY_MODELS[name]()).to("cpu", torch.float64)
    pixels = torch.randn(2, 3, *vit.preprocessing.size, dtype=torch.float64)
    averaged = average_views(vit, pixels, num_shifts=1)
    expected = (vit.run(pixels) + vit.run(pixels.flip(-1))) / 2
    torch.testing.assert_close(averaged.feature, expected)
    assert averaged.patches.shape[1] == len(vit.make_layout(*pixels.shape[-2:]).groups["patches"])


def test_shifts_are_small_different_and_far_apart():
    shifts = choose_shifts(14, 20, 9, 42)
    assert shifts == choose_shifts(14, 20, 9, 42)
    assert shifts[0] == (0, 0)
    assert len(set(shifts)) == 9
    assert {(abs(down), abs(right)) for down, right in shifts[1:5]} == {(2, 3)}
    assert max(abs(down) for down, _ in shifts) == 2
    assert max(abs(right) for _, right in shifts) == 3
    assert choose_shifts(4, 4, 9, 42) == [(0, 0)]


def test_it_is_said_why_it_cannot_be_audited():
    vit, pixels = plant()
    with pytest.raises(UsageError, match="average_views"):
        parse_remedy("shift-average:num_shifts=3")
    with pytest.raises(UsageError, match="expected 1 or more"):
        average_views(vit, pixels, num_shifts=0)
