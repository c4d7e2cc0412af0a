"""The models of the paper by plain names, and where each one's weights are.

Source: Lappe & Giese (NeurIPS 2025), figures 2 to 9.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One published model.

    Attributes:
        id: The id it is loaded by.
        family: The training recipe, the same for all of its sizes.
        size: The paper's label of its size.
        checkpoint: Where a person fetches the weights, of a model that has no id to download it
            by; its `id` then says how to load the file.
        note: What a reader of its numbers should know; `load_model` adds it to the model's notes.
    """

    id: str
    family: str
    size: str
    checkpoint: str = ""
    note: str = ""


def _make_dinov2() -> dict[str, CatalogueEntry]:
    entries = {}
    for label, size in (("S", "small"), ("B", "base"), ("L", "large"), ("g", "giant")):
        entries[f"dinov2-{size}"] = CatalogueEntry(
            id=f"facebook/dinov2-{size}", family="DINOv2", size=label
        )
        entries[f"dinov2-{size}-reg"] = CatalogueEntry(
            id=f"facebook/dinov2-with-registers-{size}",
            family="DINOv2 with registers",
            size=label,
        )
    return entries


def _make_deit3() -> dict[str, CatalogueEntry]:
    # Trained on ImageNet-1k alone: of the two published trainings the only one that every size,
    # the tiny model included, shares, so that a row of sizes differs in nothing but size.
    entries = {
        f"deit3-{size}": CatalogueEntry(
            id=f"timm:deit3_{size}_patch{patch}_224.fb_in1k", family="DeiT III", size=label
        )
        for label, size, patch in (
            ("S", "small", 16),
            ("B", "base", 16),
            ("L", "large", 16),
            ("H", "huge", 14),
        )
    }
    entries["deit-tiny"] = CatalogueEntry(
        id="timm:deit_tiny_patch16_224.fb_in1k",
        family="DeiT III",
        size="Ti",
        note="DeiT, not DeiT III, of which no tiny weights are published",
    )
    return entries


def _make_clip() -> dict[str, CatalogueEntry]:
    openai = {
        f"clip-{name}": CatalogueEntry(
            id=f"openai/clip-vit-{full}", family="CLIP (OpenAI)", size=label
        )
        for label, name, full in (
            ("B/32", "b32", "base-patch32"),
            ("B/16", "b16", "base-patch16"),
            ("L/14", "l14", "large-patch14"),
        )
    }
    laion = {
        f"openclip-{architecture.replace('-', '').lower()}": CatalogueEntry(
            id=f"open_clip:ViT-{architecture}/{tag}",
            family="CLIP (OpenCLIP)",
            size=architecture.replace("-", "/"),
        )
        for architecture, tag in (
            ("B-32", "laion2b_s34b_b79k"),
            ("B-16", "laion2b_s34b_b88k"),
            ("L-14", "laion2b_s32b_b82k"),
            ("H-14", "laion2b_s32b_b79k"),
            ("g-14", "laion2b_s34b_b88k"),
            ("bigG-14", "laion2b_s39b_b160k"),
        )
    }
    return openai | laion


_IBOT_ADDRESS = "lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot"


def _make_ibot() -> dict[str, CatalogueEntry]:
    # The tag gives iBOT's own preprocessing (ImageNet mean and deviation); without one timm
    # would take that of its default weights, which differs, and change the numbers silently.
    return {
        f"ibot-{size}": CatalogueEntry(
            id=f"timm:vit_{size}_patch16_224.{tag}@checkpoint_teacher.pth",
            family="iBOT",
            size=label,
            checkpoint=f"{_IBOT_ADDRESS}/{folder}/checkpoint_teacher.pth",
            note="trained on ImageNet-1k; the checkpoint's address is the authors' own",
        )
        for label, size, tag, folder in (
            ("S", "small", "dino", "vits_16"),
            ("B", "base", "dino", "vitb_16"),
            ("L", "large", "mae", "vitl_16"),
        )
    }


CATALOGUE: Mapping[str, CatalogueEntry] = MappingProxyType(
    _make_dinov2() | _make_deit3() | _make_clip() | _make_ibot()
)
"""Every model of the paper by its plain name."""
