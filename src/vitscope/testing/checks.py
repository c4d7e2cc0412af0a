"""Checks that an adapter must pass, for the tests and for people who write one."""

import torch

from vitscope.decomposition import decompose_layers
from vitscope.ledger import balance_tolerance
from vitscope.models.base import Pixels, ViTAdapter

PROOFS = ("balance_error", "residual_error", "block_error", "embedding_error")


def check_adapter(vit: ViTAdapter, pixels: Pixels) -> dict[str, float]:
    """Hold an adapter against the model it adapts, in every layer, in float64 and in float32.

    The model's own attention branch, residual stream, block output and global feature must be
    what the ledger and the readouts say, within the tolerance of each precision. A check on random
    weights says most when none of them are zeros or ones; see `randomize`.

    Args:
        vit: The adapter.
        pixels: A few preprocessed images.

    Returns:
        Largest error of each proof in float64.

    Raises:
        ImbalanceError: If a proof fails, naming layer, error and likely cause.
    """
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
        for name in PROOFS:
            errors = [row.scalars[name,] for row in rows.values() if (name,) in row.scalars]
            worst[name] = max(float(error.max()) for error in errors)
    return worst
