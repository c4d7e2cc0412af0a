"""The families of Vision Transformers in transformers, one entry each.

Importing this file does not import the library.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from vitscope.images.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class LayerNames:
    """Names of the parts of a layer; the defaults are the most common ones."""

    layer: str = "Layer"  # end of the layer's class name
    attention: str = "attention"
    projections: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")  # in the attention
    qk_norms: tuple[str, ...] = ()  # norms or identities after the first two of these
    output: str = "o_proj"  # the output projection W_O
    scaling: str | None = "scaling"  # the factor on the query-key products; None for d_head^-½
    norms: tuple[str, str]  # the norms before attention and before the MLP
    mlp: tuple[str, ...] = ("mlp",)  # the modules of the MLP, in order
    # layer scales after attention and after the MLP, modules or parameters; empty if it has none
    scales: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()  # modules that do nothing in evaluation mode
    attention_idle: tuple[str, ...] = ()  # the same in the attention
    optional: tuple[str, ...] = ()  # parts that a layer may have
    own_bias: str | None = None  # relative positions in the attention, which may lack them


_DINO_LAYER = LayerNames(
    norms=("norm1", "norm2"),
    scales=("layer_scale1", "layer_scale2"),
    idle=("drop_path",),
)
_VIT_LAYER = LayerNames(norms=("layernorm_before", "layernorm_after"), idle=("dropout",))
_BEIT_LAYER = LayerNames(
    norms=("layernorm_before", "layernorm_after"),
    scales=("lambda_1", "lambda_2"),
    idle=("dropout", "drop_path"),
    optional=("lambda_1", "lambda_2", "relative_position_bias"),
)
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
_WHOLE = replace(_IMAGENET, resize="stretch", crop_fraction=1.0, interpolation="bilinear")
_HALF = replace(_WHOLE, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture of the library."""

    name: str
    model: str  # class of the vision tower; its layers' classes have the same prefix
    classes: str = ""  # that prefix, if it is not the tower's name without "VisionModel"
    wrappers: tuple[str, ...] = ()  # classes with a head or a text tower around the tower
    attribute: str = ""  # attribute of the wrappers that holds the tower, if it is not the name
    head_reads_patches: bool = False  # whether the classifier also reads the mean of the patches
    projection: str | None = None  # attribute that holds the feature's projection
    loaded: str | None = None  # the wrapper that is loaded instead of the bare tower
    layers: str = "encoder.layer"  # path from the tower to its list of layers
    names: LayerNames  # names of the parts of its layers
    final_norm: str = "layernorm"  # name of the tower's last norm
    others: tuple[str, ...] = ()  # parts of the tower besides `embeddings`, layers and norm
    optional: tuple[str, ...] = ()  # parts that the tower may have
    # Output with the global feature; in `last_hidden_state` it is the first row.
    output: Literal["pooler_output", "last_hidden_state"] = "pooler_output"
    cls: bool = True  # whether there is a [CLS] token
    mean_pooling: bool = False  # whether use_mean_pooling takes the mean of the patches instead
    pooling_head: str | None = None  # attention-pooling head, which a tower may lack
    distillation: bool = False  # whether a distillation token follows [CLS]
    registers: bool = False  # whether the configuration has a number of register tokens
    # "learned" and "native" tables are always resampled to the input, "optional" ones only on
    # request, "fixed" ones never; "rotary" positions fit any input. The size in a configuration is
    # that of the usual input, but for "learned" ones.
    positions: Literal["learned", "native", "optional", "fixed", "rotary"] = "optional"
    float32_softmax: bool = False  # whether its eager attention computes the softmax in float32
    processor: str  # class of its image processor
    preprocessing: Preprocessing  # default for a model without a processor file

    @property
    def prefix(self) -> str:
        """Common prefix of the class names of its parts."""
        return self.classes or self.model.removesuffix("Model").removesuffix("Vision")

    @property
    def holder(self) -> str:
        """Attribute of the wrappers that holds the tower."""
        return self.attribute or self.name

    def count_registers(self, config: Any) -> int:
        """Number of register tokens."""
        return int(config.num_register_tokens) if self.registers else 0

    def order_tokens(self, config: Any) -> dict[str, int]:
        """Token counts per group in sequence order."""
        return {
            "cls": int(self.cls),
            "distillation": int(self.distillation),
            "registers": self.count_registers(config),
            "patches": 0,
        }

    def choose_preprocessing(self, size: tuple[int, int]) -> Preprocessing:
        """The default preprocessing for the image size in a configuration."""
        # For "learned" positions that size is the table's, not that of the usual input.
        usual = self.preprocessing
        return usual if self.positions == "learned" else usual.with_size(size)


