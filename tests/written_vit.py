"""A tiny timm ViT whose weights are written by hand, so that every number has a known source.

Tokens hold signs and content. A sign is a pair of dimensions, 1 and −1. In attention, tokens look
at others by their signs and copy what these hold; a neuron fires on tokens with a sign. Nothing
else is ever written.
"""

import torch
from timm.layers import Mlp, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch.nn import GELU, SiLU

WIDTH, PATCH, GRID = 24, 4, 3
CLS, PATCHES, BLANK, REGISTER, SINK = ((pair, pair + 1) for pair in range(0, 10, 2))
CONTENT = range(12, WIDTH)


def sign(pair):
    vector = torch.zeros(WIDTH, dtype=torch.float64)
    vector[list(pair)] = torch.tensor([1.0, -1.0], dtype=torch.float64)
    return vector


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@torch.no_grad()
def write_model(*, depth, registers=0, gated=False):
    """A model whose blocks do nothing yet."""
    model = VisionTransformer(
        img_size=PATCH * GRID,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=depth,
        num_heads=1,
        num_classes=0,
        reg_tokens=registers,
        act_layer=SiLU if gated else GELU,
        mlp_layer=SwiGLUPacked if gated else Mlp,
        mlp_ratio=2 if gated else 1,
    ).double()
    for block in model.blocks:
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
    for parameter in (model.pos_embed, *model.patch_embed.parameters()):
        parameter.zero_()
    # What the channels of a patch are: ordinary, blank, content.
    filters = model.patch_embed.proj.weight
    filters[:, 0] = sign(PATCHES)[:, None, None] / PATCH**2
    filters[:, 1] = sign(BLANK)[:, None, None] / PATCH**2
    filters[CONTENT, 2] = torch.eye(len(CONTENT), PATCH**2).unflatten(1, (PATCH, PATCH)).double()
    model.cls_token[:] = sign(CLS)
    if registers:
        model.reg_token[:] = sign(REGISTER)
        model.reg_token[..., CONTENT] = draw(registers, len(CONTENT))
    return model.eval()


@torch.no_grad()
def write_attention(block, who, whom, *, read=CONTENT):
    """Let tokens with a sign copy the content of those with another; all others copy [CLS]."""
    attention, sure = block.attn, 400
    query, key, value = attention.qkv.weight.unflatten(0, (3, WIDTH))
    query[0], key[0] = sure * sign(who), sign(whom)
    attention.qkv.bias[1], key[1] = sure / 4, sign(CLS)
    for index, (source, target) in enumerate(zip(read, CONTENT, strict=False)):
        value[index, source] = 1
        attention.proj.weight[target, index] = 1


@torch.no_grad()
def write_neuron(block, number, *, on, writes):
    """Let a neuron fire on tokens that are a sign and no more, and write a vector to them."""
    mlp = block.mlp
    mlp.fc1.weight[:] = draw(*mlp.fc1.weight.shape) / 2
    mlp.fc1.weight[number], mlp.fc1.bias[number] = 20 * sign(on), -60
    hidden = mlp.fc1(block.norm2(sign(on)))
    if len(hidden) == mlp.fc2.in_features:
        fired = mlp.act(hidden)
    else:
        value = number + mlp.fc2.in_features
        mlp.fc1.weight[value], mlp.fc1.bias[value] = 0, 1
        fired = mlp.act(hidden)  # of the gate; the value is 1
    mlp.fc2.weight[:, number] = writes / fired[number]


def draw_images(blanks):
    """Images of random content; `blanks` has the places of the blank patches of each."""
    cells = torch.zeros(len(blanks), 3, GRID * GRID, PATCH, PATCH, dtype=torch.float64)
    cells[:, 0] = 1
    cells[:, 2] = draw(*cells[:, 2].shape).sign()  # so that the norms of patches are equal
    for image, places in zip(cells, blanks, strict=True):
        for place in places:
            image[:, place] = torch.tensor([0.0, 1, 0])[:, None, None]
    grid = cells.unflatten(2, (GRID, GRID)).transpose(3, 4)
    return grid.reshape(len(blanks), 3, GRID * PATCH, GRID * PATCH)
