"""Smoke test of the reproduction with random models, whose numbers say nothing about real ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling

from vitscope.errors import UsageError
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.printable import printable_path
from vitscope.files.storage import staged_folder
from vitscope.models.base import ViTAdapter
from vitscope.reproduction.planned_models import PlannedModel
from vitscope.reproduction.state import STATE, check_folder
from vitscope.weights.catalogue import CATALOGUE, CatalogueEntry

_PATCH_PX, _SIDE_PX = 8, 64
_SHAPES = {"ti": (16, 2), "s": (32, 3), "b": (48, 4), "l": (64, 5), "g": (96, 6)}
"""Width and depth of the tiny model for each size."""

_OUTLIERS = (9, 36, 54)
"""Patches with a high norm in the largest models without registers."""

_NUM_CLASSES, _NUM_EACH = 6, 8
_NOTE = "random weights in the place of {name}: its numbers say nothing about that model"


def plan_smoke(models: Sequence[PlannedModel]) -> list[PlannedModel]:
    """Replace each planned model by a tiny random one."""
    return [
        replace(
            model,
            source="random weights",
            download_mb=0,
            state="made on the spot",
            weights="random weights",
            num_params=_count_params(CATALOGUE[model.name]),
            load=partial(_load_tiny, model.name),
        )
        for model in models
    ]


def write_smoke_images(folder: Path) -> Path:
    """Write images of a few classes, one folder per class, some of them wide or tall."""
    images = _make_images()
    if folder.is_dir() and _holds_exactly(folder, images):
        return folder
    with staged_folder(folder) as staging:
        for name, data in images.items():
            with plain_disk_errors(staging):
                (staging / name).parent.mkdir(exist_ok=True)
                (staging / name).write_bytes(data)
    return folder


def check_smoke_folder(out: Path, images: Path) -> None:
    """Refuse a folder that is not from a smoke test."""
    check_folder(out, images)
    if (out / STATE).exists() and not images.exists():
        raise UsageError(
            f"{printable_path(out)} is a reproduction with real images: give --smoke another folder"
        )


def _make_images() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    images = {}
    for label in range(_NUM_CLASSES):
        common = generator.uniform(0, 255, (5, 5, 3))
        for number in range(_NUM_EACH):
            coarse = 0.6 * common + 0.4 * generator.uniform(0, 255, (5, 5, 3))
            size = ((96, 72), (72, 96), (80, 80))[number % 3]
            # Smooth colours with noise of varying strength, so that covariates vary.
            smooth = Image.fromarray(coarse.astype(np.uint8)).resize(size, Resampling.BICUBIC)
            noise = generator.normal(0, generator.uniform(0, 40), (*size[::-1], 3))
            pixels = (np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)
            file = BytesIO()
            Image.fromarray(pixels).save(file, format="PNG")
            images[f"class-{label}/{number:02d}.png"] = file.getvalue()
    return images


def _holds_exactly(folder: Path, images: Mapping[str, bytes]) -> bool:
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    return names == set(images) and all(
        (folder / name).read_bytes() == data for name, data in images.items()
    )


def _load_tiny(name: str) -> ViTAdapter:
    from vitscope.adapters.timm import make_timm_adapter
    from vitscope.testing.randomize import randomize

    entry = CATALOGUE[name]
    tower: Any = randomize(_build(entry), seed=sum(name.encode()))
    if entry.num_registers == 0 and entry.size_class in {"l", "g"}:
        with torch.no_grad():
            tower.pos_embed[:, [-i for i in _OUTLIERS]] *= 30
    vit = make_timm_adapter(tower, model_id=f"smoke/{name}").labelled(entry.family, entry.size)
    return replace(vit, info=replace(vit.info, notes=(*vit.info.notes, _NOTE.format(name=name))))


def _build(entry: CatalogueEntry) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    width, depth = _SHAPES[entry.size_class]
    pooling = entry.global_feature != "cls"
    return VisionTransformer(
        img_size=_SIDE_PX,
        patch_size=_PATCH_PX,
        embed_dim=width,
        depth=depth,
        num_heads=4,
        num_classes=0,
        init_values=1e-5 if entry.family_key in {"dinov2", "dinov2-reg", "deit3"} else None,
        pre_norm="clip" in entry.family_key,
        class_token=not pooling,
        global_pool="map" if pooling else "token",
        reg_tokens=entry.num_registers,
        no_embed_class=entry.num_registers > 0,
        dynamic_img_size=True,
    )


def _count_params(entry: CatalogueEntry) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in _build(entry).parameters())
