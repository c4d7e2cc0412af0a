"""Fit weights from files to timm's architectures, under timm's own names."""

import io
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from timm.models import eva, vision_transformer
from torch import Tensor, nn

from vitscope.errors import UsageError, first_line

HEADS = ("head.", "head_dist.")
"""Starts of names of the classifiers' weights."""

_KERNEL = "patch_embed.proj.weight"
_OF_SHAPES = re.compile(r"\bshape|\bsize")  # in errors about a position table that is no grid


def lacks_layer_scale(module: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether weights (UNI and others) have a layer scale the architecture is built without."""
    tower: Any = module
    held = {"blocks.0.ls1.gamma", "blocks.0.gamma_1"} & weights.keys()
    return bool(held) and type(getattr(tower.blocks[0], "ls1", None)) is nn.Identity


def count_classes(module: nn.Module, weights: Mapping[str, Tensor]) -> int:
    """Number of classes that a file can tell apart; 0 if it lacks a head of the architecture."""
    tower: Any = module
    held = {name: tuple(weight.shape) for name, weight in weights.items() if name.startswith(HEADS)}
    classes: int = held.get("head.bias", (0,))[0]
    shapes = {"weight": (classes, tower.embed_dim), "bias": (classes,)}
    heads = [head for head in HEADS if hasattr(tower, head.rstrip("."))]
    fitting = {f"{head}{part}": shape for head in heads for part, shape in shapes.items()}
    return classes if held == fitting else 0


def convert_weights(
    module: nn.Module, weights: dict[str, Tensor], checkpoint: Path
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Convert weights to the names and shapes of timm's model."""
    tower: Any = module
    kernel, own = weights.get(_KERNEL), tower.patch_embed.proj.weight
    if kernel is not None and kernel.ndim == own.ndim and kernel.shape[2:] != own.shape[2:]:
        its, theirs = (" x ".join(map(str, each.shape[2:])) for each in (kernel, own))
        reason = f"its patches are of {its} px, the architecture's of {theirs} px"
        _refuse(checkpoint, module, reason)
    converted = _convert(module, weights, checkpoint)
    before, after = _count_positions(weights), _count_positions(converted)
    # Positions of [CLS] and registers may have been added to the tokens themselves.
    if abs(before - after) <= tower.num_prefix_tokens:
        return converted, ()
    return converted, (
        f"the file's position table of {before} entries was resampled to {after} for the patches "
        "of this architecture",
    )


def _convert(module: nn.Module, weights: dict[str, Tensor], checkpoint: Path) -> dict[str, Tensor]:
    convert = eva.checkpoint_filter_fn
    if not isinstance(module, eva.Eva):
        convert = partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale=True)
    try:
        # The converters remove the keys they rename; the one for Eva prints what it drops.
        with redirect_stdout(io.StringIO()):
            return dict(convert(dict(weights), module))
    except (RuntimeError, ValueError) as error:
        entries = _count_positions(weights)
        if _OF_SHAPES.search(str(error)) and entries:
            own = _count_positions(module.state_dict())
            reason = f"its position table has {entries} entries, the architecture's {own}"
        else:
            reason = first_line(error)
        _refuse(checkpoint, module, reason)


def _refuse(checkpoint: Path, module: nn.Module, reason: str) -> NoReturn:
    raise UsageError(
        f"{checkpoint} does not fit {type(module).__name__}: {reason}; choose the architecture "
        "that the checkpoint was trained with"
    ) from None


def _count_positions(weights: Mapping[str, Tensor]) -> int:
    table = weights.get("pos_embed")
    return 0 if table is None or table.ndim != 3 else table.shape[1]
