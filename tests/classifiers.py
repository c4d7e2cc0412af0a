"""Tiny random models with a classifier, one for each way in which a library makes its logits."""

from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torchvision.models import VisionTransformer as TorchvisionViT
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    IJepaConfig,
    IJepaForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTMSNConfig,
    ViTMSNForImageClassification,
)

from tiny_configs import SIZE

NUM_CLASSES = 5
NAMES = {0: "cat", 1: "dog", 2: "crane", 3: "crane", 4: "tench, Tinca tinca"}

_TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
_TORCHVISION = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24}
_GAP = {"class_token": False, "global_pool": "avg"}


def _make(kind, config, **settings):
    return lambda: kind(config(**{**SIZE, "id2label": NAMES, **settings}))


def _make_timm(kind, **settings):
    return lambda: kind(**{**_TIMM, "num_classes": NUM_CLASSES, **settings})


def _make_torchvision(**settings):
    whole = {"image_size": 32, "patch_size": 8, "num_classes": NUM_CLASSES, **_TORCHVISION}
    return lambda: TorchvisionViT(**whole, **settings)


ON_FEATURE = {
    "vit": _make(ViTForImageClassification, ViTConfig),
    "deit": _make(DeiTForImageClassification, DeiTConfig),
    "msn": _make(ViTMSNForImageClassification, ViTMSNConfig),
    "ijepa": _make(IJepaForImageClassification, IJepaConfig),
    "beit": _make(BeitForImageClassification, BeitConfig, use_relative_position_bias=True),
    "beit_cls": _make(BeitForImageClassification, BeitConfig, use_mean_pooling=False),
    "data2vec": _make(Data2VecVisionForImageClassification, Data2VecVisionConfig),
    "timm": _make_timm(VisionTransformer),
    "timm_gap": _make_timm(VisionTransformer, **_GAP),
    "timm_map": _make_timm(VisionTransformer, class_token=False, global_pool="map"),
    "timm_eva": _make_timm(Eva, global_pool="token"),
    "torchvision": _make_torchvision(),
    "torchvision_mlp": _make_torchvision(representation_size=8),
}
"""Builders of models whose head is on the global feature, before any training."""

ON_SEVERAL = {
    "dinov2": _make(Dinov2ForImageClassification, Dinov2Config),
    "dinov2_registers": _make(
        Dinov2WithRegistersForImageClassification, Dinov2WithRegistersConfig, num_register_tokens=3
    ),
    "deit_teacher": _make(DeiTForImageClassificationWithTeacher, DeiTConfig),
    "timm_avg": _make_timm(VisionTransformer, global_pool="avg"),
    "timm_distilled": _make_timm(VisionTransformerDistilled),
    "timm_eva_avg": _make_timm(Eva),
}
"""Builders of models whose heads read other tokens as well."""

CLASSIFIERS = ON_FEATURE | ON_SEVERAL
