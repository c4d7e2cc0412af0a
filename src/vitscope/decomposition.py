"""One batch taken apart, for people who want the tensors rather than a result."""

from functools import partial

from jaxtyping import Float
from torch import Tensor

from vitscope.ledger import (
    Ledger,
    balance_tolerance,
    check_balance,
    compute_readouts,
    make_ledger,
)
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.trace import ClsTrace


def decompose(vit: ViTAdapter, pixels: Pixels, layer: int | None = None) -> Ledger:
    """Itemise what was written on the [CLS] row of one block: r = skip + Σ_g c_g + bias.

    Args:
        vit: The model.
        pixels: Preprocessed images, of any size that fits the patch grid.
        layer: Index of the block, from 0; the last one if None.

    Returns:
        The ledger, which balances against the model's own tensors.

    Raises:
        UsageError: If the size does not fit, or the layer has no row to analyse.
        ImbalanceError: If the ledger does not balance.
        NonFiniteError: If an activation is not finite.

    Source:
        Lappe & Giese (NeurIPS 2025), eq. 3 and 6.
    """
    wanted = vit.last_layer if layer is None else layer
    vit.select_layers([wanted])
    found: list[Ledger] = []

    def take(trace: ClsTrace) -> None:
        found.append(make_ledger(trace))

    vit.trace(pixels.to(vit.parameter.device), [wanted], take)
    check_balance(found[0], balance_tolerance(vit.parameter.dtype))
    return found[0]


def restrict(
    vit: ViTAdapter, ledger: Ledger, *, renormalize: bool = False
) -> dict[str, dict[str, Float[Tensor, "batch out"]]]:
    """Outputs that keep one group and drop the others' terms, in every readout (spec, section 4).

    Args:
        vit: The model that the ledger came from.
        ledger: A ledger of `decompose`.
        renormalize: Divide by the kept attention mass.

    Returns:
        For `values`, `attention`, `block` and (last layer only) `embedding` the full output and
        that of each kept group.

    Source:
        Lappe & Giese (NeurIPS 2025), section 3.3.
    """
    return compute_readouts(
        ledger,
        partial(vit.finish_block, ledger.layer),
        vit.embed if ledger.layer == vit.last_layer else None,
        renormalize=renormalize,
    )
