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
    if not vit.blocks:
        return {"trace_gap": _check_trace(vit, pixels)}
    layers = vit.select_layers("all")
    device = vit.parameter.device
    worst: dict[str, float] = {}
    for dtype in (torch.float32, torch.float64):
        with vit.placed(device, dtype):
            rows = decompose_layers(
                vit,
                pixels.to(device),
                layers,
                renormalize=False,
                tolerance=balance_tolerance(dtype),
            )
        for name in ERRORS:
            errors = [row.scalars[name,] for row in rows.values() if (name,) in row.scalars]
            worst[name] = max(float(error.max()) for error in errors)
    return worst


def _check_trace(vit: ViTAdapter, pixels: Pixels) -> float:
    device = vit.parameter.device
    for dtype in (torch.float32, torch.float64):
        with vit.placed(device, dtype):
            given = pixels.to(device, dtype)
            references = make_references(vit, [given.flip(-1)])
            explained = MapInput(
                vit=vit, pixels=given, choice=explain_cosine, references=references
            )
            worst = float(trace_output(explained).gap.max())
    return worst
