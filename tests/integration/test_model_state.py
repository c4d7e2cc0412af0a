"""Whatever state a model is in: the numbers are right, or a sentence says why there are none."""

import copy

import accelerate
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.utils import prune, weight_norm
from transformers import ViTConfig, ViTModel

from accelerated import prepare_in_bf16
from audits import assert_same_numbers
from images import write_classes, write_images
from support_table import TINY_MODELS, tiny_pixels
from vitscope import (
    AuditConfig,
    OneShotConfig,
    audit,
    decompose,
    explain,
    map_tokens,
    one_shot,
    restrict,
    wrap_model,
)
from vitscope.config import RunConfig
from vitscope.errors import ImbalanceError, UnsupportedModelError, UsageError
from vitscope.ledger import compute_scalars

CONFIG = AuditConfig(gallery=0, batch_size=8, device="cpu", dtype="float32")
SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
HF = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
SMALL = pytest.approx(0, abs=1e-4)


def build_timm(**settings):
    torch.manual_seed(0)
    return VisionTransformer(**SIZE, num_classes=0, **settings)


def build_transformers(**settings):
    torch.manual_seed(0)
    return ViTModel(ViTConfig(**HF, **settings), add_pooling_layer=False)


DROPPING = {
    "positions": lambda p: build_timm(pos_drop_rate=p),
    "patches": lambda p: build_timm(patch_drop_rate=p),
    "attention": lambda p: build_timm(attn_drop_rate=p, proj_drop_rate=p, drop_path_rate=p),
    "transformers": lambda p: build_transformers(
        hidden_dropout_prob=p, attention_probs_dropout_prob=p
    ),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("state") / "images", 12)


def make_pixels():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def numbers_of(vit, pixels):
    ledger, maps = decompose(vit, pixels), map_tokens(vit, pixels)
    rows = restrict(vit, ledger)["embedding"]
    return [maps["share"], maps["attention"], rows["patches"], *compute_scalars(ledger).values()]


def assert_equal(found, expected):
    assert all(
        torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
        for a, b in zip(found, expected, strict=True)
    )


# --- training mode -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DROPPING)
def test_a_model_put_back_into_training_is_audited_as_in_evaluation(name, images, tmp_path):
    expected = wrap_model(DROPPING[name](0.0))
    vit = wrap_model(DROPPING[name](0.4))
    vit.module.train()
    next(vit.module.children()).eval()  # frozen, as some train
    modes = [module.training for module in vit.module.modules()]
    assert_equal(numbers_of(vit, make_pixels()), numbers_of(expected, make_pixels()))
    found = audit(vit, images, CONFIG)
    assert_same_numbers(found.summary, audit(expected, images, CONFIG).summary, 0)
    assert [module.training for module in vit.module.modules()] == modes


def test_explanations_and_one_shot_are_of_the_evaluation_mode(images, tmp_path):
    vit, expected = (wrap_model(DROPPING["positions"](p)) for p in (0.4, 0.0))
    vit.module.train()
    classes = write_classes(tmp_path / "classes", 4)
    explained = RunConfig(device="cpu", dtype="float32")
    fast = OneShotConfig(device="cpu", dtype="float32", draws=3)
    found, wanted = (explain(v, images, explained).summary for v in (vit, expected))
    assert_same_numbers(found, wanted, 0)
    found, wanted = (one_shot(v, classes, fast).summary for v in (vit, expected))
    assert_same_numbers(found, wanted, 0)
    assert all(module.training for module in vit.module.modules())


def test_a_model_is_in_training_again_where_the_run_failed():
    vit = wrap_model(build_timm(drop_path_rate=0.4))
    vit.module.train()
    vit.module.blocks[2].attn.proj.register_forward_hook(double)
    with pytest.raises(ImbalanceError):
        decompose(vit, make_pixels())
    assert all(module.training for module in vit.module.modules())


def double(module, args, output):
    return output * 2


# --- compilers -----------------------------------------------------------------------------------


def compile_whole(module):
    module.compile(backend="eager")


def compile_blocks(module):
    for block in module.blocks if hasattr(module, "blocks") else module.layers:
        block.compile(backend="eager")


def compile_forwards(module):
    for block in module.blocks if hasattr(module, "blocks") else module.layers:
        block.forward = torch.compile(block.forward, backend="eager")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile's own
@pytest.mark.parametrize("change", [compile_whole, compile_blocks, compile_forwards])
@pytest.mark.parametrize("build", [build_timm, build_transformers])
def test_what_was_compiled_and_run_is_read_as_it_was_written(build, change, images):
    expected = wrap_model(build())
    module = build().eval()
    change(module)
    with torch.no_grad():
        before = module(make_pixels())
    vit = wrap_model(module)
    assert_equal(numbers_of(vit, make_pixels()), numbers_of(expected, make_pixels()))
    if change is not compile_forwards:
        assert_same_numbers(
            audit(vit, images, CONFIG).summary, audit(expected, images, CONFIG).summary, 0
        )
    with torch.no_grad():
        after = module(make_pixels())
    outputs = [o if isinstance(o, torch.Tensor) else o[0] for o in (before, after)]
    assert torch.equal(*outputs)
    blocks = module.blocks if hasattr(module, "blocks") else module.layers
    compiled = [module, *blocks]
    assert any("_torchdynamo" in repr(vars(vars(m).get("forward", m))) for m in compiled) or any(
        m._compiled_call_impl is not None for m in compiled
    )


