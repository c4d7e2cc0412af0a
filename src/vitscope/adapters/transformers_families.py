"""The families of transformers' Vision Transformers: where each one keeps its parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class LayerNames:
    """What one style of layer calls its parts.

    Attributes:
        layer: What the name of the layer's class ends with.
        attention: The attention module.
        output: Its output projection W_O.
        scaling: Its factor on the query-key products, a number.
        norms: The norms before attention and before the MLP.
        layer_scales: The layer scales after attention and after the MLP, where there are any.
        idle: Modules that do nothing in evaluation mode.
    """

    layer: str
    attention: str
    output: str
    scaling: str
    norms: tuple[str, str]
    layer_scales: tuple[str, str] | None = None
    idle: tuple[str, ...] = ()


_DINO = LayerNames(
    layer="Layer",
    attention="attention",
    output="o_proj",
    scaling="scaling",
    norms=("norm1", "norm2"),
    layer_scales=("layer_scale1", "layer_scale2"),
    idle=("drop_path",),
)
_VIT = LayerNames(
    layer="Layer",
    attention="attention",
    output="o_proj",
    scaling="scaling",
    norms=("layernorm_before", "layernorm_after"),
    idle=("dropout",),
)
_CLIP = LayerNames(
    layer="EncoderLayer",
    attention="self_attn",
    output="out_proj",
    scaling="scale",
    norms=("layer_norm1", "layer_norm2"),
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture of the library.

    Attributes:
        name: Its model type.
        model: Class of the vision tower.
        prefix: What the class names of its layers and their attention begin with.
        layers: Path from the tower to its list of layers.
        final_norm: Name of the tower's last norm.
        others: The tower's other parts.
        optional: Parts that the tower may have.
        names: What its layers call their parts.
        output: Field of the tower's output that holds the global feature: "pooler_output", or
            "last_hidden_state", of which it is the first row.
        positions: "learned" tables that the tower always resamples to the input, "optional" ones
            that it resamples when asked to, or "rotary" ones that fit any input.
        distillation: Whether a distillation token follows [CLS].
        registers: Whether the configuration counts register tokens.
        float32_softmax: Whether its eager attention computes the softmax in float32 always.
        pooling_head: Name of the attention-pooling head, of a family without [CLS].
    """

    name: str
    model: str
    prefix: str
    layers: str
    final_norm: str
    others: tuple[str, ...]
    optional: tuple[str, ...] = ()
    names: LayerNames
    output: Literal["pooler_output", "last_hidden_state"] = "pooler_output"
    positions: Literal["learned", "optional", "rotary"]
    distillation: bool = False
    registers: bool = False
    float32_softmax: bool = False
    pooling_head: str | None = None

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


FAMILIES: Mapping[str, Family] = {
    family.model: family
    for family in (
        Family(
            name="dinov2",
            model="Dinov2Model",
            prefix="Dinov2",
            layers="encoder.layer",
            final_norm="layernorm",
            others=("embeddings", "encoder"),
            names=_DINO,
            positions="learned",
        ),
        Family(
            name="dinov2_with_registers",
            model="Dinov2WithRegistersModel",
            prefix="Dinov2WithRegisters",
            layers="encoder.layer",
            final_norm="layernorm",
            others=("embeddings", "encoder"),
            names=_DINO,
            positions="learned",
            registers=True,
        ),
        Family(
            name="dinov3_vit",
            model="DINOv3ViTModel",
            prefix="DINOv3ViT",
            layers="model.layer",
            final_norm="norm",
            others=("embeddings", "rope_embeddings", "model"),
            names=_DINO,
            positions="rotary",
            registers=True,
        ),
        Family(
            name="vit",
            model="ViTModel",
            prefix="ViT",
            layers="layers",
            final_norm="layernorm",
            others=("embeddings", "layers"),
            optional=("pooler",),
            names=_VIT,
            output="last_hidden_state",
            positions="optional",
            float32_softmax=True,
        ),
        Family(
            name="deit",
            model="DeiTModel",
            prefix="DeiT",
            layers="layers",
            final_norm="layernorm",
            others=("embeddings", "layers"),
            optional=("pooler",),
            names=_VIT,
            output="last_hidden_state",
            positions="optional",
            float32_softmax=True,
            distillation=True,
        ),
        Family(
            name="clip",
            model="CLIPVisionModel",
            prefix="CLIP",
            layers="encoder.layers",
            final_norm="post_layernorm",
            others=("embeddings", "pre_layrnorm", "encoder"),
            names=_CLIP,
            positions="optional",
            float32_softmax=True,
        ),
        Family(
            name="siglip",
            model="SiglipVisionModel",
            prefix="Siglip",
            layers="encoder.layers",
            final_norm="post_layernorm",
            others=("embeddings", "encoder"),
            names=_CLIP,
            positions="optional",
            pooling_head="head",
        ),
    )
}
"""The supported families by the class of their vision tower."""
