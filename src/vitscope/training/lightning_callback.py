"""Audits during training with Lightning, logged to the trainer's loggers."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vitscope.training.training_audit import AuditSchedule, OnError, TrainingAudit

# The same library under two names; a trainer of either accepts callbacks of the other.
if TYPE_CHECKING or find_spec("lightning") is not None:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback
else:
    from pytorch_lightning import Callback, LightningModule, Trainer


class AuditCallback(Callback):  # type: ignore[misc]
    """Audits the model before the first optimizer step, and then at regular intervals.

    The numbers go to all loggers of the trainer, at the current number of optimizer steps. In
    distributed training rank 0 audits while the others wait.
    """

    def __init__(
        self, audit: TrainingAudit, *, every: int = 500, on_error: OnError = "raise"
    ) -> None:
        """Prepare the callback.

        Args:
            audit: The audit; its `submodule` is looked up in the LightningModule.
            every: Number of optimizer steps between audits.
            on_error: Whether a failed audit ends training ("raise") or only gives a warning
                ("warn").

        Raises:
            UsageError: If a setting is invalid.
        """
        self._schedule = AuditSchedule(audit, every, on_error)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Audit the model if it is due; called by Lightning."""
        if not trainer.is_global_zero:
            return
        numbers = self._schedule.measure(pl_module, trainer.global_step)
        if numbers:
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=trainer.global_step)

    on_train_start = on_train_batch_end
