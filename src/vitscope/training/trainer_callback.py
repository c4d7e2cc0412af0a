"""Audits during training with the Trainer of transformers, logged to wherever it reports."""

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vitscope.training.training_audit import AuditSchedule, OnError, TrainingAudit


class AuditCallback(TrainerCallback):  # type: ignore[misc]
    """Audits the model before the first optimizer step, and then at regular intervals.

    The numbers go through `Trainer.log` to the log history and all report targets, at the current
    number of optimizer steps. In distributed training rank 0 audits while the others wait.
    """

    def __init__(
        self,
        trainer: Trainer,
        audit: TrainingAudit,
        *,
        every: int = 500,
        on_error: OnError = "raise",
    ) -> None:
        """Prepare the callback; add it with `trainer.add_callback`.

        Args:
            trainer: The trainer, which callbacks otherwise have no access to.
            audit: The audit; its `submodule` is looked up in the trainer's model.
            every: Number of optimizer steps between audits.
            on_error: Whether a failed audit ends training ("raise") or only gives a warning
                ("warn").

        Raises:
            UsageError: If a setting is invalid.
        """
        self._trainer = trainer
        self._schedule = AuditSchedule(audit, every, on_error)

    def on_step_end(
        self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any
    ) -> None:
        """Audit the model if it is due; called by the trainer."""
        if not state.is_world_process_zero:
            return
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        numbers = self._schedule.measure(model, state.global_step)
        if numbers:
            # Logging clears the flag that makes the trainer log its loss at this step.
            loss_is_due = control.should_log
            self._trainer.log(numbers)
            control.should_log = loss_is_due

    on_train_begin = on_step_end
