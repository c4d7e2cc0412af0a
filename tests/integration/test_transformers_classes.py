"""Which transformers classes are unwrapped, which are taken, and which are refused by name."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    Aimv2Config,
    Aimv2Model,
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitModel,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    Data2VecVisionModel,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    IJepaConfig,
    IJepaForImageClassification,
    InternVLConfig,
    InternVLModel,
    InternVLVisionConfig,
    InternVLVisionModel,
    MetaClip2Config,
    MetaClip2ForImageClassification,
    MetaClip2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
    ViTMSNConfig,
    ViTMSNForImageClassification,
)
from transformers.models.vit.modeling_vit import ViTAttention

from tiny_configs import SIZE, TEXT
from vitscope.adapters.transformers import make_transformers_adapter
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.ledger import make_ledger
from vitscope.testing.randomize import randomize
from vitscope.testing.tiny_transformers import TINY_TRANSFORMERS

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def make_pair(kind, config, **vision):
    settings = config(vision_config=SIZE | vision, text_config=TEXT)
    return randomize(kind(settings))


def run(adapter):
    return adapter.trace(PIXELS, [adapter.last_layer], lambda _: None)


# --- unwrapped ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "config", "tower"),
    [
        (ViTForImageClassification, ViTConfig, "vit"),
        (DeiTForImageClassificationWithTeacher, DeiTConfig, "deit"),
        (Dinov2ForImageClassification, Dinov2Config, "dinov2"),
        (ViTMSNForImageClassification, ViTMSNConfig, "vit"),
    ],
)
def test_a_classifier_is_reduced_to_its_tower(kind, config, tower):
    module = randomize(kind(config(**SIZE)))
    adapter = make_transformers_adapter(module)
    assert adapter.module is module.get_submodule(tower)
    assert any("head" in note and kind.__name__ in note for note in adapter.info.notes)
    with torch.no_grad():
        expected = module.get_submodule(tower)(PIXELS).last_hidden_state[:, 0]
    assert torch.equal(run(adapter), expected)


@pytest.mark.parametrize(
    ("kind", "config", "tower", "pool"),
    [
        (IJepaForImageClassification, IJepaConfig, "ijepa", lambda x: x.last_hidden_state.mean(1)),
        (BeitForImageClassification, BeitConfig, "beit", lambda x: x.pooler_output),
        (
            Data2VecVisionForImageClassification,
            Data2VecVisionConfig,
            "data2vec_vision",
            lambda x: x.pooler_output,
        ),
    ],
)
def test_a_classifier_of_averages_is_reduced_to_its_tower(kind, config, tower, pool):
    module = randomize(kind(config(**SIZE)))
    adapter = make_transformers_adapter(module)
    assert adapter.module is module.get_submodule(tower)
    assert any("mean of the patches" in note for note in adapter.info.notes)
    with torch.no_grad():
        assert torch.equal(adapter.run(PIXELS), pool(module.get_submodule(tower)(PIXELS)))


@pytest.mark.parametrize(
    ("kind", "config"), [(BeitModel, BeitConfig), (Data2VecVisionModel, Data2VecVisionConfig)]
)
@torch.no_grad()
def test_a_mean_of_patches_is_normed_where_the_library_norms_it(kind, config):
    module = randomize(kind(config(**SIZE), add_pooling_layer=True))
    patches = module(PIXELS).last_hidden_state[:, 1:].mean(dim=1)
    normed = module.pooler.layernorm(patches)
    assert torch.equal(make_transformers_adapter(module).run(PIXELS), normed)
    module.pooler = None
    assert torch.equal(make_transformers_adapter(module).run(PIXELS), patches)


@pytest.mark.parametrize(
    ("kind", "config"), [(CLIPModel, CLIPConfig), (MetaClip2Model, MetaClip2Config)]
)
def test_a_whole_clip_model_keeps_its_projection_and_drops_its_text_tower(kind, config):
    module = make_pair(kind, config, projection_dim=12)
    adapter = make_transformers_adapter(module)
    with torch.no_grad():
        expected = module.get_image_features(PIXELS).pooler_output
    assert torch.equal(run(adapter), expected)
    parts = (module.vision_model, module.visual_projection)
    assert adapter.info.num_params == sum(p.numel() for part in parts for p in part.parameters())
    adapter.to("cpu", torch.float64)
    assert module.text_model.final_layer_norm.weight.dtype == torch.float32


def test_a_whole_aimv2_model_keeps_its_projection():
    module = make_pair(Aimv2Model, Aimv2Config)
    adapter = make_transformers_adapter(module)
    with torch.no_grad():
        expected = module.get_image_features(PIXELS).pooler_output
        assert torch.equal(run(adapter), expected)
        found = []
        adapter.trace(PIXELS, [adapter.last_layer], found.append)
        assert torch.equal(adapter.embed(found[0].output), expected)


def test_a_whole_siglip_model_hands_out_its_image_features():
    module = make_pair(SiglipModel, SiglipConfig)
    with torch.no_grad():
        expected = module.get_image_features(PIXELS).pooler_output
    assert torch.equal(run(make_transformers_adapter(module)), expected)


# --- sizes -------------------------------------------------------------------------------------


def test_a_position_table_that_is_not_square_runs_at_its_own_size_alone():
    module = randomize(ViTModel(ViTConfig(**{**SIZE, "image_size": (16, 24)})))
    adapter = make_transformers_adapter(module)
    pixels = torch.randn(1, 3, 16, 24)
    ledgers = []
    adapter.trace(pixels, [1], lambda trace: ledgers.append(make_ledger(trace)))
    assert ledgers[0].balance_error.max() <= 1e-4
    with pytest.raises(UsageError, match=r"24 x 16 px was given to a model built for 16 x 24 px"):
        adapter.make_layout(24, 16)


def test_dinov2_with_a_table_that_is_not_square_is_refused():
    module = Dinov2Model(Dinov2Config(**{**SIZE, "image_size": (16, 24)}))
    with pytest.raises(UnsupportedModelError, match="square"):
        make_transformers_adapter(module)


def test_an_input_that_does_not_fit_the_patches_is_refused():
    adapter = make_transformers_adapter(TINY_TRANSFORMERS["dinov2"]())
    with pytest.raises(UsageError, match="multiple of 8"):
        adapter.make_layout(32, 33)


def test_eager_attention_that_cannot_reach_float64_is_refused_there():
    module = TINY_TRANSFORMERS["vit"]()
    module.set_attn_implementation("eager")
    adapter = make_transformers_adapter(module).to("cpu", torch.float64)
    with pytest.raises(UsageError, match="sdpa"):
        adapter.trace(torch.randn(1, 3, 32, 32), [2], lambda _: None)


def test_an_rms_norm_that_cannot_reach_float64_is_refused_there():
    config = InternVLVisionConfig(
        **SIZE, norm_type="rms_norm", use_qk_norm=True, use_mean_pooling=False
    )
    adapter = make_transformers_adapter(randomize(InternVLVisionModel(config)))
    ledgers = []
    adapter.trace(PIXELS, [0, 1], lambda trace: ledgers.append(make_ledger(trace)))
    assert max(ledger.balance_error.max() for ledger in ledgers) <= 1e-4
    with pytest.raises(UsageError, match="use float32"):
        run(adapter.to("cpu", torch.float64))


# --- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ViTMAEModel(ViTMAEConfig(**SIZE)), "ViTMAEModel .*drops patches"),
        (
            lambda: Siglip2VisionModel(
                Siglip2VisionConfig(**{k: v for k, v in SIZE.items() if k != "image_size"})
            ),
            "NaFlex",
        ),
        (
            lambda: make_pair(CLIPForImageClassification, CLIPConfig),
            "CLIPForImageClassification .*average of the patches",
        ),
        (
            lambda: make_pair(SiglipForImageClassification, SiglipConfig),
            "SiglipForImageClassification .*average of the patches",
        ),
        (
            lambda: make_pair(MetaClip2ForImageClassification, MetaClip2Config),
            "MetaClip2ForImageClassification .*average of the patches",
        ),
        (
            lambda: BeitForMaskedImageModeling(BeitConfig(**SIZE)),
            "BeitForMaskedImageModeling is not a class",
        ),
        (
            lambda: InternVLModel(
                InternVLConfig(vision_config=SIZE, text_config={"model_type": "qwen2"} | TEXT)
            ),
            "InternVLModel .*give its vision_tower",
        ),
        (lambda: Dinov2Backbone(Dinov2Config(**SIZE)), "Dinov2Backbone .*dinov2_with_registers"),
    ],
)
def test_models_without_a_row_to_analyse_are_refused_by_name(build, words):
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        make_transformers_adapter(build())
    assert "\n" not in str(caught.value)


class MyViTModel(ViTModel):
    """A subclass might compute anything."""


class MyAttention(ViTAttention):
    """Likewise."""


def test_a_subclass_of_a_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="MyViTModel"):
        make_transformers_adapter(MyViTModel(ViTConfig(**SIZE)))


def test_a_subclass_of_an_attention_is_refused():
    module = ViTModel(ViTConfig(**SIZE))
    module.layers[1].attention = MyAttention(module.config)
    with pytest.raises(UnsupportedModelError, match="MyAttention"):
        make_transformers_adapter(module)


def add_gate(module):
    module.encoder.layer[0].attention.gate = nn.Linear(4, 4)


def add_norm(module):
    module.encoder.layer[1].norm3 = nn.LayerNorm(4)


def add_parameter(module):
    module.encoder.layer[0].temperature = nn.Parameter(torch.ones(1))


def add_buffer(module):
    module.encoder.layer[0].attention.register_buffer("relative_bias", torch.ones(1))


def add_to_tower(module):
    module.head_norm = nn.Identity()


def remove_scale(module):
    del module.encoder.layer[0].layer_scale1


def remove_norm(module):
    del module.encoder.layer[1].norm1


def wrap_scale(module):
    layer = module.encoder.layer[0]
    layer.layer_scale1 = nn.Sequential(layer.layer_scale1)


def replace_projection(module):
    module.encoder.layer[0].attention.o_proj = nn.Sequential(nn.Linear(32, 32))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (add_gate, "'gate'"),
        (add_norm, "'norm3'"),
        (add_parameter, "'temperature'"),
        (add_buffer, "'relative_bias'"),
        (add_to_tower, "^Dinov2Model has a part 'head_norm': this version of its library"),
        (remove_scale, "'layer_scale1'"),
        (remove_norm, "lacks the part 'norm1' in its Dinov2Layer: .* no exact account of$"),
        (wrap_scale, "a layer scale of class Sequential"),
        (replace_projection, "a projection o_proj of class Sequential, not a plain Linear .merge"),
    ],
)
def test_a_part_that_is_not_known_is_refused_by_name(change, name):
    module = copy.deepcopy(TINY_TRANSFORMERS["dinov2"]())
    change(module)
    with pytest.raises(UnsupportedModelError, match=name) as caught:
        make_transformers_adapter(module)
    assert "\n" not in str(caught.value)


def test_attention_within_an_attention_cannot_be_missing():
    module = copy.deepcopy(TINY_TRANSFORMERS["data2vec"]())
    del module.encoder.layer[1].attention.attention
    with pytest.raises(UnsupportedModelError, match="lacks the part 'attention' in its Data2Vec"):
        make_transformers_adapter(module)


@pytest.mark.parametrize(
    ("attention", "name"),
    [
        (nn.MultiheadAttention(32, 4, batch_first=False), "batch_first=False"),
        (nn.MultiheadAttention(32, 4, batch_first=True, add_bias_kv=True), "add_bias_kv"),
        (nn.MultiheadAttention(32, 4, batch_first=True, add_zero_attn=True), "add_zero_attn"),
        (nn.MultiheadAttention(32, 4, batch_first=True, kdim=16, vdim=16), "kdim"),
        (nn.Identity(), "Identity"),
    ],
)
def test_settings_of_a_pooling_head_that_are_not_modelled_are_refused_by_name(attention, name):
    module = TINY_TRANSFORMERS["siglip"]()
    module.head.attention = attention
    with pytest.raises(UnsupportedModelError, match=name):
        make_transformers_adapter(module)
