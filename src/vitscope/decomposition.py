"""Decompose and verify one batch: for users who want the tensors, and for the audit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitscope.adapters.registry import open_model
from vitscope.config import ClsTerm
from vitscope.errors import ImbalanceError, NonFiniteError, UsageError
from vitscope.layout import TokenLayout
from vitscope.ledger import (
    Ledger,
    ScalarPath,
    balance_tolerance,
    check_balance,
    check_rows_finite,
    compute_scalars,
    concat_heads,
    make_ledger,
    merge_groups,
    project_values,
    relative_error,
)
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.memory import check_memory
from vitscope.models.running import has_native_bfloat16
from vitscope.row_maps import RowMaps, make_row_maps
from vitscope.trace import ClsTrace, StreamTrace, TokenStates

Readouts = dict[str, dict[str, Float[Tensor, "batch out"]]]


def decompose(
    vit: ViTAdapter | nn.Module | str, pixels: Pixels, layer: int | None = None
) -> Ledger:
    """Itemise what was written on the [CLS] row of one block: r = skip + Σ_g c_g + bias.

    Args:
        vit: The model: an adapter, a module, or an id that `load_model` takes.
        pixels: Preprocessed images, of any size that fits the patch grid.
        layer: Index of the block, from 0, or negative from the last; the last one if None.

    Returns:
        The ledger, which balances against the model's own tensors.

    Raises:
        UsageError: If the pixels or their size do not fit, or the layer has no row to analyse.
        ImbalanceError: If the ledger does not balance.
        NonFiniteError: If an activation is not finite.
        MemoryShortageError: If the model's activations for the batch do not fit in memory.

    Source:
        Lappe & Giese (NeurIPS 2025), eq. 3 and 6.
    """
    vit = open_model(vit)
    found: list[Ledger] = []
    check_pixels(pixels)
    wanted = vit.select_layer(layer)
    with vit.undisturbed():  # another thread's run might be moving the model
        device = vit.parameter.device
        check_memory(vit, (pixels.shape[-2], pixels.shape[-1]), device, passed=len(pixels))
        vit.trace(pixels.to(device), [wanted], lambda t: found.append(_make_balanced(vit, t)))
    return found[0]


@torch.no_grad()
def map_row(vit: ViTAdapter, trace: ClsTrace) -> RowMaps:
    """Map what each token wrote on the row of a trace of a model, from a ledger that balances."""
    return make_row_maps(trace, _make_balanced(vit, trace))


def check_pixels(pixels: object) -> None:
    """Refuse anything but a batch of preprocessed images."""
    if not isinstance(pixels, Tensor):
        given = type(pixels).__name__
    elif pixels.ndim != 4 or pixels.shape[1] != 3 or not len(pixels):
        given = f"a tensor of shape {tuple(pixels.shape)}"
    elif not pixels.is_floating_point():
        given = f"a tensor of {pixels.dtype}"
    else:
        return
    raise UsageError(
        f"pixels were given as {given}: expected a floating-point tensor of shape (images, 3, "
        "height, width), scaled and normalised as the model was trained"
    )


def _make_balanced(vit: ViTAdapter, trace: ClsTrace) -> Ledger:
    ledger = make_ledger(trace)
    check_balance(ledger, balance_tolerance(vit.dtype, vit.parameter.device))
    return ledger


def restrict(vit: ViTAdapter, ledger: Ledger, *, renormalize: bool = False) -> Readouts:
    """Compute outputs that keep one group and drop the others', in every readout (docs/method.md).

    Args:
        vit: The model that the ledger came from.
        ledger: A ledger of `decompose`.
        renormalize: Divide by the kept attention mass.

    Returns:
        For `values`, `attention`, `block` and (last layer only) `embedding`, the full output and
        the output that keeps each group.

    Source:
        Lappe & Giese (NeurIPS 2025), section 3.3.
    """
    with vit.undisturbed():
        return compute_readouts(vit, ledger, renormalize=renormalize)


def compute_readouts(vit: ViTAdapter, ledger: Ledger, *, renormalize: bool = False) -> Readouts:
    """Compute full and keep-only outputs in every readout but `residual` (docs/method.md)."""
    full_values = ledger.attention_mass.unsqueeze(-1) * ledger.group_values
    kept_values = ledger.group_values if renormalize else full_values
    contributions = ledger.contributions
    if renormalize:
        tail = ledger.tail
        contributions = project_values(tail, kept_values.to(tail.weight.device)).cpu()
    values = {"full": concat_heads(full_values).sum(dim=1)}
    attention = {"full": ledger.attention_total}
    for i, (name, row) in enumerate(zip(ledger.groups, contributions.unbind(dim=1), strict=True)):
        values[name] = concat_heads(kept_values)[:, i]
        attention[name] = row + ledger.bias
    streams = torch.stack(list(attention.values()))
    if ledger.skip is not None:
        streams = streams + ledger.skip
    # All rows at once, so that the second half of the block runs only once.
    finished = vit.finish_block(ledger.layer, streams.flatten(0, 1))
    block = dict(zip(attention, finished.reshape(*streams.shape[:2], -1), strict=True))
    readouts = {"values": values, "attention": attention, "block": block}
    if ledger.layer == vit.last_layer:
        embedded = vit.embed(finished).reshape(*streams.shape[:2], -1)
        readouts["embedding"] = dict(zip(attention, embedded, strict=True))
    return readouts


def choose_dtype(
    vit: ViTAdapter, pixels: Pixels, device: torch.device, layers: Sequence[int] | None = None
) -> Literal["bfloat16", "float32"]:
    """Choose bfloat16 if it is fast and the ledgers balance in it, float32 otherwise."""
    if not has_native_bfloat16(device):
        return "float32"
    half = torch.bfloat16
    try:
        with vit.placed(device, half):
            decompose_layers(
                vit,
                pixels.to(device),
                vit.select_layers("last") if layers is None else layers,
                renormalize=False,
                tolerance=balance_tolerance(half, device),
            )
    except (ImbalanceError, NonFiniteError):
        return "float32"
    return "bfloat16"


def choose_groups(layout: TokenLayout, cls_term: ClsTerm) -> tuple[str, ...]:
    """Choose the token groups of a row, by where [CLS]'s attention to itself is counted."""
    groups = tuple(layout.groups)
    if layout.query is None or cls_term not in groups:
        return groups
    return tuple(name for name in groups if name != "cls")


