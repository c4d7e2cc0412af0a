"""Checks that every adapter must pass, for the tests and for adapter authors."""

import torch

from vitscope.decomposition import decompose_layers
from vitscope.ledger import balance_tolerance
from vitscope.maps.method import MapInput
from vitscope.maps.references import make_references
from vitscope.maps.targets import explain_cosine
from vitscope.maps.traced import trace_output
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.results.summary import ERRORS


def check_adapter(vit: ViTAdapter, pixels: Pixels) -> dict[str, float]:
    """Verify an adapter against its model, in every layer, in float32 and float64.

    The ledger and the readouts must reproduce the model's own attention branch, residual stream,
    block output and global feature within the tolerance of each precision. With random weights the
    check is strictest if none of them are zeros or ones; see `randomize`. A model that averages its
    tokens has no row: there the traced parts must sum to what they explain at every depth.

    Args:
        vit: The adapter.
        pixels: A few preprocessed images.

    Returns:
        The largest errors in float64, by name; `trace_gap` alone if the model has no row.

    Raises:
        ImbalanceError: If a check fails; names layer, error and likely cause.
    """
    device = vit.parameter.device
    worst: dict[str, float] = {}
    for dtype in (torch.float32, torch.float64):
        with vit.placed(device, dtype):
            worst = _find_errors(vit, pixels.to(device, dtype))
    return worst


def _find_errors(vit: ViTAdapter, pixels: Pixels) -> dict[str, float]:
    if not vit.blocks:
        references = make_references(vit, [pixels.flip(-1)])
        explained = MapInput(vit=vit, pixels=pixels, choice=explain_cosine, references=references)
        return {"trace_gap": float(trace_output(explained).gap.max())}
    tolerance = balance_tolerance(vit.dtype)
    rows = decompose_layers(
        vit, pixels, vit.select_layers("all"), renormalize=False, tolerance=tolerance
    )
    numbers = [row.scalars for row in rows.values()]
    return {
        name: max(float(found[name,].max()) for found in numbers if (name,) in found)
        for name in ERRORS
    }
