"""What results say of a model."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Description of a model in results."""

    id: str  # the id it was loaded by, or the class name of a wrapped module
    family: str  # library and architecture, such as "transformers/dinov2"
    num_params: int  # parameters of the vision tower
    depth: int  # number of blocks
    embed_dim: int  # width of the residual stream
    num_heads: int  # attention heads of the analysed block
    patch_size: tuple[int, int]  # patch (height, width) in pixels
    num_registers: int
    global_feature: str = "cls"  # "cls", "attention pooling" or "average"
    own_output: str = ""  # what the model returns instead of the [CLS] token; empty if that is it
    source: str = "given by the caller"  # where the weights came from
    notes: tuple[str, ...] = ()  # what a reader of the numbers should know about this model
    # its training recipe, shared by models that differ only in size; empty if unknown
    recipe: str = ""
    size: str | None = None  # label of its size within the recipe; None if unknown

    def noted(self, *notes: str, **changes: Any) -> "ModelInfo":
        """Add notes that are new, and change other fields."""
        return replace(self, notes=tuple(dict.fromkeys((*self.notes, *notes))), **changes)


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
