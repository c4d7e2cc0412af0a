"""An independent forward of a tiny timm model with its own hooks, as a reference for audits."""

import numpy as np
import torch

from audits import tiny_vit
from vitscope import ImageSet
from vitscope.images.image_set import iter_batches

REGISTERS = tuple(f"register_{i}" for i in range(4))


class Forward:
    """Residual streams at every depth and normed tokens of every block, for all images at once."""

    def __init__(self, name, images):
        vit = tiny_vit(name).to("cpu", torch.float64)
        image_set = ImageSet.from_sources([images], vit.preprocessing)
        self.pixels = next(iter_batches(image_set, batch_size=99)).pixels.double()
        self.vit = vit
        self.streams, self.normed = [], []
        handles = []
        for block in vit.module.blocks:
            handles += [
                block.register_forward_pre_hook(lambda _, args: self._keep(self.streams, args[0])),
                block.norm1.register_forward_hook(lambda *args: self._keep(self.normed, args[-1])),
            ]
        last = vit.module.blocks[-1]
        handles.append(last.register_forward_hook(lambda *a: self._keep(self.streams, a[-1])))
        with torch.no_grad():
            vit.run(self.pixels)
        for handle in handles:
            handle.remove()

    @staticmethod
    def _keep(to, value):
        to.append(value.detach().numpy().copy())

    def states(self, layer, token):
        """The four states of a token at the input of a block, one row per image."""
        stream, normed = self.streams[layer], self.normed[layer]
        if token == "highest_patch":
            places = 5 + np.linalg.norm(stream[:, 5:], axis=2).argmax(axis=1)
        else:
            places = ["cls", *REGISTERS].index(token)
        rows = np.arange(len(stream))
        weight, bias = (
            p.detach().numpy() for p in self.vit.module.blocks[layer].attn.qkv.parameters()
        )
        _, keys, values = np.split(normed[rows, places] @ weight.T + bias, 3, axis=1)
        return {
            "hidden": stream[rows, places],
            "normed": normed[rows, places],
            "keys": keys,
            "values": values,
        }
