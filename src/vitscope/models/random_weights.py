"""Random numbers in place of a model's weights."""

import math

import torch
from torch import Tensor

_GAIN = 1.4
"""Standard deviation of a linear map's output for an input of unit variance. The query-key logits
spread by about its square, so that attention is not uniform."""


def draw_weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw a parameter that keeps activations near 1, whatever it is (`testing.randomize`)."""
    noise = torch.randn(shape, generator=generator)
    if noise.ndim in {2, 4}:
        return noise * (_GAIN / math.sqrt(noise[0].numel()))
    if noise.ndim > 1:
        return noise
    return 0.3 * noise if name.endswith("bias") else 1 + 0.3 * noise
