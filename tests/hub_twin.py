"""A structural twin of torch.hub's DINOv2 model class, written for the tests.

The publisher's code cannot be imported here. The twin has the same class names, attribute names and
arithmetic wherever an adapter could touch them: fused qkv, layer scales, registers, chunked blocks,
SwiGLU with packed gates, and position embeddings interpolated with an offset. With `registers_last`
it is a twin of the fork for test-time registers (nickjiang2378/test-time-registers): registers, or
tokens of zeros in a model without them, come after the patches.
"""

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional


class PatchEmbed(nn.Module):
    def __init__(self, img_size, patch_size, embed_dim):
        super().__init__()
        self.img_size = (img_size, img_size)
        self.patch_size = (patch_size, patch_size)
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.Identity()

    def forward(self, x):
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class LayerScale(nn.Module):
    def __init__(self, dim, init_values):
        super().__init__()
        self.gamma = nn.Parameter(init_values * torch.ones(dim))

    def forward(self, x):
        return x * self.gamma


class Attention(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x):
        batch, length, dim = x.shape
        shape = (batch, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4)
        attn = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)
        x = (self.attn_drop(attn) @ v).transpose(1, 2).reshape(batch, length, dim)
        return self.proj_drop(self.proj(x))


class MemEffAttention(Attention):
    """Stands for the xformers path: the same numbers from another kernel, tokens before heads."""

    def forward(self, x, attn_bias=None):
        assert attn_bias is None
        batch, length, dim = x.shape
        shape = (batch, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = (part.transpose(1, 2) for part in self.qkv(x).reshape(shape).unbind(2))
        x = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj_drop(self.proj(x.reshape(batch, length, dim)))


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(0.0)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class SwiGLUFFNFused(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        inner = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * inner)
        self.w3 = nn.Linear(inner, dim)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(functional.silu(gate) * value)


class Block(nn.Module):
    def __init__(self, dim, num_heads, init_values, ffn_layer, attn_class):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn_class(dim, num_heads)
        self.ls1 = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.drop_path1 = nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = ffn_layer(dim, 4 * dim)
        self.ls2 = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.drop_path2 = nn.Identity()
        self.sample_drop_ratio = 0.0

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class NestedTensorBlock(Block):
    def forward(self, x_or_x_list):
        assert isinstance(x_or_x_list, torch.Tensor)
        return super().forward(x_or_x_list)


class BlockChunk(nn.ModuleList):
    def forward(self, x):
        for block in self:
            x = block(x)
        return x


class DinoVisionTransformer(nn.Module):
    def __init__(
        self,
        img_size=28,
        patch_size=7,
        embed_dim=32,
        depth=3,
        num_heads=4,
        init_values=1.0,
        ffn_layer="mlp",
        block_chunks=0,
        num_register_tokens=0,
        interpolate_antialias=False,
        interpolate_offset=0.1,
        attn_class=MemEffAttention,
        registers_last=False,
    ):
        super().__init__()
        self.num_features = self.embed_dim = embed_dim
        self.num_tokens = 1
        self.n_blocks = depth
        self.num_heads = num_heads
        self.patch_size = patch_size
        self.num_register_tokens = num_register_tokens
        self.registers_last = registers_last
        self.interpolate_antialias = interpolate_antialias
        self.interpolate_offset = interpolate_offset
        self.patch_embed = PatchEmbed(img_size, patch_size, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        length = self.patch_embed.num_patches + self.num_tokens
        self.pos_embed = nn.Parameter(torch.zeros(1, length, embed_dim))
        self.register_tokens = (
            nn.Parameter(torch.zeros(1, num_register_tokens, embed_dim))
            if num_register_tokens
            else None
        )
        ffn = {"mlp": Mlp, "swiglufused": SwiGLUFFNFused}[ffn_layer]
        make = partial(NestedTensorBlock, embed_dim, num_heads, init_values, ffn, attn_class)
        blocks = [make() for _ in range(depth)]
        self.chunked_blocks = block_chunks > 0
        if self.chunked_blocks:
            size = depth // block_chunks
            blocks = [
                BlockChunk([nn.Identity()] * i + blocks[i : i + size])
                for i in range(0, depth, size)
            ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Identity()
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim))

    def interpolate_pos_encoding(self, x, height, width):
        number = self.pos_embed.shape[1] - 1
        if x.shape[1] - 1 == number and height == width:
            return self.pos_embed
        table = self.pos_embed.float()
        side = math.isqrt(number)
        rows, columns = height // self.patch_size, width // self.patch_size
        if self.interpolate_offset:
            ends = (rows + self.interpolate_offset, columns + self.interpolate_offset)
            target = {"scale_factor": tuple(float(end) / side for end in ends)}
        else:
            target = {"size": (rows, columns)}
        patches = functional.interpolate(
            table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2),
            mode="bicubic",
            antialias=self.interpolate_antialias,
            **target,
        )
        assert patches.shape[-2:] == (rows, columns)
        patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat((table[:, :1], patches), dim=1).to(x.dtype)

    def prepare_tokens_with_masks(self, x, masks=None):
        height, width = x.shape[-2:]
        x = self.patch_embed(x)
        if masks is not None:
            x = torch.where(masks.unsqueeze(-1), self.mask_token.unsqueeze(0), x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = x + self.interpolate_pos_encoding(x, height, width)
        if self.registers_last:
            shape = (x.shape[0], self.num_register_tokens, x.shape[2])
            own = x.new_zeros(shape) if self.register_tokens is None else self.register_tokens
            x = torch.cat((x, own.expand(shape)), dim=1)
        elif self.register_tokens is not None:
            registers = self.register_tokens.expand(x.shape[0], -1, -1)
            x = torch.cat((x[:, :1], registers, x[:, 1:]), dim=1)
        return x

    def forward_features(self, x, masks=None):
        x = self.prepare_tokens_with_masks(x, masks)
        for block in self.blocks:
            x = block(x)
        normed = self.norm(x)
        first_patch = 1 + self.num_register_tokens
        return {
            "x_norm_clstoken": normed[:, 0],
            "x_norm_regtokens": normed[:, 1:first_patch],
            "x_norm_patchtokens": normed[:, first_patch:],
            "x_prenorm": x,
            "masks": masks,
        }

    def forward(self, *args, is_training=False, **kwargs):
        features = self.forward_features(*args, **kwargs)
        return features if is_training else self.head(features["x_norm_clstoken"])
