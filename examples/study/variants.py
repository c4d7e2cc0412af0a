"""Vision Transformers of equal complexity that must, or need not, use their patches.

All are timm's. V2, V3, V4 and V0+2 have blocks of their own, so they hand vitscope an adapter of
their own (`vitscope_adapter`); the others are read as any model of timm.

At the same depth and width (48 or more), parameters differ by less than 1 % from V0. Operations are
those of V0 in V2 and V3, and those of V0+2 in V1, V4 and V6, which have as many tokens: 3 to 4 %
more than V0. V5 has 2 to 5 % fewer from 6 blocks on, and 7 to 8 % fewer with 3: what its pooling
has in parameters is taken from its blocks, and runs on one token only.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from timm.layers import AttentionPoolLatent, LayerNorm
from timm.models import named_apply
from timm.models.vision_transformer import Block, VisionTransformer, init_weights_vit_timm
from torch import Tensor, cat, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitscope import ViTAdapter
from vitscope.images.preprocessing import Preprocessing
from vitscope.layout import TokenLayout, make_grid, make_layout
from vitscope.models.blocks import AttentionCall, BlockParts, Heads
from vitscope.models.classifier import Classifier
from vitscope.models.info import ModelInfo, count_parameters
from vitscope.models.parts import make_prenorm_parts, project_fused, require, split_heads

Tokens = Float[Tensor, "batch token dim"]
Seen = Bool[Tensor, "#query key"]
"""Which tokens each token sees."""

VARIANTS = {
    "V0": "A plain Vision Transformer, with [CLS] in every block.",
    "V0+2": "V0 with 2 more tokens that nobody reads: V0 at the cost of V1.",
    "V1": "V0 with 2 registers.",
    "V2": "V0 whose [CLS] enters at the last block, as a constant.",
    "V3": "V0 whose last block adds a learned constant to [CLS] in place of its skip connection.",
    "V4": "V1 whose last block is that of V3 and hides the registers from [CLS].",
    "V5": "V0 with an attention-pooling head over the patches in place of [CLS].",
    "V6": "V1 trained with drop path of 0.1.",
}
"""What is changed in each variant."""

NUM_REGISTERS = 2  # of 64 patches; 4 would cost 7 % more operations than V0
_POOL_MLP_RATIO = 0.25  # of V5's head, whose parameters its blocks must do without


class Costs(NamedTuple):
    """What a model costs.

    Attributes:
        parameters: Number of parameters.
        flops: Floating-point operations of one image's forward pass; a multiply-add counts as two.
    """

    parameters: int
    flops: int


def make_variant(
    name: str, *, depth: int, width: int = 96, heads: int = 3, image_size: int = 32, patch: int = 4
) -> VisionTransformer:
    """Make a variant with new weights, from pixels to the global feature.

    Args:
        name: One of `VARIANTS`.
        depth: Number of blocks.
        width: Width of the residual stream.
        heads: Attention heads.
        image_size: Height and width of the images in pixels.
        patch: Height and width of a patch in pixels.

    Returns:
        The model. `reset_classifier(n)` gives it a head of n classes.

    Raises:
        ValueError: If there is no such variant.
    """
    if name not in VARIANTS:
        raise ValueError(f"variant {name!r}: expected one of {', '.join(VARIANTS)}")
    settings: dict[str, Any] = {
        "img_size": image_size,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "num_classes": 0,
    }
    if name in {"V1", "V4", "V6", "V0+2"}:
        settings["reg_tokens"] = NUM_REGISTERS
    if name == "V5":
        return _make_pooling(settings)
    if name == "V6":
        settings["drop_path_rate"] = 0.1
    if name in _BLOCKS:
        return VariantViT(**settings, block_fn=partial(_make_block, _BLOCKS[name], depth))
    return VisionTransformer(**settings)


def describe_costs(model: VisionTransformer) -> Costs:
    """Count parameters and operations, without a head for classes."""
    pixels = torch.zeros(1, 3, *model.patch_embed.img_size).to(next(model.parameters()))
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # the counter does not see a CPU's fused attention
        model.forward_head(model.forward_features(pixels), pre_logits=True)
    return Costs(
        parameters=count_parameters(model) - count_parameters(model.head),
        flops=counter.get_total_flops(),
    )


class MaskedBlock(Block):
    """A block in which not every token sees every other."""

    def forward(self, x: Tokens) -> Tokens:
        """Run the block."""
        return super().forward(x, attn_mask=self.make_mask(x.shape[1], x.device))

    def make_mask(self, num_tokens: int, device: torch.device) -> Seen:
        """Make the mask of what each token sees: all but the registers."""
        return ~_find_registers(num_tokens, device).unsqueeze(0)


class PatchBlock(MaskedBlock):
    """A block in which patches and [CLS] do not see each other; [CLS] is handed on as it is."""

    def forward(self, x: Tokens) -> Tokens:
        """Run the block."""
        # What [CLS] would become is computed, as in V0, and dropped.
        return cat([x[:, :1], super().forward(x)[:, 1:]], dim=1)

    def make_mask(self, num_tokens: int, device: torch.device) -> Seen:
        """Make the mask of what each token sees: itself, or the other patches."""
        is_cls = torch.arange(num_tokens, device=device) == 0
        return is_cls.unsqueeze(1) == is_cls.unsqueeze(0)


class ConstantBlock(Block):
    """A block that adds a learned constant to [CLS] in place of its skip connection."""

    def __init__(self, dim: int, **settings: Any) -> None:
        super().__init__(dim, **settings)
        self.constant = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tokens, attn_mask: Seen | None = None) -> Tokens:
        """Run the block."""
        skip = cat([self.constant.expand(len(x), 1, -1), x[:, 1:]], dim=1)
        x = skip + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class MaskedConstantBlock(MaskedBlock, ConstantBlock):
    """A `ConstantBlock` in which [CLS] does not see the registers."""

    def make_mask(self, num_tokens: int, device: torch.device) -> Seen:
        """Make the mask of what each token sees: all, but for [CLS]."""
        is_cls = torch.arange(num_tokens, device=device) == 0
        return ~(is_cls.unsqueeze(1) & _find_registers(num_tokens, device))


_BLOCKS: dict[str, tuple[type[Block], type[Block]]] = {
    "V0+2": (MaskedBlock, MaskedBlock),
    "V2": (PatchBlock, Block),
    "V3": (Block, ConstantBlock),
    "V4": (Block, MaskedConstantBlock),
}
"""Classes of all blocks but the last, and of the last."""


class VariantViT(VisionTransformer):
    """A Vision Transformer of timm with blocks of this module."""

    def vitscope_adapter(self) -> ViTAdapter:
        """Where vitscope finds the parts of the model."""
        is_classifier = isinstance(self.head, nn.Linear)
        return ViTAdapter(
            module=self,
            info=ModelInfo(
                id=type(self).__name__,
                family="study/vit",
                num_params=count_parameters(self) - count_parameters(self.head),
                depth=len(self.blocks),
                embed_dim=self.embed_dim,
                num_heads=self.blocks[-1].attn.num_heads,
                patch_size=self.patch_embed.patch_size,
                num_registers=self.num_reg_tokens,
            ),
            preprocessing=Preprocessing(
                size=self.patch_embed.img_size, mean=(0.5,) * 3, std=(0.5,) * 3
            ),
            # [CLS] reads nothing in a block of the patches alone.
            blocks={
                index: _find_parts(block, self.num_reg_tokens)
                for index, block in enumerate(self.blocks)
                if type(block) is not PatchBlock
            },
            make_layout=partial(_lay_out, self),
            run=partial(_run, self),
            embed_row=self.norm,
            encoder=tuple(self.blocks),
            classifier=Classifier(module=self, run=self, head=self.head, reads_feature=True)
            if is_classifier
            else None,
        )


def _make_block(
    classes: tuple[type[Block], type[Block]], num_blocks: int, depth: int, **settings: Any
) -> Block:
    # timm gives each block its index, `depth`.
    return classes[depth == num_blocks - 1](depth=depth, **settings)


def _make_pooling(settings: dict[str, Any]) -> VisionTransformer:
    # The parameters of the pooling are taken from the MLPs of the blocks.
    width, heads, depth = settings["embed_dim"], settings["num_heads"], settings["depth"]
    pool = AttentionPoolLatent(
        width,
        num_heads=heads,
        mlp_ratio=_POOL_MLP_RATIO,
        norm_layer=LayerNorm,
        act_layer=nn.GELU,
    )
    named_apply(init_weights_vit_timm, pool)
    of_cls = 2 * width  # the token and its position
    hidden = 4 * width - round((count_parameters(pool) - of_cls) / (depth * (2 * width + 1)))
    model = VisionTransformer(
        **settings, class_token=False, global_pool="map", mlp_ratio=(hidden + 0.5) / width
    )
    model.attn_pool = pool
    return model


def _find_registers(num_tokens: int, device: torch.device) -> Bool[Tensor, " token"]:
    places = torch.arange(num_tokens, device=device)
    return (places >= 1) & (places < 1 + NUM_REGISTERS)


def _find_parts(block: Block, num_registers: int) -> BlockParts:
    known = (Block, MaskedBlock, ConstantBlock, MaskedConstantBlock)
    require(type(block) in known, "a variant of the study", f"blocks {type(block).__name__}")
    hidden = num_registers if isinstance(block, MaskedBlock) else 0
    parts = make_prenorm_parts(
        block,
        taps={"qkv": block.attn.qkv},
        make_heads=partial(_make_heads, block.attn, hidden),
        project_heads=partial(_project_heads, block.attn, hidden),
    )
    if not isinstance(block, ConstantBlock):
        return parts
    return replace(parts, skip=partial(_give_constant, block))


def _make_heads(attention: nn.Module, hidden: int, call: AttentionCall, row: int) -> Heads:
    queries, keys, values = call.taps["qkv"].chunk(3, dim=-1)
    return _split(attention, hidden, queries[:, row : row + 1], keys, values)


def _project_heads(attention: nn.Module, hidden: int, call: AttentionCall, row: int) -> Heads:
    return _split(attention, hidden, *project_fused(attention.qkv, call.tokens, row))


def _split(attention: nn.Module, hidden: int, *tokens: Tokens) -> Heads:
    query, keys, values = (split_heads(each, attention.num_heads) for each in tokens)
    bias = None
    if hidden:
        # Finite, because a ledger must be; its weight is exactly 0 all the same.
        bias = keys.new_zeros(1, 1, keys.shape[2])
        bias[..., 1 : 1 + hidden] = torch.finfo(keys.dtype).min
    return Heads(query=query[:, :, 0], keys=keys, values=values, bias=bias)


def _give_constant(
    block: ConstantBlock, row: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch dim"]:
    return block.constant.to(row).expand_as(row)


def _lay_out(model: VisionTransformer, height: int, width: int) -> TokenLayout:
    order = {"cls": 1, "registers": model.num_reg_tokens, "patches": 0}
    return make_layout(order, make_grid(height, width, model.patch_embed.patch_size))


def _run(
    model: VisionTransformer, pixels: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, "batch dim"]:
    feature: Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)
    return feature
