"""A structural twin of PH-Reg's DINOv2 student, written for the tests.

The published code cannot be imported here. The twin has the same class name, the same parts under
the same two names each, and the same tokens: registers, [CLS], patches. The published forward takes
the first element of what a layer returns, a tuple before transformers 5; the twin takes either.
"""

import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from vitscope.testing.randomize import randomize

SIZE = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
}


class RegDINOv2Base(nn.Module):
    def __init__(self, model, num_registers=3):
        super().__init__()
        self.model = model
        self.embed = self.model.embeddings
        self.encoder = self.model.encoder
        self.layernorm = self.model.layernorm
        width = model.config.hidden_size
        self.registers = nn.Parameter(torch.randn(1, num_registers, width))

    def forward(self, images, **_):
        tokens = self.embed(images)
        first = torch.stack([self.registers[0] for _ in tokens])
        tokens = torch.cat((first, tokens), dim=1)
        for layer in self.encoder.layer:
            returned = layer(tokens)
            tokens = returned[0] if isinstance(returned, tuple) else returned
        return {
            "last_hidden_state": self.layernorm(tokens),
            "hidden_states": None,
            "attentions": None,
        }


def make_base():
    return randomize(Dinov2Model(Dinov2Config(**SIZE)))


def make_student():
    return randomize(RegDINOv2Base(make_base()))
