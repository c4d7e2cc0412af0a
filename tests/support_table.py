"""Generates the table of supported models in docs/models.md from the tested models.

python tests/support_table.py    rewrites the page
"""

from pathlib import Path

import torch

from ph_reg_twin import make_student
from vitscope import wrap_model
from vitscope.testing import check_adapter
from vitscope.testing.tiny_open_clip import TINY_OPEN_CLIP
from vitscope.testing.tiny_timm import AVERAGED_TIMM, TINY_TIMM
from vitscope.testing.tiny_torchvision import TINY_TORCHVISION
from vitscope.testing.tiny_transformers import AVERAGED_TRANSFORMERS, TINY_TRANSFORMERS

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
TINY_MODELS = {
    f"{library}/{name}": build
    for library, models in (
        ("transformers", TINY_TRANSFORMERS),
        ("timm", TINY_TIMM),
        ("open_clip", TINY_OPEN_CLIP),
        ("torchvision", TINY_TORCHVISION),
    )
    for name, build in models.items()
} | {"ph-reg/dinov2": make_student}
"""Models with a row to decompose."""

AVERAGED_MODELS = {
    f"{library}/{name}": build
    for library, models in (("transformers", AVERAGED_TRANSFORMERS), ("timm", AVERAGED_TIMM))
    for name, build in models.items()
}
"""Models that average their tokens."""

ALL_MODELS = TINY_MODELS | AVERAGED_MODELS

HEAD = """# Supported models

Made by `python tests/support_table.py` from the tiny models that the tests run: each is built from
the real library's classes with random weights, and in every layer balances against the model's own
tensors to 1e-10 in float64 and 1e-4 in float32. A model that averages its tokens has no row to
balance: there the traced map sums to what it explains at every depth, to 1e-8 in float64 and 1e-3
in float32. An average is the mean of the patches, after BEiT's and data2vec's own norm where the
model has their pooler: exactly the library's `pooler_output`. The torch.hub code of
facebookresearch/dinov2 and facebookresearch/dinov3, with a fork of it for test-time registers, and
PH-Reg's student of DINOv2 are tested on structural twins.

| tested model | family | tokens besides patches | global feature |
|---|---|---|---|
"""


def tiny_pixels(vit):
    height, width = vit.preprocessing.size
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def make_row(name):
    vit = wrap_model(ALL_MODELS[name]())
    check_adapter(vit, tiny_pixels(vit))
    groups = vit.make_layout(*vit.preprocessing.size).groups.items()
    tokens = ", ".join(f"{len(at)} {group}" for group, at in groups if group != "patches")
    return f"| {name} | {vit.info.family} | {tokens or 'none'} | {vit.info.global_feature} |\n"


def make_page():
    return HEAD + "".join(make_row(name) for name in ALL_MODELS)


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
