"""Settings of timm models: what is refused by name, and how preprocessing is read."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.layers import GlobalResponseNormMlp
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from images import preprocess_image
from vitscope.adapters.timm import make_timm_adapter
from vitscope.errors import UnsupportedModelError
from vitscope.images.preprocessing import Preprocessing
from vitscope.testing.tiny_timm import TINY_TIMM

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}

REFUSED = {
    "Sequential": lambda: nn.Sequential(nn.Identity()),
    "VisionTransformerRelPos": lambda: VisionTransformerRelPos(**TINY),
    "ParallelScalingBlock": lambda: VisionTransformer(**TINY, block_fn=ParallelScalingBlock),
    "EvaBlockPostNorm": lambda: Eva(**TINY, use_post_norm=True),
    "DiffAttention": lambda: VisionTransformer(**TINY, attn_layer="diff"),
    "scale_attn_norm": lambda: VisionTransformer(**TINY, scale_attn_norm=True),
    "scale_attn_inner": lambda: Eva(**TINY, scale_attn_inner=True),
    "AttentionPoolPrr": lambda: VisionTransformer(**TINY, global_pool="prr"),
    "GlobalResponseNormMlp": lambda: VisionTransformer(**TINY, mlp_layer=make_grn_mlp),
    "in_chans": lambda: VisionTransformer(**TINY, in_chans=1),
    "blocks ParallelScalingBlock": lambda: VisionTransformer(
        **TINY, class_token=False, global_pool="avg", block_fn=ParallelScalingBlock
    ),
    "no \\[CLS\\]": lambda: VisionTransformer(**TINY, class_token=False, global_pool="max"),
}


def make_grn_mlp(norm_layer=None, **kwargs):
    return GlobalResponseNormMlp(**kwargs)


def alter(name, **settings):
    module = TINY_TIMM[name]()
    for path, value in settings.items():
        owner, _, attribute = path.rpartition("__")
        target = module.get_submodule(owner.replace("__", "."))
        delattr(target, attribute)
        setattr(target, attribute, value)
    return module


ALTERED = {
    "gated": lambda: alter("vit", blocks__0__attn__gate=nn.Linear(32, 32)),
    "LowRank": lambda: alter("vit", blocks__1__attn__proj=LowRank(32, 32)),
    "pooling projection LowRank": lambda: alter("siglip", attn_pool__proj=LowRank(32, 32)),
    "latent_len": lambda: alter("siglip", attn_pool__latent_len=2),
    "pool_type": lambda: alter("siglip", attn_pool__pool="avg"),
    "out_features=0": lambda: alter("siglip", attn_pool__mlp=None),
    "patch embedding Sequential": lambda: alter("vit", patch_embed=nn.Sequential()),
    "border": lambda: with_config(crop_mode="border"),
    "random": lambda: with_config(interpolation="random"),
}


class LowRank(nn.Linear):
    """What a fine-tuning library puts in a linear layer's place."""


def with_config(**config):
    module = TINY_TIMM["vit"]()
    module.pretrained_cfg = config
    return module


@pytest.mark.parametrize(("word", "build"), [*REFUSED.items(), *ALTERED.items()])
def test_unknown_settings_are_refused_by_name(word, build):
    with pytest.raises(UnsupportedModelError, match=word) as caught:
        make_timm_adapter(build())
    assert "\n" not in str(caught.value)


def test_preprocessing_is_read_from_the_models_configuration():
    module = with_config(
        mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_pct=0.9, crop_mode="squash"
    )
    assert make_timm_adapter(module).preprocessing == Preprocessing(
        size=(32, 32),
        resize="stretch",
        crop_fraction=32 / 35,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
    )


@pytest.mark.parametrize("shape", [(90, 60), (41, 200), (32, 32)])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
def test_images_are_prepared_as_timm_does_to_the_bit(shape, crop_mode, crop_pct):
    module = with_config(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bicubic")
    module.pretrained_cfg |= {"crop_pct": crop_pct, "crop_mode": crop_mode}
    module.pretrained_cfg["input_size"] = (3, 32, 32)
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = create_transform(**resolve_model_data_config(module))(image)
    assert torch.equal(preprocess_image(image, make_timm_adapter(module).preprocessing), expected)
