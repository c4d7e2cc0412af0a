"""Shared by the tests of maps: models of every family, and random images with references."""

import torch

import hub_twin
import hub_twin_dinov3
from support_table import TINY_MODELS
from vitscope import wrap_model
from vitscope.maps.method import MapInput
from vitscope.maps.references import make_references
from vitscope.maps.targets import explain_self
from vitscope.testing.randomize import randomize

TWINS = {
    "hub/dinov2": lambda: hub_twin.DinoVisionTransformer(num_register_tokens=2),
    "hub/dinov2_chunked": lambda: hub_twin.DinoVisionTransformer(
        attn_class=hub_twin.Attention, ffn_layer="swiglufused", block_chunks=3
    ),
    "hub/dinov3": hub_twin_dinov3.DinoVisionTransformer,
}
MODELS = {
    **TINY_MODELS,
    **{name: lambda build=build: randomize(build()) for name, build in TWINS.items()},
}


def wrap(name, dtype=torch.float64, *, eager=False):
    module = MODELS[name]()
    if eager and hasattr(module, "set_attn_implementation"):
        module.set_attn_implementation("eager")
    for part in module.modules() if eager else ():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    return wrap_model(module).to("cpu", dtype)


def draw_pixels(vit, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    height, width = vit.preprocessing.size
    if vit.info.family.split("/")[-1].startswith("dino"):  # takes any size; its own is large
        height, width = (4 * side for side in vit.info.patch_size)
    shape = (count, 3, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(vit.parameter.dtype)


def make_input(vit, *, images=2, references=3, choice=explain_self, **settings):
    """Random images; the references are also the images that a trace compares with."""
    return MapInput(
        vit=vit,
        pixels=draw_pixels(vit, images),
        choice=choice,
        references=make_references(vit, [draw_pixels(vit, references, seed=1)]),
        **settings,
    )
