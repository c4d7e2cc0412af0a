"""P6: what is the same at a place in every image can be removed exactly."""

import pytest
import torch

from edited_vit import record_streams
from vitscope import wrap_model
from vitscope.remedies.registry import parse_remedy
from written_vit import CLS, GRID, PATCH, PATCHES, draw, draw_images, write_attention, write_model


def shift_everywhere(image):
    """All shifts of an image by whole patches: their mean is the same at every place."""
    return torch.cat(
        [
            image.roll((down * PATCH, right * PATCH), dims=(2, 3))
            for down in range(GRID)
            for right in range(GRID)
        ]
    )


@pytest.mark.parametrize("layers", ["0", "0+1", "all", "1", "last"])
def test_a_fixed_artefact_is_removed(layers):
    clean, soiled = (write_model(depth=2) for _ in range(2))
    for model in (clean, soiled):
        write_attention(model.blocks[1], CLS, PATCHES)
    artefact = draw(GRID * GRID, clean.embed_dim)
    soiled.pos_embed.data[:, 1:] = artefact - artefact.mean(dim=0)
    vit, right = wrap_model(soiled), wrap_model(clean)
    pixels = shift_everywhere(draw_images([()]))
    assert (vit.run(pixels) - right.run(pixels)).norm(dim=1).min() > 0.1
    remedy = parse_remedy(f"position-mean:layers={layers}").fitted(vit, lambda: pixels.split(4))
    with remedy.applied(vit) as edited:
        streams, feature = record_streams(edited, pixels), edited.run(pixels)
    expected = record_streams(right, pixels)
    torch.testing.assert_close(streams[:, 1:], expected[:, 1:], atol=1e-12, rtol=0)
    torch.testing.assert_close(feature, right.run(pixels), atol=1e-12, rtol=0)
