"""A model whose output is a constant plus a sum of functions of single patches."""

import torch
from timm.models.vision_transformer import VisionTransformer

from vitscope import wrap_model
from vitscope.maps.method import MapInput
from vitscope.maps.references import make_references
from vitscope.maps.targets import explain_self
from vitscope.testing import randomize

PATCH = 8


def make_bag(rows, columns):
    """One block in float64: attention is uniform, the MLP writes nothing, nothing is normalised."""
    bag = VisionTransformer(
        img_size=(rows * PATCH, columns * PATCH),
        patch_size=PATCH,
        embed_dim=16,
        depth=1,
        num_heads=2,
        num_classes=0,
        final_norm=False,
    )
    randomize(bag)
    block = bag.blocks[0]
    with torch.no_grad():
        block.attn.qkv.weight[:32] = 0  # queries and keys
        block.mlp.fc2.weight.zero_()
        block.mlp.fc2.bias.zero_()
    return wrap_model(bag).to("cpu", torch.float64)


def make_input(vit, *, images=1, references=3, seed=0, **settings):
    """Random images, explained by themselves."""
    generator = torch.Generator().manual_seed(seed)
    height, width = vit.preprocessing.size
    shape = (images + references, 3, height, width)
    pixels = torch.randn(shape, generator=generator, dtype=torch.float64)
    return MapInput(
        vit=vit,
        pixels=pixels[:images],
        choice=explain_self,
        references=make_references(vit, [pixels[images:]]),
        **settings,
    )
