"""Parts of timm's blocks and pooling heads; what is not listed is refused by name.

Queries and keys are recorded at `q_norm` and `k_norm`, which timm calls even as identities.
"""

from functools import partial
from typing import Any

from jaxtyping import Float
from timm.layers import (
    Attention,
    AttentionPoolLatent,
    AttentionRope,
    GluMlp,
    LayerScale,
    Mlp,
    SwiGLU,
    apply_rot_embed_cat,
)
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, cat, nn
from torch.nn.functional import linear

from vitscope.models.blocks import AttentionCall, BlockParts, Heads
from vitscope.models.parts import (
    finish_prenorm,
    make_prenorm_parts,
    multiply_fused,
    project_fused,
    require,
    require_class,
    split_heads,
)
from vitscope.trace import AttentionTail

_ATTENTIONS = (Attention, AttentionRope, EvaAttention)
_MLPS = (Mlp, GluMlp, SwiGLU)


def make_block_parts(block: Any, model: str) -> BlockParts:
    """Find the parts of a transformer block."""
    check_block(block, model)
    attention = block.attn
    taps = {"query": attention.q_norm, "keys": attention.k_norm}
    if getattr(attention, "q_bias", None) is None:
        taps["values"] = attention.v_proj if attention.qkv is None else attention.qkv
    return make_prenorm_parts(
        block,
        taps=taps,
        make_heads=partial(_make_heads, attention),
        scales=("ls1", "ls2") if type(block) is Block else ("gamma_1", "gamma_2"),
    )


def make_pool_parts(pool: Any, model: str) -> BlockParts:
    """Find the parts of an attention-pooling head, whose learned query takes the place of [CLS]."""
    require_class(pool, {AttentionPoolLatent}, model, "the pooling")
    require(pool.latent_len == 1, model, f"a pooling with {pool.latent_len} queries (latent_len)")
    require(pool.pool == "token", model, f"a pooling of its queries by {pool.pool!r} (pool_type)")
    require(pool.mlp is not None, model, "a pooling without projection (out_features=0)")
    require_class(pool.proj, {nn.Linear}, model, "a pooling projection")
    return BlockParts(
        block=pool,
        attention=pool,
        taps={"query": pool.q_norm, "keys": pool.k_norm, "values": pool.kv},
        make_heads=partial(_make_pool_heads, pool.num_heads),
        scale=pool.scale,
        tail=AttentionTail(weight=pool.proj.weight, bias=pool.proj.bias, scale=None),
        branch=pool.proj,
        mlp_norm=pool.norm,
        finish=partial(finish_prenorm, pool.norm, pool.mlp, None),
    )


def check_block(block: Any, model: str) -> None:
    """Refuse a transformer block with an unsupported part."""
    require_class(block, {Block, EvaBlock}, model, "blocks")
    if type(block) is Block:
        require_class(block.ls1, {LayerScale, nn.Identity}, model, "a layer scale")
    require_class(block.mlp, _MLPS, model, "an MLP")
    attention = block.attn
    require_class(attention, _ATTENTIONS, model, "attention")
    require(
        isinstance(attention.norm, nn.Identity),
        model,
        "a norm between heads and projection (scale_attn_norm, scale_attn_inner)",
    )
    require(getattr(attention, "gate", None) is None, model, "gated attention (gated)")
    require_class(attention.proj, {nn.Linear}, model, "an attention projection")


def _make_pool_heads(num_heads: int, call: AttentionCall, row: int) -> Heads:
    return Heads(
        query=call.taps["query"][:, :, row],
        keys=call.taps["keys"],
        values=split_heads(call.taps["values"].chunk(2, dim=-1)[1], num_heads),
    )


def _make_heads(attention: Any, call: AttentionCall, row: int) -> Heads:
    key_heads = getattr(attention, "num_kv_heads", attention.num_heads)
    if "query" in call.taps:
        query, keys = call.taps["query"][:, :, row], call.taps["keys"]
        values = _take_values(attention, call)
    else:
        queries, keys, values = _project(attention, call.tokens, row)
        query = attention.q_norm(split_heads(queries, attention.num_heads))[:, :, 0]
        keys = attention.k_norm(split_heads(keys, key_heads))
    if (rope := call.kwargs.get("rope")) is not None:
        # [CLS] is a prefix token, and those have no rotary position: only keys are rotated.
        prefix, half = attention.num_prefix_tokens, getattr(attention, "rotate_half", False)
        patches = apply_rot_embed_cat(keys[:, :, prefix:], rope, half=half)
        keys = cat([keys[:, :, :prefix], patches], dim=2).to(keys.dtype)
    split = split_heads(values, key_heads)
    # Grouped-query attention: head h reads key-value head h // group.
    group = attention.num_heads // key_heads
    if group > 1:
        keys, split = (x.repeat_interleave(group, dim=1) for x in (keys, split))
    return Heads(query, keys, split)


def _project(
    attention: Any, tokens: Float[Tensor, "batch token dim"], row: int
) -> tuple[Tensor, Tensor, Tensor]:
    if attention.qkv is None:
        query = attention.q_proj(tokens[:, row : row + 1])
        return query, attention.k_proj(tokens), attention.v_proj(tokens)
    if getattr(attention, "q_bias", None) is None:
        return project_fused(attention.qkv, tokens, row)
    bias = cat([attention.q_bias, attention.k_bias, attention.v_bias])
    return multiply_fused(attention.qkv.weight, bias, tokens, row)


def _take_values(attention: Any, call: AttentionCall) -> Float[Tensor, "batch token value_dim"]:
    if "values" in call.taps:
        # A fused projection concatenates queries, keys and values.
        fused = call.taps["values"]
        return fused if attention.qkv is None else fused.chunk(3, dim=-1)[2]
    # With bare bias parameters timm applies the weights as a function and calls no module.
    return linear(call.tokens, attention.qkv.weight.chunk(3)[2], attention.v_bias)
