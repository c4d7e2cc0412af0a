"""Audits while Lightning trains: logged at the right steps, and training is none the worse."""

from types import SimpleNamespace

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from trained import (
    AUDITED,
    CONFIG,
    EVERY,
    NUM_STEPS,
    Classifier,
    assert_same_weights,
    audit_weights,
    copy_weights,
    make_examples,
    read_events,
)
from vitscope.errors import NonFiniteError
from vitscope.training import TrainingAudit
from vitscope.training.lightning_callback import AuditCallback
from vitscope.training.training_audit import AuditWarning


def make_module(library):
    class Training(library.LightningModule):
        def __init__(self):
            super().__init__()
            self.classifier = Classifier()
            self.seen = {}

        def training_step(self, batch, _):
            pixels, labels = batch
            loss = cross_entropy(self.classifier(pixels), labels)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

        def on_train_start(self):
            self.keep_weights()

        def on_train_batch_end(self, *_):
            self.keep_weights()

        def keep_weights(self):
            self.seen[self.trainer.global_step] = copy_weights(self.classifier.backbone)

    return Training()


class MemoryLogger(Logger):
    """Keeps what it is told, as the interface of every logger of Lightning has it."""

    name, version = "memory", 0

    def __init__(self):
        super().__init__()
        self.told = {}

    def log_metrics(self, metrics, step=None):
        numbers = {key: value for key, value in metrics.items() if key.startswith("vitscope/")}
        if numbers:
            assert step not in self.told
            self.told[step] = numbers

    def log_hyperparams(self, *_, **__):
        pass


def fit(*callbacks, library=lightning.pytorch, loggers=(), module=None, accumulate=1):
    torch.manual_seed(3)
    module = module or make_module(library)
    trainer = library.Trainer(
        accelerator="cpu",
        max_steps=NUM_STEPS,
        callbacks=list(callbacks),
        logger=list(loggers),
        accumulate_grad_batches=accumulate,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    examples = make_examples(4 * NUM_STEPS * accumulate)
    trainer.fit(module, DataLoader(examples, batch_size=4, shuffle=True))
    assert trainer.global_step == NUM_STEPS
    return module


def make_callback(images, **settings):
    fixed = TrainingAudit(images, CONFIG, submodule="classifier.backbone")
    return AuditCallback(fixed, every=EVERY, **settings)


@pytest.mark.parametrize("library", [lightning.pytorch, pytorch_lightning])
def test_training_is_the_same_with_audits_and_without(library, images):
    logger = MemoryLogger()
    audited = fit(make_callback(images), library=library, loggers=[logger])
    assert list(logger.told) == AUDITED
    alone = fit(library=library)
    assert audited.seen.keys() == alone.seen.keys()
    for step, weights in alone.seen.items():
        assert_same_weights(audited.seen[step], weights)
    assert not torch.equal(*(audited.seen[step]["norm.weight"] for step in (0, NUM_STEPS)))


def test_the_numbers_logged_are_those_of_an_audit_of_the_weights_at_that_step(images):
    logger = MemoryLogger()
    module = fit(make_callback(images), loggers=[logger])
    for step, numbers in logger.told.items():
        expected = audit_weights(module.seen[step], images)
        assert numbers == pytest.approx(expected, abs=1e-12, rel=1e-12)
    shares = [numbers["vitscope/cka_residual_patches"] for numbers in logger.told.values()]
    assert len(set(shares)) == len(AUDITED)


def test_accumulated_gradients_are_one_step(images):
    logger = MemoryLogger()
    module = fit(make_callback(images), loggers=[logger], accumulate=2)
    assert list(logger.told) == AUDITED
    assert logger.told[4] == audit_weights(module.seen[4], images)


def test_tensorboard_holds_the_numbers_beside_the_loss(images, tmp_path):
    memory = MemoryLogger()
    fit(make_callback(images), loggers=[TensorBoardLogger(tmp_path), memory])
    events = read_events(tmp_path / "lightning_logs" / "version_0")
    for name in memory.told[0]:
        expected = [(step, np.float32(memory.told[step][name])) for step in AUDITED]
        assert events[name] == expected
    assert len(events["loss"]) == NUM_STEPS


def test_a_failed_audit_ends_training_unless_it_may_only_warn(images):
    def break_module():
        module = make_module(lightning.pytorch)
        module.classifier.backbone.blocks[0].norm1.weight.data[0] = torch.nan
        return module

    with pytest.raises(NonFiniteError):
        fit(make_callback(images), module=break_module())
    logger = MemoryLogger()
    with pytest.warns(AuditWarning, match=r"audit at step \d failed"):
        fit(make_callback(images, on_error="warn"), module=break_module(), loggers=[logger])
    assert not logger.told


def test_only_the_process_of_rank_0_audits(images):
    logger = MemoryLogger()
    module = make_module(lightning.pytorch)
    trainer = SimpleNamespace(is_global_zero=False, global_step=0, loggers=[logger])
    make_callback(images).on_train_start(trainer, module)
    assert not logger.told
    trainer.is_global_zero = True
    make_callback(images).on_train_start(trainer, module)
    assert list(logger.told) == [0]
