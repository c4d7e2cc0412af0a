"""A timm ViT from its tokens at depth 0 to its feature, written out from definitions.

A reference for maps: it shares no code with them, runs one image at a time, keeps every attention
matrix, and can be run again as the affine function that it is when attention, the scale of norms
and the slopes of activations are held.
"""

import math
from dataclasses import dataclass, field

import torch


@dataclass
class PlainRun:
    """What one run computed; `held` are the values that a frozen run takes from it."""

    streams: list = field(default_factory=list)
    attention: list = field(default_factory=list)
    held: list = field(default_factory=list)
    normed: torch.Tensor | None = None
    feature: torch.Tensor | None = None


class PlainViT:
    def __init__(self, module):
        self.module = module
        self._given = None
        self._run = PlainRun()

    def run(self, tokens, *, frozen=None, replaced=None):
        """Run on the tokens of one image; `replaced` are streams that take the place of others.

        With `frozen`, a run of the same image, what is not linear has the values it had there.
        """
        self._run = PlainRun()
        self._given = None if frozen is None else iter(frozen.held)
        x = tokens
        for depth, block in enumerate(self.module.blocks):
            x = (replaced or {}).get(depth, x)
            self._run.streams.append(x)
            self._run.normed = self._norm(block.norm1, x)
            x = x + self._scale(block.ls1, self._attend(block.attn, self._run.normed))
            x = x + self._scale(block.ls2, self._transform(block.mlp, self._norm(block.norm2, x)))
        x = (replaced or {}).get(len(self.module.blocks), x)
        self._run.streams.append(x)
        self._run.feature = self._pool(x)
        return self._run

    def embed(self, row):
        """The final norm of one token."""
        self._given = None
        return self._norm(self.module.norm, row)

    def _pool(self, x):
        x = self._norm(self.module.norm, x)
        pool = getattr(self.module, "attn_pool", None)
        if pool is None:
            return x[0]
        x = x[self.module.num_prefix_tokens :]
        self._run.normed = x
        query = self._apply(pool.q, pool.latent[0])
        keys, values = self._apply(pool.kv, x).chunk(2, dim=-1)
        x = self._apply(pool.proj, self._read(query, keys, values, pool.num_heads))
        x = x + self._transform(pool.mlp, self._norm(pool.norm, x))
        return self._norm(self.module.fc_norm, x[0])

    def _hold(self, compute):
        if self._given is not None:
            return next(self._given)
        value = compute()
        self._run.held.append(
            tuple(v.detach() for v in value) if isinstance(value, tuple) else value.detach()
        )
        return value

    def _apply(self, linear, x):
        return x @ linear.weight.T + (0 if linear.bias is None else linear.bias)

    def _scale(self, scale, x):
        return x * scale.gamma if hasattr(scale, "gamma") else x

    def _norm(self, norm, x):
        if isinstance(norm, torch.nn.Identity):
            return x
        centred = x - x.mean(dim=-1, keepdim=True)
        scale = self._hold(lambda: 1 / ((centred**2).mean(dim=-1, keepdim=True) + norm.eps).sqrt())
        return centred * scale * norm.weight + norm.bias

    def _attend(self, attention, x):
        queries, keys, values = self._apply(attention.qkv, x).chunk(3, dim=-1)
        return self._apply(attention.proj, self._read(queries, keys, values, attention.num_heads))

    def _read(self, queries, keys, values, num_heads):
        queries, keys, values = (
            t.reshape(len(t), num_heads, -1).transpose(0, 1) for t in (queries, keys, values)
        )
        logits = torch.einsum("hqd,hkd->hqk", queries, keys) / math.sqrt(queries.shape[-1])
        weights = self._hold(lambda: logits.exp() / logits.exp().sum(dim=-1, keepdim=True))
        self._run.attention.append(weights)
        return torch.einsum("hqk,hkd->qhd", weights, values).flatten(1)

    def _transform(self, mlp, x):
        hidden = self._apply(mlp.fc1, x)
        if type(mlp).__name__ != "GluMlp":
            return self._apply(mlp.fc2, self._gelu(hidden))
        gate, value = hidden.chunk(2, dim=-1)
        gate = self._gelu(gate)
        if self._given is None:
            self._hold(lambda: (gate, value))
            return self._apply(mlp.fc2, gate * value)
        own_gate, own_value = next(self._given)
        return self._apply(mlp.fc2, (gate * own_value + own_gate * value) / 2)

    def _gelu(self, z):
        return z * self._hold(lambda: (1 + torch.erf(z / math.sqrt(2))) / 2)
