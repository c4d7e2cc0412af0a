"""torchvision: `VisionTransformer` (ViT-B, L and H, with a plain or a convolutional stem).

- Supported classes are listed; everything else is refused by name.
- The global feature is the normed [CLS] token, which the classifier reads.
- The model takes images of one size, that of its position table.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, cat, nn
from torchvision.models.vision_transformer import Encoder, EncoderBlock, MLPBlock, VisionTransformer

from vitscope.adapters.transformers_families import FAMILIES
from vitscope.images.preprocessing import Preprocessing
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.blocks import BlockParts
from vitscope.models.classifier import Classifier
from vitscope.models.info import ModelInfo, count_parameters
from vitscope.models.parts import lay_out, make_packed_block, require_class

_RESAMPLED = (
    "resample its weights with torchvision.models.vision_transformer.interpolate_embeddings"
)


def make_torchvision_adapter(
    module: nn.Module, *, preprocessing: Preprocessing | None = None, model_id: str | None = None
) -> ViTAdapter:
    """Adapt a Vision Transformer of torchvision."""
    name = model_id or type(module).__name__
    require_class(module, {VisionTransformer}, name, "the architecture")
    tower: Any = module.eval()
    require_class(tower.encoder, {Encoder}, name, "an encoder")
    blocks = {i: _make_block(block, name) for i, block in enumerate(tower.encoder.layers)}
    size, patch_size = (tower.image_size,) * 2, (tower.patch_size,) * 2
    customary = replace(
        FAMILIES["dinov2"].preprocessing, interpolation="bilinear", pipeline="torchvision"
    )
    notes = ["the embedding is the normed [CLS] token, before the classifier"]
    if preprocessing is None:
        notes.append("no preprocessing came with the model: torchvision's for ImageNet is used")
    return ViTAdapter(
        module=module,
        info=ModelInfo(
            id=name,
            family="torchvision/vit",
            num_params=count_parameters(tower) - count_parameters(tower.heads),
            depth=len(blocks),
            embed_dim=tower.hidden_dim,
            num_heads=tower.encoder.layers[0].num_heads,
            patch_size=patch_size,
            num_registers=0,
            notes=tuple(notes),
        ),
        preprocessing=preprocessing or customary.with_size(size),
        blocks=blocks,
        make_layout=partial(
            lay_out, {"cls": 1, "patches": 0}, patch_size, native=size, otherwise=_RESAMPLED
        ),
        run=partial(_run, tower),
        embed_row=tower.encoder.ln,
        classifier=Classifier(module=module, run=module, head=tower.heads, reads_feature=True),
    )


def _make_block(block: Any, name: str) -> BlockParts:
    require_class(block, {EncoderBlock}, name, "blocks")
    require_class(block.mlp, {MLPBlock}, name, "an MLP")
    return make_packed_block(block, "self_attention", name)


def _run(tower: Any, pixels: Pixels) -> Float[Tensor, "batch dim"]:
    # As the model's own forward, without its classifier.
    patches = tower._process_input(pixels)
    cls = tower.class_token.expand(len(patches), -1, -1)
    feature: Tensor = tower.encoder(cat([cls, patches], dim=1))[:, 0]
    return feature
