"""Planted directions are found, measured and removed (P4)."""

from types import SimpleNamespace

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from support_table import TINY_MODELS
from vitscope import wrap_model
from vitscope.errors import UsageError
from vitscope.maps.passes import run_blocks
from vitscope.remedies.directions import (
    ProjectDirection,
    compute_alignment,
    find_directions,
    measure_directions,
)
from vitscope.remedies.registry import parse_remedy
from vitscope.testing import check_adapter

_WIDTH, _PATCH, _SIZE = 32, 4, 32
_DEFECTS = (3, 17, 40, 63)  # one patch in each image


def random_unit(seed):
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(_WIDTH, generator=generator, dtype=torch.float64)
    vector -= vector.mean()
    return vector / vector.norm()


def plant(u, v, gain):
    """Blocks whose linear part is I + gain · u vᵀ, and images with one patch along u each."""
    torch.manual_seed(0)
    module = VisionTransformer(
        img_size=_SIZE, patch_size=_PATCH, embed_dim=_WIDTH, depth=3, num_heads=4, num_classes=0
    ).double()
    with torch.no_grad():
        for block in module.blocks:
            block.attn.qkv.weight[2 * _WIDTH :] = torch.eye(_WIDTH)
            block.attn.proj.weight.copy_(gain * torch.outer(u, v))
            block.mlp.fc2.weight.zero_()
        module.pos_embed.zero_()
        module.patch_embed.proj.bias.zero_()
        module.patch_embed.proj.weight.normal_()
        filters = module.patch_embed.proj.weight.flatten(1)
        blank = (torch.linalg.pinv(filters) @ (1000 * u + 5 * random_unit(2))).view(
            3, _PATCH, _PATCH
        )
        pixels = torch.randn(len(_DEFECTS), 3, _SIZE, _SIZE, dtype=torch.float64)
        for image, place in zip(pixels, _DEFECTS, strict=True):
            row, column = (_PATCH * k for k in divmod(place, _SIZE // _PATCH))
            image[:, row : row + _PATCH, column : column + _PATCH] = blank
    return wrap_model(module.eval()), pixels


def test_a_planted_direction_is_found_and_survives_huge_products():
    u = random_unit(0)
    vit, _ = plant(u, random_unit(1), gain=1e150)
    directions = find_directions(vit)
    assert list(directions.by_depth) == [1, 2, 3]
    for direction in directions.by_depth.values():
        assert (direction @ u).abs() > 1 - 1e-10
    assert min(directions.dominance.values()) > 1e10
    # The sign of a direction does not matter to what the remedy is called.
    flipped = type(directions)(
        {depth: -each for depth, each in directions.by_depth.items()}, directions.dominance
    )
    names = {ProjectDirection(directions=each).describe() for each in (directions, flipped)}
    assert len(names) == 1


def test_norms_and_layer_scales_count():
    vit = wrap_model(TINY_MODELS["timm/dinov2"]()).to("cpu", torch.float64)
    block = vit.module.blocks[0]
    with torch.no_grad():
        for other in vit.module.blocks:
            other.mlp.fc2.weight.zero_()
        weight = block.attn.qkv.weight[2 * vit.info.embed_dim :] * block.norm1.weight
        weight = weight - weight.mean(dim=1, keepdim=True)
        added = block.ls1.gamma[:, None] * block.attn.proj.weight @ weight
        left = torch.linalg.svd(added + torch.eye(len(added))).U[:, 0]
    assert (find_directions(vit).by_depth[1] @ left).abs() > 1 - 1e-12


def test_the_direction_is_measured_and_removed_from_the_patches_along_it(monkeypatch):
    u = random_unit(0)
    vit, pixels = plant(u, u, gain=1.0)
    remedy = ProjectDirection().fitted(vit, list)
    # Too few for a threshold to be fitted.
    fit = [SimpleNamespace(threshold=norm) for norm in (None, 500.0, None, 500.0)]
    monkeypatch.setattr("vitscope.remedies.directions.fit_high_norm", lambda *_: fit)
    measured = measure_directions(vit, lambda: [pixels[:2], pixels[2:]], remedy.directions)
    for each in measured[::2]:
        assert each.num_defects == len(_DEFECTS)
        assert 0 < each.angle < 0.5
        assert each.highest > 1 - 1e-4
        assert each.variance_share > 0.9
    assert measured[1].angle is None
    told = remedy.examine(vit, lambda: [pixels]).splitlines()
    assert told[0].startswith("direction at depth 1: 4 high-norm patches, whose mean is 0.")
    assert told[1].startswith("direction at depth 2: no high-norm patches; |cos| of patches with ")
    assert told[2].startswith("direction at depth 3: 4 high-norm patches, whose mean is 0.")

    before = run_blocks(vit, pixels).streams[2]
    with remedy.applied(vit) as edited:
        check_adapter(edited, pixels)
        after = run_blocks(edited, pixels).streams[2]
        alone = torch.cat([run_blocks(edited, each[None]).streams[2] for each in pixels])
    torch.testing.assert_close(after, alone, rtol=0, atol=1e-9)
    chosen = torch.zeros(after.shape[:2], dtype=torch.bool)
    chosen[range(len(_DEFECTS)), [1 + place for place in _DEFECTS]] = True
    assert compute_alignment(after[chosen], u).max() < 1e-10
    assert torch.equal(after[~chosen], before[~chosen])


def test_without_images_nothing_is_measured():
    vit, _ = plant(random_unit(0), random_unit(0), gain=1.0)
    with pytest.raises(UsageError, match="no images to measure the remedy on: give some"):
        measure_directions(vit, list, find_directions(vit))


def test_block_0_has_no_direction():
    vit, _ = plant(random_unit(0), random_unit(0), gain=1.0)
    with pytest.raises(UsageError, match="choose blocks from 1"):
        parse_remedy("project-direction:layers=0+1").fitted(vit, list)
    with parse_remedy("project-direction:layers=all").fitted(vit, list).applied(vit) as edited:
        assert edited.info.id.endswith("+project-direction:layers=all")
