"""A structural twin of torch.hub's DINOv3 model class, written for the tests.

In addition to DINOv2's (`hub_twin`): storage tokens, rotary positions passed to each block for the
patches, a masked key bias, and blocks that are called with a list of one stream.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from hub_twin import LayerScale, Mlp


class PatchEmbed(nn.Module):
    def __init__(self, patch_size, embed_dim):
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x):
        return self.proj(x).permute(0, 2, 3, 1)


class RopePositionEmbedding(nn.Module):
    """Sines and cosines in float32, whatever the model's precision, as in the published models."""

    def __init__(self, head_dim, base=100.0):
        super().__init__()
        periods = base ** (2 * torch.arange(head_dim // 4) / (head_dim // 2))
        self.register_buffer("periods", periods)

    def forward(self, *, H, W):  # noqa: N803 - the publisher's names
        sides = [(torch.arange(n, dtype=torch.float32) + 0.5) / n * 2 - 1 for n in (H, W)]
        places = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 1)
        angles = 2 * math.pi * places[:, :, None] / self.periods.float()
        angles = angles.flatten(1, 2).tile(2)
        return angles.sin(), angles.cos()


class LinearKMaskedBias(nn.Linear):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.bias is not None:
            mask = torch.ones_like(self.bias)
            third = self.out_features // 3
            mask[third : 2 * third] = 0
            self.register_buffer("bias_mask", mask)

    def forward(self, x):
        masked = None if self.bias is None else self.bias * self.bias_mask.to(self.bias.dtype)
        return functional.linear(x, self.weight, masked)


class SelfAttention(nn.Module):
    def __init__(self, dim, num_heads, qkv_bias, mask_k_bias):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        linear = LinearKMaskedBias if mask_k_bias else nn.Linear
        self.qkv = linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def apply_rope(self, x, sin, cos):
        cast = x.to(sin.dtype)
        prefix = x.shape[-2] - sin.shape[-2]
        patches = cast[:, :, prefix:]
        half = patches.shape[-1] // 2
        turned = torch.cat([-patches[..., half:], patches[..., :half]], dim=-1)
        rotated = patches * cos + turned * sin
        return torch.cat((cast[:, :, :prefix], rotated), dim=-2).to(x.dtype)

    def forward(self, x, attn_bias=None, rope=None):
        assert attn_bias is None
        batch, length, dim = x.shape
        shape = (batch, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = (part.transpose(1, 2) for part in self.qkv(x).reshape(shape).unbind(2))
        if rope is not None:
            q, k = self.apply_rope(q, *rope), self.apply_rope(k, *rope)
        x = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj_drop(self.proj(x.reshape(batch, length, dim)))


class SelfAttentionBlock(nn.Module):
    def __init__(self, dim, num_heads, init_values, qkv_bias, mask_k_bias):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = SelfAttention(dim, num_heads, qkv_bias, mask_k_bias)
        self.ls1 = LayerScale(dim, init_values)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls2 = LayerScale(dim, init_values)
        self.sample_drop_ratio = 0.0

    def forward(self, x_list, rope_list):
        outputs = []
        for x, rope in zip(x_list, rope_list, strict=True):
            x_attn = x + self.ls1(self.attn(self.norm1(x), rope=rope))
            outputs.append(x_attn + self.ls2(self.mlp(self.norm2(x_attn))))
        return outputs


class DinoVisionTransformer(nn.Module):
    def __init__(
        self,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=4,
        n_storage_tokens=4,
        qkv_bias=True,
        mask_k_bias=True,
        untie_cls_and_patch_norms=False,
    ):
        super().__init__()
        self.num_features = self.embed_dim = embed_dim
        self.n_blocks = depth
        self.num_heads = num_heads
        self.patch_size = patch_size
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.n_storage_tokens = n_storage_tokens
        self.storage_tokens = nn.Parameter(torch.zeros(1, n_storage_tokens, embed_dim))
        self.rope_embed = RopePositionEmbedding(embed_dim // num_heads)
        self.chunked_blocks = False
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(embed_dim, num_heads, 1e-5, qkv_bias, mask_k_bias)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)
        self.untie_cls_and_patch_norms = untie_cls_and_patch_norms
        self.cls_norm = nn.LayerNorm(embed_dim, eps=1e-5) if untie_cls_and_patch_norms else None
        self.local_cls_norm = None
        self.head = nn.Identity()
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim))

    def forward_features(self, x):
        x = self.patch_embed(x)
        batch, rows, columns, _ = x.shape
        prefix = [self.cls_token + 0 * self.mask_token, self.storage_tokens]
        stream = [torch.cat([*(p.expand(batch, -1, -1) for p in prefix), x.flatten(1, 2)], dim=1)]
        for block in self.blocks:
            stream = block(stream, [self.rope_embed(H=rows, W=columns)])
        first_patch = self.n_storage_tokens + 1
        cls_norm = self.cls_norm if self.untie_cls_and_patch_norms else self.norm
        special = cls_norm(stream[0][:, :first_patch])
        return {
            "x_norm_clstoken": special[:, 0],
            "x_storage_tokens": special[:, 1:],
            "x_norm_patchtokens": self.norm(stream[0][:, first_patch:]),
            "x_prenorm": stream[0],
        }

    def forward(self, *args, is_training=False, **kwargs):
        features = self.forward_features(*args, **kwargs)
        return features if is_training else self.head(features["x_norm_clstoken"])
