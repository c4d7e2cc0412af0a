"""A plain ViT with edits inside its blocks, written from their definitions: one image at a time."""

import math

import torch

from plain_vit import PlainViT
from support_table import TINY_MODELS
from vitscope import wrap_model
from vitscope.maps.passes import run_blocks


class EditedViT(PlainViT):
    """Edits by block: of an MLP's neurons, and of what an attention weight reads."""

    def __init__(self, module, *, neurons=None, read=None):
        super().__init__(module)
        self._neurons = {id(module.blocks[k].mlp.fc2): edit for k, edit in (neurons or {}).items()}
        self._reads = read or {}

    def _apply(self, linear, x):
        edit = self._neurons.get(id(linear))
        return super()._apply(linear, x if edit is None else edit(x))

    def _read(self, queries, keys, values, num_heads):
        edit = self._reads.get(len(self._run.streams) - 1)
        if edit is None:
            return super()._read(queries, keys, values, num_heads)
        size = queries.shape[1] // num_heads
        rows = torch.zeros_like(queries)
        for head in range(num_heads):
            part = slice(head * size, (head + 1) * size)
            for row in range(len(queries)):
                products = keys[:, part] @ queries[row, part] / math.sqrt(size)
                rows[row, part] = edit(row, products, values[:, part])
        return rows


def wrap_tiny(name):
    return wrap_model(TINY_MODELS[name]().requires_grad_(False)).to("cpu", torch.float64)


def draw_pixels(vit, count):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, *vit.preprocessing.size, generator=generator, dtype=torch.float64)


def record_streams(vit, pixels):
    """Tokens of each image at every depth: image × depth × token × dim."""
    return torch.stack(run_blocks(vit, pixels).streams, dim=1)
