"""Audits during training with the Trainer of transformers, logged to wherever it reports."""

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vitscope.training.schedule import AuditSchedule, OnError
from vitscope.training.training_audit import TrainingAudit


class AuditCallback(TrainerCallback):  # type: ignore[misc]
    """Audits the model before the first optimizer step, and then after every so many.

    The numbers go through `Trainer.log`: into the log history and to all that the trainer reports
    to, at the number of optimizer steps made. In distributed training the process of rank 0 audits
    while the others wait for it.
    """

    def __init__(
        self,
        trainer: Trainer,
        audit: TrainingAudit,
        *,
        every: int = 500,
        on_error: OnError = "raise",
    ) -> None:
        """Prepare the callback; `trainer.add_callback` takes it.

        Args:
            trainer: The trainer, which a callback is not told of otherwise.
            audit: The audit; its `submodule` is looked for in the trainer's model.
            every: Optimizer steps from one audit to the next.
            on_error: Whether an audit that fails ends training ("raise"), or is warned of ("warn").

        Raises:
            UsageError: If a setting cannot be.
        """
        self._trainer = trainer
        self._schedule = AuditSchedule(audit, every, on_error)

    def on_step_end(
        self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any
    ) -> None:
        """Audit the model if it is time; the trainer calls this."""
        if not state.is_world_process_zero:
            return
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        numbers = self._schedule.measure(model, state.global_step)
        if numbers:
            # Logging clears the flag by which the trainer would log its loss at this step.
            loss_is_due = control.should_log
            self._trainer.log(numbers)
            control.should_log = loss_is_due

    on_train_begin = on_step_end
