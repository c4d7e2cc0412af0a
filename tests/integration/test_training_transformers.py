"""Audits while the Trainer of transformers trains: logged at the right steps, harming nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig
from transformers import ViTForImageClassification as Classifier

from trained import (
    AUDITED,
    CONFIG,
    EVERY,
    NUM_STEPS,
    assert_same_weights,
    copy_weights,
    make_examples,
    read_events,
)
from vitscope import audit, wrap_model
from vitscope.errors import NonFiniteError
from vitscope.testing.tiny_transformers import TINY_TRANSFORMERS
from vitscope.training import TrainingAudit
from vitscope.training.curves import list_numbers
from vitscope.training.trainer_callback import AuditCallback
from vitscope.training.training_audit import AuditWarning


def make_model():
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        hidden_dropout_prob=0.1,
        num_labels=3,
    )
    torch.manual_seed(0)
    return Classifier(config)


class KeepWeights(TrainerCallback):
    """Keeps the weights at every step."""

    def __init__(self):
        self.seen = {}

    def on_train_begin(self, _, state, __, model=None, **___):
        self.seen[state.global_step] = copy_weights(model)

    on_step_end = on_train_begin


class TowerTrainer(Trainer):
    """Trains a Vision Transformer that has no head of its own."""

    def compute_loss(self, model, inputs, **_):
        return model(inputs["pixel_values"]).last_hidden_state[:, 0].square().mean()


def train(
    folder,
    images=None,
    *,
    model=None,
    accumulate=1,
    on_error="raise",
    trainer_class=Trainer,
    **settings,
):
    kept = KeepWeights()
    trainer = trainer_class(
        model=model or make_model(),
        args=TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            max_steps=NUM_STEPS,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=accumulate,
            learning_rate=1e-2,
            logging_steps=3,
            save_strategy="no",
            disable_tqdm=True,
            **{"report_to": "none", **settings},
        ),
        train_dataset=[
            {"pixel_values": pixels, "labels": label}
            for pixels, label in make_examples(4 * NUM_STEPS * accumulate)
        ],
        callbacks=[kept],
    )
    if images is not None:
        fixed = TrainingAudit(images, CONFIG)
        trainer.add_callback(AuditCallback(trainer, fixed, every=EVERY, on_error=on_error))
    trainer.train()
    return trainer, kept.seen


def told(trainer):
    """The numbers of vitscope in the log history, by step."""
    return {
        entry["step"]: {k: v for k, v in entry.items() if k.startswith("vitscope/")}
        for entry in trainer.state.log_history
        if "vitscope/num_images" in entry
    }


def losses(trainer):
    return [(e["step"], e["loss"]) for e in trainer.state.log_history if "loss" in e]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_is_the_same_with_audits_and_without(accumulate, images, tmp_path):
    audited, seen = train(tmp_path / "audited", images, accumulate=accumulate)
    alone, seen_alone = train(tmp_path / "alone", accumulate=accumulate)
    assert list(told(audited)) == AUDITED
    assert seen.keys() == seen_alone.keys()
    for step, weights in seen_alone.items():
        assert_same_weights(seen[step], weights)
    # Step 6 has both: an audit must not take the place of the loss.
    assert losses(audited) == losses(alone)
    assert [step for step, _ in losses(audited)] == [3, 6]


def test_the_numbers_logged_are_those_of_an_audit_of_the_weights_at_that_step(images, tmp_path):
    trainer, seen = train(tmp_path, images)
    for step, numbers in told(trainer).items():
        model = make_model()
        model.load_state_dict(seen[step])
        expected = list_numbers(audit(wrap_model(model), images, CONFIG).summary)
        assert numbers == pytest.approx(expected, abs=1e-12, rel=1e-12)
    assert (
        len({numbers["vitscope/cka_residual_patches"] for numbers in told(trainer).values()}) == 4
    )


@pytest.mark.parametrize(
    ("make", "trainer_class"),
    [(make_model, Trainer), (TINY_TRANSFORMERS["dinov2_registers"], TowerTrainer)],
    ids=["classifier", "tower"],
)
def test_mixed_precision_training_is_audited_in_full_precision(
    make, trainer_class, images, tmp_path
):
    # Of a model that it is given, accelerate alters the forward: here that of the tower itself.
    trainer, seen = train(tmp_path, images, model=make(), trainer_class=trainer_class, bf16=True)
    assert trainer.accelerator.mixed_precision == "bf16"
    model = make()
    model.load_state_dict(seen[NUM_STEPS])
    expected = list_numbers(audit(wrap_model(model), images, CONFIG).summary)
    assert told(trainer)[NUM_STEPS] == pytest.approx(expected, abs=1e-12, rel=1e-12)


def test_tensorboard_holds_the_numbers_beside_the_loss(images, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer, _ = train(tmp_path, images, report_to="tensorboard")
    events = read_events(tmp_path / "events")
    for name in told(trainer)[0]:
        expected = [(step, np.float32(told(trainer)[step][name])) for step in AUDITED]
        assert events[f"train/{name}"] == expected
    assert [step for step, _ in events["train/loss"]] == [3, 6]


def test_a_failed_audit_ends_training_unless_it_may_only_warn(images, tmp_path):
    def break_model():
        model = make_model()
        model.vit.embeddings.cls_token.data[0, 0, 0] = torch.nan
        return model

    with pytest.raises(NonFiniteError):
        train(tmp_path, images, model=break_model())
    with pytest.warns(AuditWarning, match=r"audit at step \d failed"):
        trainer, _ = train(tmp_path, images, model=break_model(), on_error="warn")
    assert not told(trainer)


def test_only_the_process_of_rank_0_audits(images, tmp_path):
    trainer, _ = train(tmp_path)
    callback = AuditCallback(trainer, TrainingAudit(images, CONFIG))
    state = SimpleNamespace(is_world_process_zero=False, global_step=0)
    callback.on_train_begin(trainer.args, state, trainer.control)
    assert not told(trainer)
    state.is_world_process_zero = True
    callback.on_train_begin(trainer.args, state, trainer.control)
    assert len(told(trainer)) == 1
