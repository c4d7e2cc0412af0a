"""What do the verdict's two readings say of real, random and planted models?"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
from torch import nn
from transformers import ViTConfig, ViTModel

import vitscope
from benchmarks.images import write_images
from benchmarks.models import build_dinov2
from benchmarks.page import Section, Table
from benchmarks.settings import Settings
from vitscope import AuditConfig
from vitscope.errors import ModelUnreachableError
from vitscope.models.base import ViTAdapter
from vitscope.results.result_text import tell_estimate
from vitscope.testing.planted import RECIPES, plant

_COLUMNS = ("model", "layer", "patches' variance share", "CKA(r, patches)", "verdict")


def measure(settings: Settings) -> Section:
    """Audit each model on the same images."""
    count = 24 if settings.tiny else 200
    rows, notes = [], []
    with TemporaryDirectory() as folder:
        write_images(Path(folder), count, settings.images)
        for name, load in _list_models(settings):
            try:
                vit = load()
            except ModelUnreachableError as error:
                notes.append(f"{name} is left out: {error}")
                continue
            layers = "all" if name == "dinov2-small" else "last"
            rows += _audit(name, vit, folder, AuditConfig(layers=layers, gallery=0))
    return Section(
        title="The verdict's two readings",
        how=f"Audits of {count} images. dinov2-small has trained weights. What the output of a "
        "planted model (`vitscope.testing.planted`) is made of is known.",
        tables=[Table(_COLUMNS, rows)],
        notes=notes,
    )


def _list_models(settings: Settings) -> Iterator[tuple[str, Callable[[], ViTAdapter]]]:
    if not settings.tiny:
        yield "dinov2-small", lambda: vitscope.load_model("dinov2-small")
    for name, build in _RANDOM.items():
        if not settings.tiny or name == "random tiny DINOv2":
            yield name, lambda name=name, build=build: vitscope.wrap_model(build(), model_id=name)
    for name in RECIPES:
        yield (f"planted {name}", lambda name=name: vitscope.wrap_model(plant(name), model_id=name))


def _build_timm() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return timm.create_model("vit_tiny_patch16_224", num_classes=0)


def _build_vit() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        config = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768)
        return ViTModel(config)


_RANDOM: dict[str, Callable[[], nn.Module]] = {
    "random ViT-Ti/16 (timm's start)": _build_timm,
    "random ViT-Ti/16 (transformers' start)": _build_vit,
    "random DINOv2-S/14 (randomize)": lambda: build_dinov2("small"),
    "random tiny DINOv2": lambda: build_dinov2("tiny"),
}


def _audit(
    name: str, vit: ViTAdapter, folder: str, config: AuditConfig
) -> Iterator[tuple[str, ...]]:
    summary = vitscope.audit(vit, folder, config).summary
    for layer in summary.layers:
        share = layer.variance_share["residual"]["patches"]
        cka = layer.cka["residual"]["patches"]
        yield (
            name,
            str(layer.index),
            tell_estimate(share),
            tell_estimate(cka),
            layer.verdict.status,
        )
