"""Full and keep-only outputs of a ledger, continued through the rest of the block.

Source: Lappe & Giese (NeurIPS 2025), section 3.3.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.ledger import Ledger, concat_heads, project_values

RowFunction = Callable[[Float[Tensor, "batch dim"]], Float[Tensor, "batch out"]]


def compute_readouts(
    ledger: Ledger,
    finish_block: RowFunction,
    embed: RowFunction | None,
    *,
    renormalize: bool = False,
) -> dict[str, dict[str, Float[Tensor, "batch out"]]]:
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
    finished = finish_block(streams.flatten(0, 1))
    block = dict(zip(attention, finished.reshape(*streams.shape[:2], -1), strict=True))
    readouts = {"values": values, "attention": attention, "block": block}
    if embed is not None:
        embedded = embed(finished).reshape(*streams.shape[:2], -1)
        readouts["embedding"] = dict(zip(attention, embedded, strict=True))
    return readouts