_DINOV2 = Family(
    name="dinov2",
    model="Dinov2Model",
    wrappers=("Dinov2ForImageClassification",),
    head_reads_patches=True,
    names=_DINO_LAYER,
    positions="learned",
    processor="BitImageProcessor",
    preprocessing=_IMAGENET,
)
_VIT = Family(
    name="vit",
    model="ViTModel",
    wrappers=("ViTForImageClassification", "ViTForMaskedImageModeling"),
    layers="layers",
    names=_VIT_LAYER,
    optional=("pooler",),
    output="last_hidden_state",
    float32_softmax=True,
    processor="ViTImageProcessor",
    preprocessing=replace(_HALF, interpolation="bilinear"),
)
_BEIT = replace(
    _VIT,
    name="beit",
    model="BeitModel",
    wrappers=("BeitForImageClassification",),
    names=_BEIT_LAYER,
    optional=("pooler", "shared_position_bias"),
    mean_pooling=True,
    positions="native",
    processor="BeitImageProcessor",
    preprocessing=_HALF,
)
_CLIP = Family(
    name="clip",
    model="CLIPVisionModel",
    wrappers=("CLIPModel", "CLIPVisionModelWithProjection"),
    attribute="vision_model",
    projection="visual_projection",
    loaded="CLIPVisionModelWithProjection",
    layers="encoder.layers",
    names=_CLIP_LAYER,
    final_norm="post_layernorm",
    others=("pre_layrnorm",),
    float32_softmax=True,
    processor="CLIPImageProcessor",
    preprocessing=replace(
        _IMAGENET,
        crop_fraction=1.0,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _DINOV2,
        replace(
            _DINOV2,
            name="dinov2_with_registers",
            model="Dinov2WithRegistersModel",
            wrappers=("Dinov2WithRegistersForImageClassification",),
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
            preprocessing=replace(_WHOLE, pipeline="transformers-float"),
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
            distillation=True,
            processor="DeiTImageProcessor",
            preprocessing=replace(_IMAGENET, resize="stretch"),
        ),
        replace(
            _VIT,
            name="vit_msn",
            model="ViTMSNModel",
            wrappers=("ViTMSNForImageClassification",),
            attribute="vit",
            optional=(),
            preprocessing=_WHOLE,
        ),
        replace(
            _VIT,
            name="ijepa",
            model="IJepaModel",
            wrappers=("IJepaForImageClassification",),
            cls=False,
        ),
        _BEIT,
        replace(
            _BEIT,
            name="data2vec-vision",
            model="Data2VecVisionModel",
            classes="Data2VecVision",
            wrappers=("Data2VecVisionForImageClassification",),
            attribute="data2vec_vision",
            layers="encoder.layer",
            names=replace(
                _BEIT_LAYER,
                projections=("attention.query", "attention.key", "attention.value"),
                output="output.dense",
                scaling=None,
                mlp=("intermediate", "output"),
                idle=("drop_path",),
                attention_idle=("attention.dropout", "output.dropout"),
                optional=("lambda_1", "lambda_2"),
                own_bias="attention.relative_position_bias",
            ),
            optional=("pooler",),
            float32_softmax=False,
        ),
        replace(
            _BEIT,
            name="internvl_vision",
            model="InternVLVisionModel",
            classes="InternVLVision",
            wrappers=(),
            layers="encoder.layer",
            names=replace(
                _BEIT_LAYER,
                qk_norms=("q_norm", "k_norm"),
                output="projection_layer",
                scaling="scale",
                idle=("dropout",),
                attention_idle=("projection_dropout",),
                optional=("lambda_1", "lambda_2"),
            ),
            optional=(),
            float32_softmax=False,
            processor="CLIPImageProcessor",
            preprocessing=replace(_IMAGENET, size=(448, 448), crop_fraction=1.0),
        ),
        _CLIP,
        replace(
            _CLIP,
            name="metaclip_2",
            model="MetaClip2VisionModel",
            wrappers=("MetaClip2Model", "MetaClip2VisionModelWithProjection"),
            loaded="MetaClip2VisionModelWithProjection",
        ),
        replace(
            _CLIP,
            name="aimv2",
            model="Aimv2VisionModel",
            wrappers=("Aimv2Model",),
            loaded="Aimv2Model",
            names=LayerNames(
                layer="EncoderLayer",
                output="out_proj",
                scaling="scale",
                norms=("rms_norm1", "rms_norm2"),
                mlp=("ffn",),
            ),
            final_norm="rms_norm",
            others=(),
            cls=False,
            pooling_head="head",
            positions="fixed",
        ),
        replace(
            _CLIP,
            name="siglip",
            model="SiglipVisionModel",
            wrappers=("SiglipModel",),
            projection=None,
            loaded=None,
            others=(),
            cls=False,
            pooling_head="head",
            float32_softmax=False,
            processor="SiglipImageProcessor",
            preprocessing=_HALF,
        ),
    )
}
"""The supported families by name."""