# --- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timm/dinov2_reg", "transformers/dinov3", "timm/siglip"])
def test_autocast_of_the_caller_changes_no_number(name):
    vit = wrap_model(TINY_MODELS[name]())
    pixels = tiny_pixels(vit)
    expected = numbers_of(vit, pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = numbers_of(vit, pixels)
        assert torch.is_autocast_enabled("cpu")
    assert_equal(found, expected)


@pytest.mark.parametrize("build", [build_timm, build_transformers])
def test_what_accelerate_prepared_is_read_in_its_own_precision(build):
    expected = numbers_of(wrap_model(build()), make_pixels())
    module = prepare_in_bf16(build())
    prepared = vars(module).get("forward")
    assert_equal(numbers_of(wrap_model(module), make_pixels()), expected)
    assert vars(module).get("forward") is prepared


def test_a_forward_that_switches_autocast_on_is_refused_for_that_reason():
    module = build_transformers().eval()
    module.forward = torch.autocast("cpu", dtype=torch.bfloat16)(module.forward)
    vit = wrap_model(module)
    with pytest.raises(UnsupportedModelError, match="own forward switches autocast on"):
        decompose(vit, make_pixels())
    with vit.placed("cpu", torch.bfloat16):  # which is what it computes in
        assert decompose(vit, make_pixels()).balance_error.max() < 3e-2


# --- weights that are elsewhere ------------------------------------------------------------------


def offload(module):
    accelerate.cpu_offload(module, execution_device="cpu")
    return module


def make_meta(module):
    return module.to("meta")


@pytest.mark.parametrize("change", [offload, make_meta])
@pytest.mark.parametrize("build", [build_timm, build_transformers])
def test_weights_that_are_not_in_memory_are_told_before_anything_is_run(change, build, images):
    vit = wrap_model(change(build()))
    words = r"parameter \S+ is not in memory \(offloaded by accelerate, or on the meta device\)"
    for run in (
        lambda: decompose(vit, make_pixels()),
        lambda: map_tokens(vit, make_pixels()),
        lambda: audit(vit, images, CONFIG),
        lambda: explain(vit, images),
        vit.hashed,
    ):
        with pytest.raises(UsageError, match=words):
            run()


def test_weights_spread_over_processes_are_refused_in_every_run(images):
    vit = wrap_model(build_timm())
    vit.module.norm.bias = nn.Parameter(torch.empty(0))
    with pytest.raises(UsageError, match=r"norm\.bias is sharded across processes"):
        audit(vit, images, CONFIG)


# --- blocks that are not where they were ---------------------------------------------------------


@pytest.mark.parametrize("build", [build_timm, build_transformers])
def test_a_block_in_two_places_is_refused(build):
    module = build()
    blocks = module.blocks if hasattr(module, "blocks") else module.layers
    blocks[1] = blocks[2]
    words = "of the 3 blocks of .* only 2 are different modules"
    with pytest.raises(UnsupportedModelError, match=words):
        wrap_model(module)
    blocks[1] = copy.deepcopy(blocks[2])
    assert decompose(wrap_model(module), make_pixels()).balance_error.max() == SMALL


def repeat_last(module):
    module.blocks[1] = module.blocks[2]


def replace_last(module):
    module.blocks[2] = copy.deepcopy(module.blocks[2])


def replace_first(module):
    module.blocks[0] = copy.deepcopy(module.blocks[0])


def replace_attention(module):
    module.blocks[2].attn = copy.deepcopy(module.blocks[2].attn)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (repeat_last, "layer 2 of .* was run 2 times in one forward, expected once"),
        (replace_last, "layer 2 of .* was run 0 times in one forward, expected once"),
        (replace_first, "2 of 3 blocks of .* were run"),
        (replace_attention, "parts of layer 2 were not run: modules were replaced"),
    ],
)
def test_blocks_changed_after_the_model_was_wrapped_are_refused(change, words, images):
    vit = wrap_model(build_timm())
    change(vit.module)
    with pytest.raises(UnsupportedModelError, match=words):
        audit(vit, images, CONFIG)
    if change is not replace_first:
        with pytest.raises(UnsupportedModelError, match=words):
            decompose(vit, make_pixels())


# --- weights that are computed -------------------------------------------------------------------


def prune_parts(attention):
    for name in ("qkv", "proj"):
        prune.l1_unstructured(attention.get_submodule(name), "weight", amount=0.3)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("change", [prune_parts, lambda attention: weight_norm(attention.qkv)])
def test_weights_computed_by_a_hook_are_cast_with_the_rest(change, dtype, images):
    vit = wrap_model(build_timm())
    change(vit.module.blocks[2].attn)
    vit = wrap_model(vit.module)
    with torch.no_grad():
        before = vit.module(make_pixels())
    result = audit(vit, images, AuditConfig(gallery=0, device="cpu", dtype=dtype, verified=0))
    assert result.summary.ledger.max_balance_error < result.summary.ledger.tolerance
    with torch.no_grad():
        assert torch.equal(vit.module(make_pixels()), before)
