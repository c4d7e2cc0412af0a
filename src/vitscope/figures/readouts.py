"""Outputs that figure 3 compares in."""

from collections.abc import Mapping
from typing import Literal, get_args

Readout = Literal["attention", "values"]
READOUTS: tuple[Readout, ...] = get_args(Readout)
"""After the output projection, or before it."""
_READOUT_NAMES: Mapping[str, str] = {
    "attention": "the attention branch of the last block, without the skip connection",
    "values": "the values of the last block weighted by attention, before the output projection",
}


def name_readout(readout: str) -> str:
    """An output that figure 3 compares in, in words."""
    return _READOUT_NAMES[readout]