class LayerRows(NamedTuple):
    """Numbers and features of one layer for a batch."""

    scalars: dict[ScalarPath, Float[Tensor, " batch"]]  # one number per image for each path
    features: dict[str, Tensor]  # one row per image for each name
    bias: Float[Tensor, " dim"]  # γ ∘ b_O, the same for every image
    tokens: TokenStates | None  # states of the special tokens; None for a pooling query


def decompose_layers(
    vit: ViTAdapter,
    pixels: Pixels,
    layers: Sequence[int],
    *,
    renormalize: bool,
    tolerance: float,
    cls_term: ClsTerm = "own",
    # Otherwise the last block runs for the [CLS] row only, which gives the same numbers faster, and
    # its errors are NaN.
    verified: bool = True,
    # Takes the residual stream at every depth. The row at the last depth always comes from the
    # ledger; patch norms there are NaN if not verified.
    on_stream: Callable[[StreamTrace], None] | None = None,
    on_maps: Callable[[RowMaps], None] | None = None,  # takes those of the last of the layers
    mapped: Sequence[int] | None = None,  # images of the batch with maps; None for all
) -> dict[int, LayerRows]:
    """Compute the per-image numbers and features of all chosen layers in one forward pass."""
    found: dict[int, LayerRows] = {}
    embeddings: dict[int, Tensor] = {}
    streams: list[StreamTrace] = []
    held_against: set[int] = set()

    def take(trace: ClsTrace) -> None:
        ledger = make_ledger(trace)
        if trace.verified:
            check_balance(ledger, tolerance)
            held_against.add(trace.layer)
        if on_maps is not None and trace.layer == max(layers):
            on_maps(make_row_maps(trace, ledger, mapped))
        if set(ledger.groups) != set(choose_groups(trace.layout, cls_term)):
            ledger = merge_groups(ledger, "cls", into=cls_term)
        readouts = compute_readouts(vit, ledger, renormalize=renormalize)
        scalars = compute_scalars(ledger, readouts["attention"])
        scalars["residual_error",] = ledger.residual_error
        scalars["block_error",] = relative_error(readouts["block"]["full"], trace.output)
        if "embedding" in readouts:
            embeddings[trace.layer] = readouts["embedding"]["full"]
        features = _collect_features(ledger, readouts, renormalize=renormalize)
        for name, rows in features.items():
            finite = rows.flatten(1).isfinite().all(dim=-1)
            check_rows_finite(finite, f"of {name} ", trace.layer)
        found[trace.layer] = LayerRows(scalars, features, ledger.bias, trace.tokens)

    listen = None if on_stream is None else streams.append
    output = vit.trace(pixels, layers, take, listen, verified=verified)
    for layer, embedding in embeddings.items():
        found[layer].scalars["embedding_error",] = relative_error(embedding, output)
    for layer in sorted(held_against):
        _check_readouts(layer, found[layer].scalars, tolerance)
    if on_stream is not None:
        (stream,) = streams
        last = found.get(vit.last_layer)
        # Also in verified batches, so that no number depends on which batches are verified.
        on_stream(stream if last is None else stream.completed(last.features["block/full"]))
    return {layer: found[layer] for layer in layers}


def _collect_features(
    ledger: Ledger, readouts: Readouts, *, renormalize: bool
) -> dict[str, Tensor]:
    features = {f"term/{name}": term for name, term in ledger.residual_terms.items()}
    features.pop("term/non_patch", None)
    for readout in ("values", "attention", "block", "embedding"):
        for name, rows in readouts.get(readout, {}).items():
            features[f"{readout}/{name}"] = rows
    if not renormalize:
        # They are sums of features that are kept.
        for name in ["values/full", *(n for n in features if n.startswith("attention/"))]:
            del features[name]
    features.pop("attention/full", None)
    features["attention_mass"] = ledger.attention_mass
    features["patch_attention"] = ledger.patch_attention
    return features


def _check_readouts(layer: int, scalars: Mapping[ScalarPath, Tensor], tolerance: float) -> None:
    for name in ("block", "embedding"):
        error = scalars.get((f"{name}_error",))
        if error is not None and not float(error.max()) <= tolerance:
            raise ImbalanceError(
                f"the {name} readout of layer {layer} differs from the model's own output by "
                f"{float(error.max()):.2e} (tolerance {tolerance:.0e}); likely cause: the second "
                "half of the block, the final norm or the projection differs from the adapter's "
                "description of it"
            )
