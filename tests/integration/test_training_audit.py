"""A model in training is audited as it is, and left as it was found."""

import os
import shutil

import pytest
import torch
from torch import nn
from torch.distributed.tensor import distribute_tensor, init_device_mesh
from torch.testing import assert_close

from trained import CONFIG, Classifier, audit_weights, copy_weights, make_backbone
from vitscope import AuditConfig, ImageSet, audit, wrap_model
from vitscope.errors import NonFiniteError, UnsupportedModelError, UsageError
from vitscope.testing.tiny_timm import TINY_TIMM
from vitscope.testing.tiny_transformers import TINY_TRANSFORMERS
from vitscope.training import TrainingAudit
from vitscope.training.curves import list_numbers
from vitscope.training.training_audit import AuditSchedule, AuditWarning


def numbers_of(model, images, **settings):
    settings = {"config": CONFIG} | settings
    return list_numbers(TrainingAudit(images, **settings).run(model).summary)


def audited_apart(build, images):
    return list_numbers(audit(wrap_model(build()), images, CONFIG).summary)


@pytest.mark.parametrize("build", [TINY_TIMM["dinov2_reg"], TINY_TRANSFORMERS["dinov3"]])
def test_the_numbers_are_those_of_an_audit_of_the_same_weights(build, images):
    expected = audited_apart(build, images)
    assert numbers_of(build().train(), images) == pytest.approx(expected, abs=1e-12, rel=1e-12)


def test_the_vision_transformer_is_found_by_its_name_within_the_model(images):
    model = nn.ModuleDict({"student": nn.Linear(2, 2), "teacher": Classifier()})
    expected = audit_weights(copy_weights(model["teacher"].backbone), images)
    assert numbers_of(model, images, submodule="teacher.backbone") == expected


