"""The families of Vision Transformers in transformers, one entry each.

Importing this file does not import the library.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from vitscope.images.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class LayerNames:
    """Names of the parts of a layer; the defaults are the most common ones."""

    layer: str = "Layer"  # end of the layer's class name
    attention: str = "attention"
    output: str = "o_proj"  # the output projection W_O
    scaling: str = "scaling"  # the factor on the query-key products
    norms: tuple[str, str]  # the norms before attention and before the MLP
    layer_scales: tuple[str, str] | None = None  # after attention and after the MLP
    idle: tuple[str, ...] = ()  # modules that do nothing in evaluation mode


_DINO_LAYER = LayerNames(
    norms=("norm1", "norm2"),
    layer_scales=("layer_scale1", "layer_scale2"),
    idle=("drop_path",),
)
_VIT_LAYER = LayerNames(norms=("layernorm_before", "layernorm_after"), idle=("dropout",))
_CLIP_LAYER = LayerNames(
    layer="EncoderLayer",
    attention="self_attn",
    output="out_proj",
    scaling="scale",
    norms=("layer_norm1", "layer_norm2"),
)

_IMAGENET = Preprocessing(
    size=(224, 224),
    crop_fraction=224 / 256,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    pipeline="transformers",
)
_HALF = replace(
    _IMAGENET, resize="stretch", crop_fraction=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture of the library."""

    name: str
    aliases: tuple[str, ...] = ()  # model types of the vision tower alone
    model: str  # class of the vision tower; its layers' classes have the same prefix
    wrappers: tuple[str, ...] = ()  # classes with a head or a text tower around the tower
    attribute: str = ""  # attribute of the wrappers that holds the tower
    projection: str | None = None  # attribute that holds the feature's projection
    loaded: str | None = None  # the wrapper that is loaded instead of the bare tower
    averaged: tuple[str, ...] = ()  # classes that classify the mean of the patches: refused
    layers: str  # path from the tower to its list of layers
    names: LayerNames  # names of the parts of its layers
    final_norm: str  # name of the tower's last norm
    others: tuple[str, ...] = ()  # further parts of the tower
    optional: tuple[str, ...] = ()  # parts that the tower may have
    # Output with the global feature; in `last_hidden_state` it is the first row.
    output: Literal["pooler_output", "last_hidden_state"] = "pooler_output"
    pooling_head: str | None = None  # attention-pooling head of a family without [CLS]
    distillation: bool = False  # whether a distillation token follows [CLS]
    registers: bool = False  # whether the configuration has a number of register tokens
    # "learned" tables are always resampled to the input, "optional" ones only on request; "rotary"
    # positions fit any input.
    positions: Literal["learned", "optional", "rotary"]
    float32_softmax: bool = False  # whether its eager attention computes the softmax in float32
    processor: str  # class of its image processor
    preprocessing: Preprocessing  # default for a model without a processor file

    @property
    def prefix(self) -> str:
        """Common prefix of the class names of its parts."""
        return self.model.removesuffix("Model").removesuffix("Vision")

    @property
    def parts(self) -> set[str]:
        """Names of the parts that the tower must have."""
        heads = [] if self.pooling_head is None else [self.pooling_head]
        layers, _, _ = self.layers.partition(".")
        return {"embeddings", layers, self.final_norm, *self.others, *heads}

    def count_registers(self, config: Any) -> int:
        """Number of register tokens."""
        return int(config.num_register_tokens) if self.registers else 0

    def order_tokens(self, config: Any) -> dict[str, int]:
        """Token counts per group in sequence order."""
        return {
            "cls": int(self.pooling_head is None),
            "distillation": int(self.distillation),
            "registers": self.count_registers(config),
            "patches": 0,
        }

    def choose_preprocessing(self, size: tuple[int, int]) -> Preprocessing:
        """The default preprocessing for the image size in a configuration."""
        # For "learned" positions that size is the table's, not that of the usual input.
        return (
            self.preprocessing
            if self.positions == "learned"
            else self.preprocessing.with_size(size)
        )


_DINOV2 = Family(
    name="dinov2",
    model="Dinov2Model",
    wrappers=("Dinov2ForImageClassification",),
    attribute="dinov2",
    layers="encoder.layer",
    names=_DINO_LAYER,
    final_norm="layernorm",
    positions="learned",
    processor="BitImageProcessor",
    preprocessing=_IMAGENET,
)
_VIT = Family(
    name="vit",
    model="ViTModel",
    wrappers=("ViTForImageClassification", "ViTForMaskedImageModeling"),
    attribute="vit",
    layers="layers",
    names=_VIT_LAYER,
    final_norm="layernorm",
    optional=("pooler",),
    output="last_hidden_state",
    positions="optional",
    float32_softmax=True,
    processor="ViTImageProcessor",
    preprocessing=replace(_HALF, interpolation="bilinear"),
)
_CLIP = Family(
    name="clip",
    aliases=("clip_vision_model",),
    model="CLIPVisionModel",
    wrappers=("CLIPModel", "CLIPVisionModelWithProjection"),
    attribute="vision_model",
    projection="visual_projection",
    loaded="CLIPVisionModelWithProjection",
    averaged=("CLIPForImageClassification",),
    layers="encoder.layers",
    names=_CLIP_LAYER,
    final_norm="post_layernorm",
    others=("pre_layrnorm",),
    positions="optional",
    float32_softmax=True,
    processor="CLIPImageProcessor",
    preprocessing=replace(
        _IMAGENET,
        crop_fraction=1.0,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
)

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        _DINOV2,
        replace(
            _DINOV2,
            name="dinov2_with_registers",
            model="Dinov2WithRegistersModel",
            wrappers=("Dinov2WithRegistersForImageClassification",),
            attribute="dinov2_with_registers",
            registers=True,
        ),
        Family(
            name="dinov3_vit",
            model="DINOv3ViTModel",
            layers="model.layer",
            names=_DINO_LAYER,
            final_norm="norm",
            others=("rope_embeddings",),
            registers=True,
            positions="rotary",
            processor="DINOv3ViTImageProcessor",
            preprocessing=replace(
                _IMAGENET,
                resize="stretch",
                crop_fraction=1.0,
                interpolation="bilinear",
                pipeline="transformers-float",
            ),
        ),
        _VIT,
        replace(
            _VIT,
            name="deit",
            model="DeiTModel",
            wrappers=(
                "DeiTForImageClassification",
                "DeiTForImageClassificationWithTeacher",
                "DeiTForMaskedImageModeling",
            ),
            attribute="deit",
            distillation=True,
            processor="DeiTImageProcessor",
            preprocessing=replace(_IMAGENET, resize="stretch"),
        ),
        _CLIP,
        replace(
            _CLIP,
            name="siglip",
            aliases=("siglip_vision_model",),
            model="SiglipVisionModel",
            wrappers=("SiglipModel",),
            projection=None,
            loaded=None,
            averaged=("SiglipForImageClassification",),
            others=(),
            pooling_head="head",
            float32_softmax=False,
            processor="SiglipImageProcessor",
            preprocessing=_HALF,
        ),
    )
}
"""The supported families by name."""
