"""Weights out of files for timm's architectures: what fits, under timm's own names."""

import io
import math
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from timm.models import eva, vision_transformer
from torch import Tensor, nn

from vitscope.errors import UsageError


def lacks_layer_scale(module: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether weights have a layer scale that the architecture is built without.

    UNI and other models of pathology are plain architectures of timm with `init_values`.

    Args:
        module: A timm model.
        weights: Weights by name.

    Returns:
        True if they do.
    """
    tower: Any = module
    held = {"blocks.0.ls1.gamma", "blocks.0.gamma_1"} & weights.keys()
    return bool(held) and type(getattr(tower.blocks[0], "ls1", None)) is nn.Identity


def check_patches(
    module: nn.Module, weights: Mapping[str, Tensor], checkpoint: Path
) -> tuple[str, ...]:
    """Refuse what timm would resample beyond recognition, and note what it resamples.

    Args:
        module: A timm model.
        weights: Weights by name.
        checkpoint: Where they came from, for the error.

    Returns:
        Notes; none where the patches are those of the model.

    Raises:
        UsageError: If the patches are of another size, or the position table is of no square grid.
    """
    tower: Any = module
    kernel, table = weights.get("patch_embed.proj.weight"), weights.get("pos_embed")
    own = tower.patch_embed.proj.weight
    if kernel is not None and kernel.ndim == own.ndim and kernel.shape[2:] != own.shape[2:]:
        raise UsageError(
            f"{checkpoint} does not fit {type(module).__name__}: its patches are of "
            f"{' x '.join(map(str, kernel.shape[2:]))} px, the architecture's of "
            f"{' x '.join(map(str, own.shape[2:]))} px"
        )
    if table is None or tower.pos_embed is None or table.ndim != 3:
        return ()
    others = 0 if getattr(tower, "no_embed_class", False) else tower.num_prefix_tokens
    rows, columns = tower.patch_embed.grid_size
    patches = table.shape[1] - others
    if patches == rows * columns:
        return ()
    side = math.isqrt(max(0, patches))
    if side == 0 or side * side != patches:
        raise UsageError(
            f"{checkpoint} does not fit {type(module).__name__}: its position table has "
            f"{table.shape[1]} entries, which with {others} for other tokens leave no square grid "
            "of patches"
        )
    return (
        f"the file's position table, of {side} x {side} patches, was resampled to {rows} x "
        f"{columns}",
    )


def convert_names(
    weights: dict[str, Tensor], module: nn.Module, checkpoint: Path
) -> dict[str, Tensor]:
    """Bring weights to the names and shapes of timm's model.

    Args:
        weights: Weights by the names of the code that trained them.
        module: A timm model.
        checkpoint: Where they came from, for the error.

    Returns:
        Weights by timm's names.

    Raises:
        UsageError: If timm's own converter cannot.
    """
    try:
        # timm's converter for Eva prints what it leaves out.
        with redirect_stdout(io.StringIO()):
            if isinstance(module, eva.Eva):
                return dict(eva.checkpoint_filter_fn(weights, module))
            return dict(
                vision_transformer.checkpoint_filter_fn(weights, module, adapt_layer_scale=True)
            )
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{checkpoint} does not fit {type(module).__name__}: {reason}") from None