def test_nothing_is_left_behind(images):
    model = Classifier().train()
    model.backbone.blocks[0].eval()  # frozen, as some train
    model.backbone.patch_embed.requires_grad_(False)
    model.backbone.bfloat16()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    # Whatever a hook of the user draws.
    model.backbone.norm.register_forward_hook(lambda *_: torch.rand(1) and None)
    hooks = len(model.backbone.norm._forward_hooks)
    modes = [module.training for module in model.modules()]
    held = [(p, p.data_ptr(), p.dtype, p.requires_grad, p.grad) for p in model.parameters()]
    weights, random = copy_weights(model), torch.get_rng_state()
    numbers_of(model, images, submodule="backbone")
    assert [module.training for module in model.modules()] == modes
    for parameter, (was, place, dtype, trained, gradient) in zip(
        model.parameters(), held, strict=True
    ):
        assert parameter is was
        assert (parameter.data_ptr(), parameter.dtype) == (place, dtype)
        assert parameter.requires_grad == trained
        assert parameter.grad is gradient
        assert_close(gradient, torch.ones_like(gradient), rtol=0, atol=0)
    assert all(torch.equal(weights[name], now) for name, now in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert len(model.backbone.norm._forward_hooks) == hooks
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("build", [*TINY_TIMM.values(), *TINY_TRANSFORMERS.values()])
def test_what_a_model_keeps_of_an_audit_can_be_trained_on(build, images):
    """A table of positions that was made in inference mode would stop the next training step."""
    model = build().train()
    few = sorted(images.iterdir())[:3]
    size = TrainingAudit(few, CONFIG).run(model).summary.preprocessing.size
    output = model(torch.rand(1, 3, *size))
    output = output if isinstance(output, torch.Tensor) else output[0]
    output.square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_mixed_precision_around_training_is_not_the_audits(images):
    expected = audited_apart(TINY_TIMM["dinov2_reg"], images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert numbers_of(TINY_TIMM["dinov2_reg"](), images) == expected
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile's own
@pytest.mark.parametrize("part", ["model", "wrapper", "blocks"])
def test_a_compiled_model_is_audited_as_it_was_written(part, images):
    model = TINY_TIMM["dinov2_reg"]()
    expected = audited_apart(TINY_TIMM["dinov2_reg"], images)
    if part == "wrapper":
        model = torch.compile(model, backend="eager")
    for module in {"model": [model], "wrapper": [], "blocks": model.blocks}[part]:
        module.compile(backend="eager")
    pixels = torch.rand(2, 3, 32, 32)
    before = model(pixels)
    assert numbers_of(model, images) == expected
    assert torch.equal(model(pixels), before)


def test_images_are_decoded_once(images, tmp_path):
    folder = tmp_path / "gone"
    shutil.copytree(images, folder)
    (folder / "9999.png").write_bytes(b"no image")
    fixed, model = TrainingAudit(folder, CONFIG), make_backbone()
    first = fixed.run(model)
    shutil.rmtree(folder)
    again = fixed.run(model)
    assert list_numbers(again.summary) == list_numbers(first.summary)
    assert again.summary.data.num_failed == len(again.failures) == 1


def test_a_prepared_set_is_taken_as_it_is(images):
    build = TINY_TIMM["dinov2_reg"]
    some = ImageSet.from_sources([images], wrap_model(build()).preprocessing, limit=21)
    assert numbers_of(build(), some)["vitscope/num_images"] == 21
    with pytest.raises(UsageError, match="limit is set, but the images come as a prepared"):
        numbers_of(build(), some, config=AuditConfig(limit=3))


def test_auto_is_where_the_model_is(images, monkeypatch):
    # As on a machine that has an accelerator, which the model is not on.
    monkeypatch.setattr(
        torch.accelerator,
        "current_accelerator",
        lambda check_available=False: torch.device("meta") if check_available else None,
    )
    few = sorted(images.iterdir())[:2]
    result = TrainingAudit(few, AuditConfig(gallery=0)).run(make_backbone())
    assert result.provenance["device"] == "cpu"


def test_settings_are_keywords_too_and_a_shard_is_refused(images):
    result = TrainingAudit(images, limit=4, device="cpu").run(make_backbone())
    assert result.summary.data.num_images == 4
    assert result.gallery is None
    with pytest.raises(UsageError, match=r"shard \(2, 2\): a model in training is audited on all"):
        TrainingAudit(images, AuditConfig(shard=(2, 2), gallery=0))
    with pytest.raises(UsageError, match="limit is given twice"):
        TrainingAudit(images, AuditConfig(limit=3), limit=4)


def test_a_name_that_leads_nowhere_is_refused(images):
    with pytest.raises(UsageError, match=r"no submodule 'vit': .* submodules are backbone, head"):
        numbers_of(Classifier(), images, submodule="vit")


def test_a_model_that_is_refused_is_left_as_it_was_found(images):
    model = Classifier().train()
    with pytest.raises(UnsupportedModelError):
        numbers_of(model, images, submodule="head")
    model.backbone.blocks[0].norm1.weight.data[0] = torch.nan
    with pytest.raises(NonFiniteError):
        numbers_of(model, images, submodule="backbone")
    assert all(module.training for module in model.modules())


def test_a_model_spread_over_processes_is_refused(images, tmp_path, monkeypatch):
    model = make_backbone()
    model.norm.bias = nn.Parameter(torch.empty(0))
    with pytest.raises(UsageError, match=r"norm\.bias is sharded across processes"):
        numbers_of(model, images)
    monkeypatch.setitem(os.environ, "MASTER_ADDR", "127.0.0.1")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model, mesh = make_backbone(), init_device_mesh("cpu", (1,))
        model.norm.weight = nn.Parameter(distribute_tensor(model.norm.weight.data, mesh))
        with pytest.raises(UsageError, match=r"norm\.weight is sharded across processes"):
            numbers_of(model, images)
    finally:
        torch.distributed.destroy_process_group()


def test_a_step_is_audited_once_and_only_when_due(images):
    model = make_backbone()
    schedule = AuditSchedule(TrainingAudit(images, CONFIG), 2, "raise")
    asked = [0, 0, 1, 1, 2, 2, 3, 4]
    assert [bool(schedule.measure(model, step)) for step in asked] == [
        *(True, False, False, False),
        *(True, False, False, True),
    ]


def test_a_failed_audit_ends_training_unless_it_may_only_warn(images):
    model, fixed = make_backbone(), TrainingAudit(images, CONFIG)
    model.blocks[0].norm1.weight.data[0] = torch.nan
    with pytest.raises(NonFiniteError):
        AuditSchedule(fixed, 1, "raise").measure(model, 3)
    with pytest.warns(AuditWarning, match=r"audit at step 3 failed: .*NaN"):
        assert AuditSchedule(fixed, 1, "warn").measure(model, 3) == {}


@pytest.mark.parametrize(
    ("every", "on_error", "message"),
    [(0, "raise", "every 0 steps: expected 1 or more"), (1, "ignore", "on_error 'ignore'")],
)
def test_settings_that_cannot_be_are_refused(every, on_error, message, images):
    with pytest.raises(UsageError, match=message):
        AuditSchedule(TrainingAudit(images), every, on_error)
