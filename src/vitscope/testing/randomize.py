"""Random weights that make tests strict: no zeros, no ones, no uniform attention."""

import torch
from torch import nn

from vitscope.models.random_weights import draw_weight


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter with random numbers that keep activations near 1.

    Libraries initialise biases and [CLS] tokens to zero, layer scales to 1e-5 and norms to one, so
    a test on such weights would not notice a missing bias, scale or norm. Here matrices and
    convolutions are normal with standard deviation 1.4 / √fan_in, tokens and position embeddings
    are unit normal, biases are normal with standard deviation 0.3 around 0, and all other vectors
    (norm weights, layer scales) around 1.

    Args:
        module: The model; its parameters are overwritten, its buffers are not.
        seed: The same seed gives the same numbers, independent of torch's global generator.

    Returns:
        The same module, in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(draw_weight(name, parameter.shape, generator))
    return module.eval()
