"""What the adapters of timm-style code share: heads, pre-norm blocks, refusals by name."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vitscope.errors import UnsupportedModelError
from vitscope.models.blocks import AttentionCall, BlockParts, Heads
from vitscope.trace import AttentionTail


def require(condition: bool, model: str, setting: str) -> None:
    """Refuse a model for a setting that the adapter does not know.

    Args:
        condition: Whether the setting is as the adapter expects it.
        model: The model's id.
        setting: What it has instead, as its library calls it.

    Raises:
        UnsupportedModelError: If the condition does not hold.
    """
    if not condition:
        raise UnsupportedModelError(
            f"{model} has {setting}, which vitscope does not model: a decomposition of its "
            "attention would look right and be wrong; choose a model without it"
        )


def split_heads(
    tokens: Float[Tensor, "batch token value_dim"], num_heads: int
) -> Float[Tensor, "batch head token head_dim"]:
    """Cut each token's vector into heads, which lie side by side in it.

    Args:
        tokens: Queries, keys or values of all heads.
        num_heads: Number of heads.

    Returns:
        The same numbers with an axis for the heads.
    """
    batch, length, _ = tokens.shape
    return tokens.view(batch, length, num_heads, -1).transpose(1, 2)


def make_prenorm_parts(
    block: Any,
    *,
    taps: Mapping[str, nn.Module],
    make_heads: Callable[[AttentionCall, int], Heads],
) -> BlockParts:
    """Take a block apart that computes r = x + ls1(attn(norm1(x))), r + ls2(mlp(norm2(r))).

    Args:
        block: A block whose parts have these names; `ls1` and `ls2` are layer scales with a
            `gamma`, or identities.
        taps: Modules whose outputs `make_heads` needs.
        make_heads: From the recorded attention call to queries, keys and values.

    Returns:
        The block's parts.
    """
    attention = block.attn
    return BlockParts(
        block=block,
        attention=attention,
        taps=taps,
        make_heads=make_heads,
        scale=attention.scale,
        tail=AttentionTail(
            weight=attention.proj.weight,
            bias=attention.proj.bias,
            scale=getattr(block.ls1, "gamma", None),
        ),
        branch=block.ls1,
        attention_norm=block.norm1,
        mlp_norm=block.norm2,
        finish=lambda rows: rows + block.ls2(block.mlp(block.norm2(rows))),
    )
